"""What every model family answers. The rest of vlmft knows a model through this seam alone."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, ValidationInfo, field_validator

from vlmft.config.media import CoordinateStyle, MediaRules, PixelBudget, VideoRule
from vlmft.config.spec import Spec
from vlmft.errors import ConfigError
from vlmft.models.kernels import Kernels
from vlmft.models.pinned import FULL_HASH, check_pinned
from vlmft.types import Clip

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Precision = Literal["bf16", "fp16", "fp32"]
MediaKind = Literal["image", "video"]

Pixels: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
"""RGB, [H, W, 3] of a picture and [T, H, W, 3] of a video's frames."""

Media = dict[str, "Tensor"]
"""A picture or video as a family wants it: named tensors, pixels as uint8, so that little crosses process borders."""


@dataclass(frozen=True, slots=True)
class MediumText:
    """What a medium's placeholder becomes: text that is tokenised with what stands around it.

    `text` holds one feature token for each run of them, and `runs` how often each is repeated.
    """

    text: str
    runs: tuple[int, ...]

    @property
    def num_features(self) -> int:
        """Features of the medium, which are as many vision tokens."""
        return sum(self.runs)


class LearningRates(Spec):
    """Peak learning rates of the LLM that suit a checkpoint; a recipe picks the one of its kind."""

    full: float = Field(gt=0, description="where weights train in full")
    adapter: float = Field(gt=0, description="where adapters train")


class ModelSpec(Spec, abstract=True):
    """A checkpoint and the family it belongs to.

    A family is a subclass with its component paths and the media methods; a checkpoint is a YAML of values. Sizes are
    (height, width) in pixels. A `budget` has been merged with the run's; what it leaves null is the checkpoint's own.
    `alone` says that a picture is its sample's only one: some families see one picture of several in less detail.
    """

    path: str | None = Field(description="folder, or hub id, in the form that from_pretrained reads")
    revision: str | None = Field(
        description="branch, tag or commit of a hub id; with trust_remote_code, of a folder too, a commit in full"
    )
    trust_remote_code: bool = Field(description="run the checkpoint's own Python code, as it is at `revision`")
    adapter: str | None = Field(description="a run or its final/: what it trained is the start of this one's training")
    precision: Precision = Field(description="what suits this checkpoint; the run's `precision` starts from it")
    lr: LearningRates
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        description="attention implementation, under transformers' names"
    )
    kernels: Kernels = Field(
        description="fused kernels in training: liger, or an error where it cannot be had; auto: where it can; none"
    )
    image: PixelBudget = Field(description="how large pictures are seen; an entry may say otherwise")
    video: VideoRule = Field(description="which frames of a video are seen, and how large; an entry may say otherwise")
    max_vision_tokens: int | None = Field(ge=1, description="vision tokens of a sample, at most; more is an error")

    component_paths: ClassVar[Mapping[str, tuple[str, ...]]]
    """Module paths of each component; a parameter belongs to the component with the longest matching path."""

    block_paths: ClassVar[Mapping[str, str | tuple[str, ...]]]
    """Where each component keeps its transformer blocks: in one list, or in several, in the order of the forward."""

    bare_parameters: ClassVar[frozenset[str]] = frozenset()
    """Parameters that hang on a module which holds components, not on one of their own."""

    coordinate_style: ClassVar[CoordinateStyle]
    """How the family was taught to write boxes and points."""

    masks: ClassVar[str | None] = None
    """What the family's attention masks say beyond causality and padding, which flash attention passes over."""

    prefix_lm: ClassVar[bool] = False
    """A sample is one question about pictures, read in both directions, and its answer; each is tokenised by itself."""

    unpacked_because: ClassVar[str | None] = "no test shows that a sample in a pack is computed as it is alone"
    """Why samples cannot stand end to end in one row; None: they can, and tests of the family show it."""

    unserved_because: ClassVar[str | None] = "nobody has looked at what the server makes of its pictures and weights"
    """Why no vLLM server can answer for it while it trains; None: one can.

    Then a picture that has been through the checkpoint's processor passes through it again unchanged (tests of the
    family show it), is one token before vLLM repeats it, and weights go by the names of the checkpoint.
    """

    @field_validator("trust_remote_code")
    @classmethod
    def _only_code_that_cannot_change(cls, trusted: bool, info: ValidationInfo) -> bool:
        if trusted and "path" in info.data and info.data["path"] is None:
            raise ValueError("needs path: without one there is no checkpoint, or vlmft's own, which brings no code")
        revision = info.data.get("revision")
        if trusted and "revision" in info.data and not (revision and FULL_HASH.fullmatch(revision)):
            raise ValueError(
                f"needs revision to be a commit's full hash, 40 digits of 0-9a-f (it is {revision or 'null'}): a "
                "branch or a tag can be moved to other code than you have read; `git rev-parse HEAD` in a clone, or "
                "the commit's page on the hub, gives it"
            )
        return trusted

    @field_validator("attention")
    @classmethod
    def _only_one_that_reads_the_masks(cls, attention: str) -> str:
        if cls.masks is not None and attention.startswith("flash"):
            raise ValueError(f"{attention} reads no masks, which here say {cls.masks}; use sdpa or eager")
        return attention

    def folder(self) -> Path:
        """The checkpoint's folder on this machine; a hub id is fetched (or found in the hub's cache).

        Raises:
            ConfigError: there is none, or `trust_remote_code` is on and its code is not that of commit `revision`.
        """
        if self.path is None:
            raise ConfigError("model.path: names no checkpoint; give a folder or a hub id")
        self.refuse_missing_folder()
        local = Path(self.path).expanduser()
        if local.is_dir():
            found = local.resolve()
        else:
            found = _fetch(self.path, self.revision, code=self.trust_remote_code).resolve()
        if self.trust_remote_code:
            check_pinned(found, self.revision or "null")  # which a copy that skipped validation may have
        return found

    def refuse_missing_folder(self) -> None:
        """Raise `ConfigError` where `path` can only be a folder, and there is none."""
        if self.path is None or Path(self.path).expanduser().is_dir():
            return
        if Path(self.path).expanduser().is_absolute() or self.path.startswith((".", "~")):
            raise ConfigError(f"model.path: there is no folder {self.path}")

    def refuse_packing(self) -> None:
        """Raise `ConfigError` where samples of this checkpoint cannot stand end to end in one row."""
        if self.unpacked_because is None and self.attention != "sdpa":
            raise ConfigError(
                f"batching=packed computes attention by a function of its own in sdpa's place; model.attention is "
                f"{self.attention}: take model.attention=sdpa, or batching=grouped"
            )
        if reason := self.unpacked_reason:
            name = type(self).__name__
            raise ConfigError(f"batching=packed: {name} takes no packs: {reason}; take batching=grouped")

    @property
    def unpacked_reason(self) -> str | None:
        """Why samples of this checkpoint, as it is to be computed, cannot pack; None: nothing here says so."""
        if self.unpacked_because is not None:
            return self.unpacked_because
        if self.attention != "sdpa":
            return f"packs are computed in sdpa's place, and model.attention is {self.attention}"
        if self.trust_remote_code:
            return "its Python code is its own, and nobody has looked at what its attention does"
        return None

    def located(self) -> Self:
        """This spec with a local folder's path made absolute, so that it holds in any working directory.

        What is in the folder is not looked at: what was trained must be saved even where its base has gone since.
        """
        if self.path is None or not Path(self.path).expanduser().is_dir():
            return self
        return self.model_copy(update={"path": str(Path(self.path).expanduser().resolve())})

    def without_weights(self) -> Self:
        """This spec with a folder that holds the checkpoint's config and processor, whether its weights or not.

        Of a hub id only these files are fetched. Raises as `folder`.
        """
        if self.path is None or self.trust_remote_code or Path(self.path).expanduser().is_dir():
            return self
        self.refuse_missing_folder()
        return self.model_copy(update={"path": str(_fetch(self.path, self.revision, code=False, weights=False))})

    def load_processor(self) -> Any:
        """The checkpoint's processor, with this spec's budgets."""
        processor = read_processor(self.folder(), self.trust_remote_code)
        self.set_budgets(processor)
        return processor

    def skeleton(self) -> Any:
        """The checkpoint's model without weights (on the meta device), to see what it is made of."""
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        folder = self.folder()
        with _own_code_explained(folder), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=self.trust_remote_code)

    def load_model(self, device: "torch.device", quantization: Any = None) -> Any:
        """The checkpoint's model on `device`, in the dtype it was saved in, every weight frozen or not as it comes.

        Args:
            quantization: transformers' quantisation settings; None loads every weight as it is.
        """
        from transformers import AutoModelForImageTextToText

        folder = self.folder()
        if not any(folder.glob("*.safetensors")):
            raise ConfigError(
                f"model.path: {folder} holds no *.safetensors; other weight files are not read, they run code",
                f"  where it has some and you trust them, convert them: {_conversion(folder)}",
            )
        with _own_code_explained(folder):
            model, found = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype="auto",
                attn_implementation=self.attention_asked,
                use_safetensors=True,
                quantization_config=quantization,
                device_map=device,
                trust_remote_code=self.trust_remote_code,
                ignore_mismatched_sizes=True,  # they are refused below, with their names
                output_loading_info=True,
            )
        # transformers warns, and goes on with random weights.
        if lacking := sorted(found["missing_keys"]) + sorted(str(key) for key, *_ in found["mismatched_keys"]):
            raise ConfigError(
                f"model.path: {folder} lacks {len(lacking)} weights of {type(model).__name__}, or has them in another "
                f"shape: {', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}; it is damaged, or of another "
                "class than its config.json says"
            )
        return self.mended(model)

    def mended(self, model: Any) -> Any:
        """The checkpoint's model, as transformers makes it, with what this family changes in it; of most nothing."""
        return model

    @property
    def attention_asked(self) -> str | None:
        """`attention` as transformers is asked for it; None: sdpa in every part that has it, eager in the others."""
        return self.attention

    @property
    def media_rules(self) -> MediaRules:
        """The run's own rules, which entries' rules go before."""
        return MediaRules(image=self.image, video=self.video, max_vision_tokens=self.max_vision_tokens)

    def set_budgets(self, processor: Any) -> None:
        """Write the run's pixel budgets and frame rule into the processor, so that they are saved with the model.

        Raises:
            ConfigError: two bounds, one of which may be the checkpoint's own, cross.
        """
        raise NotImplementedError

    def renderer(self, processor: Any) -> Any:
        """What writes a conversation as text: the processor, with the checkpoint's chat template.

        Raises:
            ConfigError: the family writes it otherwise, and the checkpoint contradicts that.
        """
        return processor

    def processor_text(self, processor: Any, prompt: str) -> str:
        """The text from which the processor itself makes `prompt`, as `renderer` writes it: mostly the same."""
        return prompt

    def placeholders(self, processor: Any) -> "dict[MediaKind, str]":
        """What the chat template writes for a medium of each kind that the family takes."""
        raise NotImplementedError

    def feature_tokens(self, processor: Any) -> frozenset[int]:
        """The tokens of which each stands for one feature of a picture or video."""
        raise NotImplementedError

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """The size at which the tower sees a picture of `size`.

        Raises:
            ConfigError: the budget contradicts itself or the checkpoint.
            DataError: the family takes no picture of this shape.
        """
        raise NotImplementedError

    def seen_frame(self, processor: Any, clip: Clip, budget: PixelBudget) -> tuple[int, int]:
        """The size at which the tower sees each frame of a video. Raises as `seen_image`."""
        raise NotImplementedError

    def image_text(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> "MediumText":
        """What stands in the text for a picture of `size`; nothing is decoded. Raises as `seen_image`."""
        raise NotImplementedError

    def video_text(self, processor: Any, clip: Clip, budget: PixelBudget) -> "MediumText":
        """What stands in the text for a video; nothing is decoded. Raises as `seen_image`."""
        raise NotImplementedError

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """Resize a picture for the tower; values stay uint8."""
        raise NotImplementedError

    def encode_video(self, processor: Any, frames: Pixels, clip: Clip, budget: PixelBudget) -> Media:
        """Resize a video's frames for the tower; values stay uint8."""
        raise NotImplementedError

    def shown(self, processor: Any, media: Media) -> Pixels:
        """The pictures that the tower gets of a medium, [N, H, W, 3]: one, its tiles, or a video's frames in order."""
        raise NotImplementedError

    def batch_kind(self, media: Sequence[object]) -> int:
        """What samples must have in common to share a batch, where a batch could change what is computed of one.

        It is told before media are decoded as well: by their number alone.

        Most families compute each sample by itself, whatever stands beside it: there is one kind.
        """
        return 0

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """Join a batch's media, in reading order, into what `model_inputs` takes. `input_ids` is [B, S], padded."""
        raise NotImplementedError

    def token_inputs(self, input_ids: "Tensor", supervised: "Tensor") -> dict[str, "Tensor"]:
        """What the model is told of each token beside its id; of most families nothing. Both are [B, S], padded."""
        return {}

    def packed_positions(self, model: Any, inputs: dict[str, "Tensor"], lengths: Sequence[int]) -> "Tensor":
        """The position of each token of a pack, as the model counts it in a sample alone: int64 [1, S], or [R, 1, S].

        Args:
            model: wrapped or not.
            inputs: of the pack, as collated, on the CPU.
            lengths: tokens of each sample.
        """
        import torch

        return torch.cat([torch.arange(length) for length in lengths])[None]

    def tower_inputs(
        self, model: Any, inputs: dict[str, "Tensor"], device: "torch.device", times: int
    ) -> dict[str, Any]:
        """What the vision tower would otherwise work out of sizes on the device; further arguments of the forward pass.

        Args:
            model: wrapped or not.
            inputs: as collated, on the CPU.
            times: so many equal blocks the media are, of which the tower sees one.
        """
        return {}

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """On the device: from a collated batch to the arguments of the model's forward (pixels become floats here)."""
        raise NotImplementedError


def read_processor(folder: Path, trust_remote_code: bool, **options: Any) -> Any:
    """The processor saved in `folder`; code of its own is run only where it is trusted, and checked before.

    Args:
        options: of transformers' `from_pretrained`, where a family needs any.

    Raises:
        ConfigError: it needs code of its own, which is not trusted or cannot be imported.
    """
    from transformers import AutoProcessor

    with _own_code_explained(folder):
        return AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)


@contextmanager
def _own_code_explained(folder: Path) -> Iterator[None]:
    """Turn what transformers says about a checkpoint's own Python files into an error that says what to do."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"model: {folder} cannot be loaded: {' '.join(str(error).split())}") from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ConfigError(
            f"model.path: {folder} needs Python code of its own (auto_map in its JSON files), which is not run; "
            "use a checkpoint in a format that transformers itself reads (its hub id often ends in -hf)",
            "  where you have read that code and trust it: model.trust_remote_code=true model.revision=<its commit>",
        ) from None


def _conversion(folder: Path) -> str:
    """The command that adds *.safetensors to a folder of pickled weights; it reads tensors alone and runs nothing."""
    code = (
        "from transformers import AutoModelForImageTextToText as A; "
        f"A.from_pretrained({str(folder)!r}, dtype='auto').save_pretrained({str(folder)!r})"
    )
    return f"python -c {shlex.quote(code)}"


def _fetch(hub_id: str, revision: str | None, code: bool, weights: bool = True) -> Path:
    """The folder that holds `hub_id` at `revision`, with its Python files only where `code` is asked for."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.jinja", "*.txt", "*.model"]
    wanted += (["*.safetensors"] if weights else []) + (["*.py"] if code else [])
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model.path: {hub_id!r} is neither a folder here nor a checkpoint that the hub gives: {reason}"
        ) from None
