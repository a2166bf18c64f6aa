"""SmolVLM: SigLIP's tower over square tiles, pixel shuffle as projector, a small Llama; videos as dated frames."""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vlmft.config.media import PixelBudget
from vlmft.models.idefics import Idefics
from vlmft.models.pixels import as_pictures, keep_frame_rule, normalised, refuse_budget, video_pixels
from vlmft.models.spec import Media, MediaKind, MediumText, Pixels
from vlmft.models.tiny import TinyCheckpoint
from vlmft.types import Clip

if TYPE_CHECKING:
    from torch import Tensor


class SmolVLM(Idefics):
    """A checkpoint of transformers' `SmolVLMForConditionalGeneration`."""

    def set_budgets(self, processor: Any) -> None:
        """See `Idefics`; a frame is one tile."""
        super().set_budgets(processor)
        self.seen_frame(processor, Clip(1, 1, (0.0,)), self.video)
        own = processor.video_processor.fps, processor.video_processor.num_frames
        keep_frame_rule(processor.video_processor, self.video)
        # Its sampling wants both: a rate, and the most frames that may come of it.
        processor.video_processor.fps = self.video.fps or own[0]
        processor.video_processor.num_frames = self.video.num_frames or self.video.max_frames or own[1]

    def placeholders(self, processor: Any) -> dict[MediaKind, str]:
        """See `ModelSpec`."""
        return super().placeholders(processor) | {"video": processor.video_token}

    def seen_frame(self, processor: Any, clip: Clip, budget: PixelBudget) -> tuple[int, int]:
        """See `ModelSpec`: one tile."""
        tile = processor.video_processor.max_image_size["longest_edge"]
        refuse_budget("video", budget, (tile, tile))
        return tile, tile

    def video_text(self, processor: Any, clip: Clip, budget: PixelBudget) -> MediumText:
        """See `ModelSpec`: how many frames of how long a video, then each after its minute and second."""
        from num2words import num2words  # type: ignore[import-untyped]
        from transformers.models.smolvlm.video_processing_smolvlm import (
            DEFAULT_MEDIA_OUTTRO,
            DEFAULT_VIDEO_INTRO,
            FRAME_TIMESTAMP_MESSAGE,
        )

        mark = self._mark(processor)
        frame = f"{mark}{self._whole(processor)}{processor.image_token}{mark}"
        length = timedelta(seconds=int(clip.duration_s))
        text = DEFAULT_VIDEO_INTRO.format(frame_count=num2words(clip.num_frames), video_duration=str(length))
        for seconds in map(int, clip.timestamps):
            text += FRAME_TIMESTAMP_MESSAGE.format(timestamp=f"{seconds // 60:02d}:{seconds % 60:02d}") + frame
        return MediumText(text + DEFAULT_MEDIA_OUTTRO, (processor.image_seq_len,) * clip.num_frames)

    def encode_video(self, processor: Any, frames: Pixels, clip: Clip, budget: PixelBudget) -> Media:
        """See `ModelSpec`. `frames` is uint8 [frames, C, H, W]."""
        return {"frames": video_pixels(processor, frames, do_pad=False)["pixel_values"][0]}

    def shown(self, processor: Any, media: Media) -> Pixels:
        """See `ModelSpec`."""
        return as_pictures(media["frames"]) if "frames" in media else super().shown(processor, media)

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `Idefics`; tiles and frames in reading order. `is_frame` [N] tells one from the other."""
        import torch

        if not media:
            return {}
        pixels = [item["frames" if "frames" in item else "pixels"] for item in media]
        is_frame = [torch.full((len(found),), "frames" in item) for item, found in zip(media, pixels, strict=True)]
        return {"pixels": torch.cat(pixels), "is_frame": torch.cat(is_frame)}

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `Idefics`."""
        import torch

        inputs = dict(inputs)
        if "pixels" in inputs:
            is_frame = inputs.pop("is_frame")[:, None, None, None]
            videos = normalised(processor.video_processor, inputs["pixels"])
            inputs = super().model_inputs(processor, inputs)
            inputs["pixel_values"] = torch.where(is_frame, videos, inputs["pixel_values"])
        return inputs

    def _whole(self, processor: Any) -> str:
        return str(processor.global_image_token)


class TinySmolVLM(TinyCheckpoint, SmolVLM):
    """A SmolVLM of the real classes with random weights, small enough to learn on a CPU."""
