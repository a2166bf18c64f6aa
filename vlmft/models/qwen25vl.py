"""Qwen2.5-VL: a window-attention vision tower, a 2x2 patch merger as projector, a Qwen2 LLM; time reaches positions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.models.qwen_vl import QwenVL
from vlmft.models.spec import Media, Pixels
from vlmft.models.tiny import TinyCheckpoint
from vlmft.types import Clip

if TYPE_CHECKING:
    from torch import Tensor


class Qwen25VL(QwenVL):
    """A checkpoint of transformers' `Qwen2_5_VLForConditionalGeneration`."""

    coordinate_style: ClassVar = "seen_pixels"
    unserved_because: ClassVar[str | None] = None

    def encode_video(self, processor: Any, frames: Pixels, clip: Clip, budget: PixelBudget) -> Media:
        """See `QwenVL`. `seconds_per_grid` [1], float32, is the time between two slices of T frames."""
        import torch

        times = clip.timestamps
        per_frame = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
        seconds = per_frame * processor.video_processor.temporal_patch_size
        return super().encode_video(processor, frames, clip, budget) | {"seconds_per_grid": torch.tensor([seconds])}

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `QwenVL`. `second_per_grid_ts` [videos]: the model's positions follow the clock."""
        import torch

        inputs = super().collate(processor, input_ids, media)
        seconds = [item["seconds_per_grid"] for item in media if "seconds_per_grid" in item]
        return inputs | ({"second_per_grid_ts": torch.cat(seconds)} if seconds else {})


class TinyQwen25VL(TinyCheckpoint, Qwen25VL):
    """A Qwen2.5-VL of the real classes with random weights, small enough to learn on a CPU."""
