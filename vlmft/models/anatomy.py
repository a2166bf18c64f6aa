"""What a model of no family of its own is made of: tower, projector and LLM, found by looking at its modules."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmft.config.roots import builtin_folder
from vlmft.errors import UnprovenError
from vlmft.models.components import parameters_by_component

if TYPE_CHECKING:
    from torch import nn

_PROJECTOR = re.compile("merger|projector|connector|aligner|resampler|adapter|downsample", re.IGNORECASE)


@dataclass(frozen=True)
class Anatomy:
    """What was found. The first three are `ModelSpec`'s fields of the same meaning."""

    component_paths: Mapping[str, tuple[str, ...]]
    block_paths: Mapping[str, str]
    bare_parameters: frozenset[str]

    def describe(self) -> list[str]:
        """A line for each component: its paths, and where its blocks lie."""
        return [
            f"{name}: {', '.join(paths)}" + (f" (blocks: {self.block_paths[name]})" if name in self.block_paths else "")
            for name, paths in self.component_paths.items()
        ]


def dissect(model: Any) -> Anatomy:
    """Find the components of `model`, which may be on the meta device.

    The tower and the LLM are transformers' own answers (`get_encoder`, `get_decoder`); the head goes with the LLM. The
    projector is what lies outside of both; where that is nothing, what the tower names a merger or the like.

    Raises:
        UnprovenError: one of the three cannot be told; there is an audio encoder, a second tower or a generator beside
            them; the LLM is an encoder with a decoder; or the head cannot be asked for some tokens alone.
    """

    def cannot(reason: str) -> UnprovenError:
        return refused(type(model).__name__, model.config, reason)

    if any(getattr(c, "is_encoder_decoder", False) for c in (model.config, model.config.get_text_config(decoder=True))):
        raise cannot("its LLM is an encoder with a decoder, and vlmft trains LLMs that go on with their text")
    places = {id(module): path for path, module in model.named_modules(remove_duplicate=False)}
    tower = places.get(id(model.get_encoder(modality="image")), "")
    llm = places.get(id(model.get_decoder()), "")
    whole = places.get(id(model.base_model), "")
    if not tower or tower == whole:
        raise cannot("transformers' get_encoder names no vision tower in it")
    if not llm or _lies_in(tower, llm) or _lies_in(llm, tower):
        raise cannot(f"transformers' get_decoder names no LLM in it that lies apart from its tower, {tower}")
    audio = places.get(id(model.get_encoder(modality="audio")), "")
    if audio and audio not in (whole, tower):
        raise cannot(f"it has an audio encoder ({audio}), whose weights belong to no component")
    ends = [places.get(id(end), "") for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end]
    whole_llm = tuple(dict.fromkeys([llm, *(end for end in ends if end and not _lies_in(end, llm))]))
    modules, bare = _outside(model, (tower, *whole_llm))
    if second := next((name for path in modules for name in _models_within(model, path)), None):
        raise cannot(
            f"beside its tower ({tower}) and its LLM ({llm}) it has {second}, a model by itself: whether that is a "
            "second tower, a generator or part of the projector cannot be told"
        )
    projector = (*modules, *bare) or tuple(_within_tower(model.get_submodule(tower), tower))
    if not projector:
        raise cannot(f"no projector is found: nothing lies outside of its tower ({tower}) and its LLM ({llm})")
    paths = {"vision_tower": (tower,), "projector": projector, "llm": whole_llm}
    groups = parameters_by_component(model, paths)
    if empty := [name for name, group in groups.items() if not group]:
        raise cannot(f"no weight of it lies in {', '.join(f'{name} ({paths[name][0]})' for name in empty)}")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise cannot("its forward takes no logits_to_keep, so it computes the logits of all tokens whatever is asked")
    blocks = {name: _blocks(model, path, projector) for name, path in (("vision_tower", tower), ("llm", llm))}
    found = {name: path for name, path in blocks.items() if path is not None}
    return Anatomy(paths, found, frozenset(bare))


def refused(what: str, config: Any, reason: str) -> UnprovenError:
    """Why `model=auto` does not take a checkpoint, and the family of vlmft's own that does, where there is one.

    Args:
        what: the class, of a model or of a processor, that `reason` is about.
        config: the checkpoint's.
    """
    family = family_of(config)
    fix = (
        f"  use model={family}, a family of vlmft's own that fits its model_type ({config.model_type})"
        if family
        else f"  no family of vlmft's own fits its model_type ({config.model_type}); to write one, see "
        'CONTRIBUTING.md, "a model family"'
    )
    return UnprovenError(f"model=auto: {what}: {reason}", fix)


def family_of(config: Any) -> str | None:
    """The option of vlmft's own conf/model that is named like the model_type of a config of transformers.

    Or like that of its tower (Pixtral is a llava with a pixtral tower); or like it but for a number (internvl ->
    internvl3), unless that is a type by itself (idefics is not idefics3).
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    def plain(name: str) -> str:
        return re.sub(r"[_-]", "", name)

    files = sorted((builtin_folder() / "conf/model").glob("*.yaml"))
    options = {plain(path.stem): path.stem for path in files if not path.stem.startswith(("auto", "tiny_"))}
    types = {plain(name) for name in CONFIG_MAPPING_NAMES}
    wanted = plain(config.model_type)
    tower = plain(getattr(getattr(config, "vision_config", None), "model_type", ""))
    numbered = [name for name in options if re.fullmatch(re.escape(wanted) + r"\d+", name) and name not in types]
    return next((options[name] for name in (wanted, tower, *numbered) if name in options), None)


def _lies_in(path: str, outer: str) -> bool:
    return path == outer or path.startswith(outer + ".")


def _outside(model: "nn.Module", claimed: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The largest modules with weights that hold nothing that is claimed; and parameters of the modules around them."""
    modules: list[str] = []
    bare: list[str] = []

    def visit(path: str, module: "nn.Module") -> None:
        if any(_lies_in(path, part) for part in claimed):
            return
        if path and not any(_lies_in(part, path) for part in claimed):
            modules.extend([path] if any(True for _ in module.parameters()) else [])
            return
        bare.extend(f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False))
        for name, child in module.named_children():
            visit(f"{path}.{name}".lstrip("."), child)

    visit("", model)
    return modules, bare


def _models_within(model: "nn.Module", path: str) -> Iterator[str]:
    """The modules at or below `path` that are models of transformers by themselves, unless named a projector there."""
    from transformers import PreTrainedModel

    module = model.get_submodule(path)
    if _PROJECTOR.search(type(module).__name__):
        return
    for name, part in module.named_modules(prefix=path):
        if isinstance(part, PreTrainedModel):
            yield f"{name} ({type(part).__name__})"


def _within_tower(tower: "nn.Module", path: str) -> Iterator[str]:
    """The tower's own parts that are projectors by their names or those of their classes, or lists of such."""
    from torch import nn

    for name, child in tower.named_children():
        parts = list(child) if isinstance(child, nn.ModuleList) else [child]
        if parts and all(_PROJECTOR.search(f"{name} {type(part).__name__}") for part in parts):
            yield f"{path}.{name}"


def _blocks(model: "nn.Module", path: str, projector: Iterable[str]) -> str | None:
    """The list that holds a component's blocks; None where it has no list of two modules, or several that are alike.

    Where the blocks lie in several lists (stages), their order in the forward cannot be told.
    """
    from torch import nn

    lists = [
        (sum(weight.numel() for weight in module.parameters()), f"{path}.{name}")
        for name, module in model.get_submodule(path).named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1
    ]
    apart = [(size, name) for size, name in lists if not any(_lies_in(name, part) for part in projector)]
    if not apart:
        return None
    # A list within a block is smaller than the list of blocks, which comes first among equals.
    most, largest = max(apart, key=lambda found: found[0])
    others = [size for size, name in apart if not _lies_in(name, largest) and not _lies_in(largest, name)]
    return None if any(size > 0.1 * most for size in others) else largest
