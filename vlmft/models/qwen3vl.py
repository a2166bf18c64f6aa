"""Qwen3-VL, dense and mixture of experts: a tower whose middle layers reach the LLM too, and times written in the text.

T = temporal patch size (2). The projector is the merger at the tower's end and those of its middle layers (deepstack).
"""

from typing import Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.models.qwen_vl import QwenVL, narrow_explained
from vlmft.models.spec import MediumText
from vlmft.models.tiny import TinyCheckpoint
from vlmft.types import Clip


class Qwen3VL(QwenVL):
    """A checkpoint of transformers' `Qwen3VLForConditionalGeneration` or `Qwen3VLMoeForConditionalGeneration`."""

    component_paths: ClassVar = {
        "vision_tower": ("model.visual",),
        "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
        "llm": ("model.language_model", "lm_head"),
    }
    coordinate_style: ClassVar = "thousand"
    unserved_because: ClassVar[str | None] = None

    def set_budgets(self, processor: Any) -> None:
        """See `QwenVL`. The video processor's `size` bounds all frames together: a bound for each is kept beside it."""
        videos, whole = processor.video_processor, processor.video_processor.size
        super().set_budgets(processor)
        if self.video.size is None:
            videos.size = whole
        if self.video.max_pixels is not None:
            videos.cap_pixels_per_frame = True
            videos.max_video_tokens = self.video.max_pixels // (videos.patch_size * videos.merge_size) ** 2

    def seen_frame(self, processor: Any, clip: Clip, budget: PixelBudget) -> tuple[int, int]:
        """See `ModelSpec`. The checkpoint's own bounds are areas of all frames together, the budget's of each frame."""
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

        if budget.size is not None:
            return super().seen_frame(processor, clip, budget)
        videos = processor.video_processor
        frames = max(clip.num_frames, videos.temporal_patch_size)
        low, high = videos.size["shortest_edge"], videos.size["longest_edge"]
        if budget.max_pixels is not None:
            # As transformers' own cap for each frame, so that the saved processor sees what training saw.
            high = max(min(budget.max_pixels, high // frames), int(low * 1.05)) * frames
        if budget.min_pixels is not None:
            low = min(budget.min_pixels * frames, high)
        with narrow_explained("video", (clip.height, clip.width)):
            height, width = smart_resize(
                num_frames=frames,
                height=clip.height,
                width=clip.width,
                temporal_factor=videos.temporal_patch_size,
                factor=videos.patch_size * videos.merge_size,
                min_pixels=low,
                max_pixels=high,
            )
        return height, width

    def video_text(self, processor: Any, clip: Clip, budget: PixelBudget) -> MediumText:
        """See `ModelSpec`: each slice of T frames by itself, after its time in seconds."""
        whole = super().video_text(processor, clip, budget)
        slices = slice_times(clip, processor.video_processor.temporal_patch_size)
        start, end, token = processor.vision_start_token, processor.vision_end_token, processor.video_token
        text = "".join(f"<{seconds:.1f} seconds>{start}{token}{end}" for seconds in slices)
        return MediumText(text, (whole.num_features // len(slices),) * len(slices))


def slice_times(clip: Clip, num_frames: int) -> list[float]:
    """The middle of each slice of `num_frames` frames, in seconds; the last frame is repeated to fill."""
    times = [*clip.timestamps, *[clip.timestamps[-1]] * (-clip.num_frames % num_frames)]
    return [(times[i] + times[i + num_frames - 1]) / 2 for i in range(0, len(times), num_frames)]


class TinyQwen3VL(TinyCheckpoint, Qwen3VL):
    """A Qwen3-VL of the real classes with random weights, small enough to learn on a CPU."""
