"""GLM-4.xV: pictures of whatever size, as Qwen-VL's; a video's slices stand in the text as pictures, with their times.

T = temporal patch size (2). The processors bound the area of all frames together, and a picture is T equal ones.
"""

import sys
from collections.abc import Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.models.pixels import keep_frame_rule
from vlmft.models.qwen_vl import QwenVL, block_side, bounds, fixed_size, narrow_explained, num_blocks
from vlmft.models.spec import Media, MediaKind, MediumText
from vlmft.models.tiny import TinyCheckpoint
from vlmft.types import Clip

if TYPE_CHECKING:
    from torch import Tensor


class Glm4v(QwenVL):
    """A checkpoint of transformers' `Glm4vForConditionalGeneration` or `Glm46VForConditionalGeneration`.

    A budget bounds each frame, as in the other families. The video processor, which is saved with the model, can keep
    that for one number of frames alone: the most that the run's rule takes.
    """

    component_paths: ClassVar = QwenVL.component_paths | {
        "projector": ("model.visual.downsample", "model.visual.merger")
    }
    coordinate_style: ClassVar = "thousand"

    def mended(self, model: Any) -> Any:
        """See `ModelSpec`; the model then takes pictures and videos in one batch."""
        model.model.get_placeholder_mask = MethodType(_placeholders_of_one_kind, model.model)
        return model

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; an area is kept times the frames that share it."""
        from transformers.image_utils import SizeDict

        images, videos, rule = processor.image_processor, processor.video_processor, self.video
        most = max(rule.num_frames or rule.max_frames or videos.num_frames, videos.temporal_patch_size)
        kinds: tuple[tuple[MediaKind, Any, PixelBudget, int], ...] = (
            ("image", images, self.image, images.temporal_patch_size),
            ("video", videos, rule, most),
        )
        for kind, part, budget, frames in kinds:
            if budget.size is not None:
                height, width = _fixed(part, kind, budget)
                low = high = height * width * frames
            else:
                low, high = _areas(part, kind, budget, frames)
            part.size = SizeDict(shortest_edge=low, longest_edge=high)
        fps = videos.fps
        keep_frame_rule(videos, rule)
        videos.fps = rule.fps or fps  # it samples by a rate alone

    def feature_tokens(self, processor: Any) -> frozenset[int]:
        """See `ModelSpec`: the same for pictures and frames."""
        return frozenset((processor.image_token_id,))

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `QwenVL`."""
        part = processor.image_processor
        return _resized_size(part, "image", size, budget, part.temporal_patch_size)

    def seen_frame(self, processor: Any, clip: Clip, budget: PixelBudget) -> tuple[int, int]:
        """See `QwenVL`."""
        part = processor.video_processor
        frames = max(clip.num_frames, part.temporal_patch_size)
        return _resized_size(part, "video", (clip.height, clip.width), budget, frames)

    def video_text(self, processor: Any, clip: Clip, budget: PixelBudget) -> MediumText:
        """See `ModelSpec`: each slice of T frames as a picture, and the time of its first frame."""
        videos = processor.video_processor
        times = clip.timestamps[:: videos.temporal_patch_size]
        text = "".join(processor.replace_frame_token_id(seconds, num_image_tokens=1) for seconds in times)
        return MediumText(text, (num_blocks(videos, self.seen_frame(processor, clip, budget)),) * len(times))

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `QwenVL`; a video's tokens are told by the marks around it."""
        feature = input_ids == processor.image_token_id
        inside = _inside(input_ids, processor.video_start_id, processor.video_end_id)
        types = feature.int() + (feature & inside).int()
        return super().collate(processor, input_ids, media) | {"mm_token_type_ids": types}


def _fixed(part: Any, kind: MediaKind, budget: PixelBudget) -> tuple[int, int]:
    return fixed_size(part, kind, budget, budget.min_pixels or 1, budget.max_pixels or sys.maxsize)


def _areas(part: Any, kind: MediaKind, budget: PixelBudget, frames: int) -> tuple[int, int]:
    """Least and largest area of `frames` together. Raises `ConfigError` where they cross for the fewest, T."""
    bounds(part, kind, budget, sharing=part.temporal_patch_size)
    high = budget.max_pixels * frames if budget.max_pixels else part.size["longest_edge"]
    low = budget.min_pixels * frames if budget.min_pixels else part.size["shortest_edge"]
    return min(low, high), high


def _resized_size(
    part: Any, kind: MediaKind, size: tuple[int, int], budget: PixelBudget, frames: int
) -> tuple[int, int]:
    """The size of each frame, in whole blocks."""
    from transformers.models.glm4v.image_processing_glm4v import smart_resize

    if budget.size is not None:
        return _fixed(part, kind, budget)
    low, high = _areas(part, kind, budget, frames)
    with narrow_explained(kind, size):
        height, width = smart_resize(
            num_frames=frames,
            height=size[0],
            width=size[1],
            temporal_factor=part.temporal_patch_size,
            factor=block_side(part),
            min_pixels=low,
            max_pixels=high,
        )
    return height, width


def _inside(input_ids: "Tensor", start: int, end: int) -> "Tensor":
    """Which tokens [B, S] stand between the marks `start` and `end`."""
    inside: Tensor = (input_ids == start).cumsum(-1) > (input_ids == end).cumsum(-1)
    return inside


def _placeholders_of_one_kind(
    self: Any,
    input_ids: "Tensor | None",
    inputs_embeds: "Tensor",
    video_features: "Tensor | None" = None,
    **kwargs: Any,
) -> Any:
    """transformers' `get_placeholder_mask`, which takes a picture's tokens and a frame's for the same: they are equal.

    So it is shown either the pictures' tokens or the frames', as it is asked for.
    """
    original, config = type(self).get_placeholder_mask, self.config
    if input_ids is not None:
        inside = _inside(input_ids, config.video_start_token_id, config.video_end_token_id)
        other = inside if video_features is None else ~inside
        input_ids = input_ids.masked_fill(other & (input_ids == config.image_token_id), -1)
    return original(self, input_ids, inputs_embeds, video_features=video_features, **kwargs)


class TinyGlm4v(TinyCheckpoint, Glm4v):
    """A GLM-4.1V of the real classes with random weights, small enough to learn on a CPU."""
