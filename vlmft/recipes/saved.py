"""Saving what was trained, and loading it again.

A saved model is complete except for its base, which is named and hashed: adapters in PEFT's own form where the
recipe has them, else every trained weight by its live name; the processor; and `vlmft.json`, which says how to put
them together. Loading refuses a missing or unexpected weight and a base whose bytes have changed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from vlmft.config.spec import validate
from vlmft.errors import ConfigError, StorageError
from vlmft.models.pinned import check_copied
from vlmft.models.spec import ModelSpec, Precision, read_processor
from vlmft.recipes.apply import ADAPTER, apply_recipe
from vlmft.recipes.base import load_base
from vlmft.recipes.dtypes import compute_in, torch_dtype
from vlmft.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PROVENANCE = "vlmft.json"
CLASSIFIER = "classifier"
"""The key of `PROVENANCE` that says what a classification head is; see `heads`."""
_FORMAT = 1
_TRAINED = "trained.safetensors"


def save(
    folder: Path,
    model: Any,
    processor: Any,
    family: ModelSpec,
    recipe: Recipe,
    precision: Precision,
    base_sha256: Mapping[str, str],
    unreached: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Write `model`'s trained weights, processor and provenance to `folder`.

    Args:
        base_sha256: of the base's weight files, see `hash_weights`.
        unreached: trained weights that no gradient reached, frozen by the probe: they stay the base's own.
        provenance: anything more that belongs into `vlmft.json`: config, dataset fingerprints, versions.

    Raises:
        StorageError: a file cannot be written. Without its `vlmft.json`, the last of them, the folder does not load.
    """
    family = family.located().model_copy(update={"adapter": None})  # what was begun with is part of what is saved
    record = {
        "format": _FORMAT,
        "base": {"path": family.path, "revision": family.revision, "sha256": dict(base_sha256)},
        "model": family.to_config(),
        "recipe": recipe.to_config(),
        "precision": precision,
        "unreached": list(unreached),
        **provenance,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if recipe.adapters:
            if family.path is not None and not Path(family.path).is_dir():  # a hub id says more than its cached copy
                model.peft_config[ADAPTER].base_model_name_or_path = family.path
                model.peft_config[ADAPTER].revision = family.revision
            model.save_pretrained(folder, save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        else:
            _save_trained(model, folder)
        processor.save_pretrained(folder)
        (folder / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: cannot be written: {error}") from error


def load(path: str | Path, device: "str | torch.device" = "cpu", *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load what a run saved: its base with the trained weights in place, ready to answer.

    Args:
        path: a run folder or its `final` folder.
        device: where the model is put.
        trust_remote_code: run the base's own Python code, where the run did, as it is at the commit that the saved
            model names. It has to be said each time: whoever can write to the folder can name another commit.

    Returns:
        (model, processor), the model in eval mode, computing in the precision that it was trained in.

    Raises:
        ConfigError: no saved model here, the base is gone or has changed, weights are missing or unexpected, it needs
            code that is not trusted, or it is a classifier, whose head would be left behind.
    """
    saved = open_saved(path, trust_remote_code)
    if CLASSIFIER in saved.record:
        raise ConfigError(f"{saved.folder}: holds a classifier; vlmft.load_classifier loads it with its head")
    return saved.load(device)


@dataclass(frozen=True)
class Saved:
    """What a run saved, its record read and its base found unchanged."""

    folder: Path
    family: ModelSpec
    recipe: Recipe
    precision: Precision
    record: Mapping[str, Any]
    """All of `vlmft.json`."""

    def load(self, device: "str | torch.device") -> tuple[Any, Any]:
        """(model, processor), see the function `load`."""
        import torch

        processor = self.load_processor()
        dtype = torch_dtype(self.precision)
        model = load_base(self.family, self.recipe, dtype, torch.device(device))
        model = apply_recipe(model, self.recipe, self.family, dtype)
        self.fill(model)
        model.requires_grad_(False)
        model.eval()
        compute_in(model, dtype, torch.device(device))
        return model, processor

    def load_processor(self) -> Any:
        """The processor, with the pixel budget and the chat template of the training."""
        return read_processor(self.folder, self.family.trust_remote_code)

    def fill(self, model: Any) -> None:
        """Put the trained weights into the base, to which the recipe has been applied; all of them, and no other."""
        import torch

        if self.recipe.adapters:
            _load_adapter(model, self.folder)
            return
        live = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        with torch.no_grad():
            for name, tensor in self.trained(live):
                live[name].copy_(tensor)

    def trained(self, live: "Mapping[str, Tensor]") -> "Iterator[tuple[str, Tensor]]":
        """Each trained weight with its name, one in memory at a time; for a recipe without adapters.

        Args:
            live: all that the recipe trains, by name; each is in the file, or no gradient reached it.
        """
        unreached = set(self.record["unreached"])
        return read_weights(
            self.folder / _TRAINED, {name: tensor for name, tensor in live.items() if name not in unreached}
        )


def open_saved(path: str | Path, trust_remote_code: bool = False) -> Saved:
    """Read what a run saved, without its weights; arguments and errors are those of `load`."""
    folder = saved_folder(path)
    record = _read_record(folder)
    family: ModelSpec = validate(ModelSpec, record["model"])
    if family.trust_remote_code and not trust_remote_code:
        raise ConfigError(
            f"{folder}: was trained with the Python code of {family.path} at commit {family.revision}, which is not "
            "run unasked; if you trust it: vlmft.load(..., trust_remote_code=True); trust_remote_code=true in a merge"
        )
    recipe = validate(Recipe, record["recipe"])
    _check_base(folder, family, record["base"]["sha256"])
    if family.trust_remote_code:
        check_copied(folder, family.folder())
    return Saved(folder, family, recipe, record["precision"], record)


def load_earlier(path: str | Path, model: Any, family: ModelSpec, recipe: Recipe) -> None:
    """Give `model`, to which `recipe` has been applied, the trained weights of an earlier run on the same base.

    Raises:
        ConfigError: no saved model there, its base is another, or it was trained under a recipe with other weights.
    """
    folder = saved_folder(path)
    record = _read_record(folder)
    _check_base(folder, family, record["base"]["sha256"])
    earlier = validate(Recipe, record["recipe"])
    if bool(earlier.adapters) != bool(recipe.adapters):
        kinds = ["adapters" if one.adapters else "weights trained in full" for one in (earlier, recipe)]
        raise ConfigError(f"model.adapter: {folder} holds {kinds[0]}, this recipe trains {kinds[1]}; use its recipe")
    try:
        Saved(folder, family, recipe, record["precision"], record).fill(model)
    except ConfigError as error:
        raise ConfigError(f"model.adapter: {folder} was trained under another recipe: {error}") from None


def hash_weights(folder: Path) -> dict[str, str]:
    """sha256 of each *.safetensors of a checkpoint, by file name; files are read in parallel."""
    files = sorted(folder.glob("*.safetensors"))

    def digest(file: Path) -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:
        return {file.name: value for file, value in zip(files, pool.map(digest, files), strict=True)}


def saved_folder(path: str | Path) -> Path:
    """The folder of a saved model: `path` itself, or `final` in it. Raises `ConfigError` where it is neither."""
    path = Path(path).expanduser()
    for folder in (path, path / "final"):
        if (folder / PROVENANCE).is_file():
            return folder
    raise ConfigError(f"{path}: holds no saved model; expected a run folder, or its final/ with a {PROVENANCE}")


def _read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / PROVENANCE).read_text())
    if record["format"] != _FORMAT:
        raise ConfigError(f"{folder / PROVENANCE}: format {record['format']}, this vlmft reads {_FORMAT}")
    return record


def _check_base(folder: Path, family: ModelSpec, expected: Mapping[str, str]) -> None:
    base = family.folder()
    found = hash_weights(base)
    problems = [
        f"{folder}: was trained on a base whose {name} has sha256 {expected.get(name, 'none')[:12]}..., "
        f"{base} has {found.get(name, 'none')[:12]}...; point to the original base"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    ConfigError.raise_if(problems)


def _save_trained(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(trained, folder / _TRAINED, metadata={"format": "pt"})


def _load_adapter(model: Any, folder: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    saved = dict(read_weights(folder / "adapter_model.safetensors", expected))
    set_peft_model_state_dict(model, saved, adapter_name=ADAPTER)


def read_weights(file: Path, expected: "Mapping[str, Tensor]") -> "Iterator[tuple[str, Tensor]]":
    """Read a file that must hold exactly the `expected` names and shapes, tensor by tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stored:
            names: list[str] = stored.keys()
            _refuse_other_weights(file, {name: stored.get_slice(name).get_shape() for name in names}, expected)
            for name in expected:
                yield name, stored.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}; copy the saved model again, or train it again") from None


def _refuse_other_weights(file: Path, found: Mapping[str, list[int]], expected: "Mapping[str, Tensor]") -> None:
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    # copy_ would spread a single value over a whole weight.
    reshaped = sorted(n for n in found.keys() & expected.keys() if found[n] != list(expected[n].shape))
    if missing or unexpected or reshaped:
        raise ConfigError(
            f"{file}: does not fit the model that {PROVENANCE} describes: {len(missing)} weights missing "
            f"{missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}, {len(reshaped)} of another shape "
            f"{reshaped[:3]}; copy the saved model again, or train it again"
        )
