"""`model=auto`: a checkpoint of any class that transformers loads as `AutoModelForImageTextToText`, as far as proven.

Its components are found by looking (`anatomy`), its pictures are written and joined as its own processor is found to do
it (`manner`), and a run goes on only once what was found is proven on its first samples (`vlmft.encoding.proof`). A
family's own file does more: videos, budgets, pixels that stay uint8, counts without encoding a blank picture.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from pydantic import Field

from vlmft.config.media import PixelBudget
from vlmft.errors import ConfigError, UnprovenError
from vlmft.models.anatomy import Anatomy, dissect, refused
from vlmft.models.asking import learn
from vlmft.models.manner import Manner
from vlmft.models.spec import Media, MediaKind, MediumText, ModelSpec, Pixels

if TYPE_CHECKING:
    from torch import Tensor

_ANATOMIES: dict[tuple[Any, ...], Anatomy] = {}  # of the checkpoints that were asked for
_MANNERS: "WeakKeyDictionary[Any, Manner]" = WeakKeyDictionary()  # beside the processors: these are saved with a model


class Auto(ModelSpec):
    """A checkpoint of no family of its own. It takes pictures and text, pictures as its own processor resizes them."""

    coordinate_style: Literal["thousand", "unit"] | None = Field(  # type: ignore[assignment, misc]
        description="how it was taught to write boxes and points; null: entries with `coordinates` are refused"
    )

    masks: ClassVar = "what nobody has looked at"
    unpacked_because: ClassVar = "nobody has looked at what its class does between the samples of a row"

    @property
    def component_paths(self) -> Mapping[str, tuple[str, ...]]:  # type: ignore[override]
        """See `ModelSpec`."""
        return self.anatomy.component_paths

    @property
    def block_paths(self) -> Mapping[str, str]:  # type: ignore[override]
        """See `ModelSpec`."""
        return self.anatomy.block_paths

    @property
    def bare_parameters(self) -> frozenset[str]:  # type: ignore[override]
        """See `ModelSpec`."""
        return self.anatomy.bare_parameters

    @property
    def anatomy(self) -> Anatomy:
        """What the checkpoint's model is made of.

        Raises:
            ConfigError: it cannot be told, or transformers has no class for it.
        """
        key = (self.path, self.revision, self.trust_remote_code)
        if key not in _ANATOMIES:
            _ANATOMIES[key] = dissect(self.skeleton())
        return _ANATOMIES[key]

    def refuse_missing_folder(self) -> None:
        """See `ModelSpec`; there has to be a path."""
        if self.path is None:
            raise ConfigError("model.path: model=auto needs one, a folder or a hub id: model.path=/weights/MODEL")
        super().refuse_missing_folder()

    def skeleton(self) -> Any:
        """See `ModelSpec`."""
        self._refuse_other_tasks()
        return super().skeleton()

    def refused(self, what: str, reason: str) -> UnprovenError:
        """The error that `model=auto` does not take the checkpoint. `what` is the class that `reason` is about."""
        return refused(what, self._config, reason)

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; no budget is taken."""
        self._refuse_budget(self.image)

    def placeholders(self, processor: Any) -> dict[MediaKind, str]:
        """See `ModelSpec`; no videos."""
        return {"image": self._manner(processor).placeholder}

    def feature_tokens(self, processor: Any) -> frozenset[int]:
        """See `ModelSpec`."""
        return frozenset((self._manner(processor).feature,))

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """The picture's own size: it is asked for boxes and points, whose style here does not depend on it.

        Raises:
            ConfigError: nobody has said how boxes are to be written.
        """
        if self.coordinate_style is None:
            raise ConfigError(
                "model.coordinate_style: null, and an entry's texts hold boxes or points (`coordinates`): say how this "
                "checkpoint was taught to write them, thousand or unit, or use a family of vlmft's own"
            )
        return size

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: what the processor writes for a blank picture of this size, which is encoded once."""
        self._refuse_budget(budget)
        return self._manner(processor).text_of(processor, size)

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`: the processor's own tensors, float32 pixels among them."""
        return self._manner(processor).medium(processor, picture)

    def shown(self, processor: Any, media: Media) -> Pixels:
        """See `ModelSpec`; none where the pixels lie otherwise than as pictures [..., C, H, W]."""
        import numpy as np
        import torch

        pixels, part = media.get("pixel_values"), processor.image_processor
        if pixels is None or pixels.ndim < 4 or pixels.shape[-3] != 3:
            return np.empty((0, 0, 0, 3), np.uint8)
        if getattr(part, "do_normalize", False):
            mean, std = (torch.tensor(values)[:, None, None] for values in (part.image_mean, part.image_std))
            pixels = pixels * std + mean
        if getattr(part, "do_rescale", False):
            pixels = pixels / part.rescale_factor
        whole = pixels.reshape(-1, *pixels.shape[-3:]).round().clamp(0, 255).to(torch.uint8)
        found: Pixels = whole.permute(0, 2, 3, 1).numpy()
        return found

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `ModelSpec`."""
        return self._manner(processor).collate(input_ids, media)

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`: they are that already."""
        return inputs

    def _manner(self, processor: Any) -> Manner:
        if processor not in _MANNERS:
            self._refuse_other_tasks()
            name, config = type(processor).__name__, self._config
            if getattr(processor.tokenizer, "pad_token_id", None) is None:
                raise self.refused(name, "its tokenizer has no pad token, with which batches are filled up")
            ids = (getattr(config, key, None) for key in ("image_token_id", "image_token_index"))
            feature = next((found for found in ids if found is not None), None)
            if feature is None:
                raise self.refused(name, "its config names no image_token_id, whose place a picture's features take")
            _MANNERS[processor] = learn(processor, feature, lambda reason: self.refused(name, reason))
        return _MANNERS[processor]

    @property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder(), trust_remote_code=self.trust_remote_code)

    def _refuse_other_tasks(self) -> None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        config = self._config
        own = self.trust_remote_code and "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
        if not own and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise self.refused(type(config).__name__, "transformers has no AutoModelForImageTextToText for it")

    def _refuse_budget(self, budget: PixelBudget) -> None:
        given = {name: getattr(budget, name) for name in ("min_pixels", "max_pixels", "height", "width")}
        if found := [f"{name}={value}" for name, value in given.items() if value is not None]:
            raise self.refused(
                "model.image",
                f"{', '.join(found)}: pictures are seen as its processor has it; leave it null",
            )
