"""What every model family answers. The rest of vlmft knows a model through this seam alone."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from vlmft.config.spec import Spec
from vlmft.errors import ConfigError

if TYPE_CHECKING:
    import PIL.Image
    import torch
    from torch import Tensor

Precision = Literal["bf16", "fp16", "fp32"]

Media = dict[str, "Tensor"]
"""One picture as a family wants it: named tensors, pixels as uint8, so that little crosses process borders."""


class LearningRates(Spec):
    """Peak learning rates of the LLM that suit a checkpoint; a recipe picks the one of its kind."""

    full: float = Field(gt=0, description="where weights train in full")
    adapter: float = Field(gt=0, description="where adapters train")


class ModelSpec(Spec, abstract=True):
    """A checkpoint and the family it belongs to.

    A family is a subclass with its component paths and the four media methods; a checkpoint is a YAML of values.
    """

    path: str | None = Field(description="folder, or hub id, in the form that from_pretrained reads")
    revision: str | None = Field(description="branch, tag or commit of a hub id")
    precision: Precision = Field(description="what suits this checkpoint; the run's `precision` starts from it")
    lr: LearningRates
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        description="attention implementation, under transformers' names"
    )
    min_pixels: int | None = Field(
        ge=1, description="pictures below this many pixels are enlarged; null: the checkpoint's own"
    )
    max_pixels: int | None = Field(
        ge=1, description="pictures above this many pixels are shrunk; null: the checkpoint's own"
    )

    component_paths: ClassVar[Mapping[str, tuple[str, ...]]]
    """Module paths of each component; a parameter belongs to the component with the longest matching path."""

    block_paths: ClassVar[Mapping[str, str]]
    """Where each component keeps its list of transformer blocks."""

    def folder(self) -> Path:
        """The checkpoint's folder on this machine; a hub id is fetched (or found in the hub's cache)."""
        if self.path is None:
            raise ConfigError("model.path: names no checkpoint; give a folder or a hub id")
        local = Path(self.path).expanduser()
        if local.is_dir():
            return local.resolve()
        if local.is_absolute() or self.path.startswith((".", "~")):
            raise ConfigError(f"model.path: there is no folder {self.path}")
        return _fetch(self.path, self.revision)

    def located(self) -> Self:
        """This spec with a local folder's path made absolute, so that it holds in any working directory."""
        if self.path is None or not Path(self.path).expanduser().is_dir():
            return self
        return self.model_copy(update={"path": str(self.folder())})

    def load_processor(self) -> Any:
        """The checkpoint's processor, with this spec's pixel budget."""
        from transformers import AutoProcessor

        folder = self.folder()
        with _no_code_of_its_own(folder):
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        self.set_pixel_budget(processor)
        return processor

    def load_model(self, device: "torch.device") -> Any:
        """The checkpoint's model on `device`, in the dtype it was saved in, every weight frozen or not as it comes."""
        from transformers import AutoModelForImageTextToText

        folder = self.folder()
        if not any(folder.glob("*.safetensors")):
            raise ConfigError(
                f"model.path: {folder} holds no *.safetensors; other weight files are not read, they run code",
                f"  where it has some and you trust them, convert them: {_conversion(folder)}",
            )
        with _no_code_of_its_own(folder):
            return AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype="auto",
                attn_implementation=self.attention,
                use_safetensors=True,
                device_map=device,
                trust_remote_code=False,
            )

    def set_pixel_budget(self, processor: Any) -> None:
        """Write min_pixels and max_pixels into the processor, so that they are saved with the model.

        Raises:
            ConfigError: the two bounds, one of which may be the checkpoint's own, cross.
        """
        raise NotImplementedError

    def image_token_id(self, processor: Any) -> int:
        """The token that stands once for each picture in rendered text and is repeated for each of its features."""
        raise NotImplementedError

    def num_image_tokens(self, processor: Any, height: int, width: int) -> int:
        """How many tokens a picture of this size (pixels, before resizing) becomes; nothing is decoded.

        Raises:
            DataError: the family takes no picture of this shape.
        """
        raise NotImplementedError

    def encode_image(self, processor: Any, image: "PIL.Image.Image") -> Media:
        """Resize an RGB picture for the tower; values stay uint8."""
        raise NotImplementedError

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """Join a batch's media, in reading order, into what `model_inputs` takes. `input_ids` is [B, S], padded."""
        raise NotImplementedError

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """On the device: from a collated batch to the arguments of the model's forward (pixels become floats here)."""
        raise NotImplementedError


@contextmanager
def _no_code_of_its_own(folder: Path) -> Iterator[None]:
    """Turn transformers' refusal to run a checkpoint's own Python files into an error that says what to do."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ConfigError(
            f"model.path: {folder} needs Python code of its own (auto_map in its JSON files), which is never run; "
            "use a checkpoint in a format that transformers itself reads (its hub id often ends in -hf)"
        ) from None


def _conversion(folder: Path) -> str:
    """The command that adds *.safetensors to a folder of pickled weights; it reads tensors alone and runs nothing."""
    code = (
        "from transformers import AutoModelForImageTextToText as A; "
        f"A.from_pretrained({str(folder)!r}, dtype='auto').save_pretrained({str(folder)!r})"
    )
    return f"python -c {shlex.quote(code)}"


def _fetch(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model.path: {hub_id!r} is neither a folder here nor a checkpoint that the hub gives: {reason}"
        ) from None
