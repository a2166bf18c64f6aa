"""SmolVLM: SigLIP's tower over square tiles, pixel shuffle as projector, a small Llama; videos as dated frames."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vlmft.config.media import PixelBudget
from vlmft.models.idefics import Idefics
from vlmft.models.pixels import keep_frame_rule, refuse_budget, video_pixels
from vlmft.models.spec import Media, MediumText, Pixels
from vlmft.models.tiles import FramesAsTiles
from vlmft.models.tiny import TinyCheckpoint
from vlmft.types import Clip

if TYPE_CHECKING:
    pass


class SmolVLM(Idefics, FramesAsTiles):
    """A checkpoint of transformers' `SmolVLMForConditionalGeneration`."""

    def mended(self, model: Any) -> Any:
        """See `ModelSpec`; text's embeddings come in the dtype that the model's forward gives pictures' features.

        That is its first weight's, the tower's (modeling_smolvlm.py, line 580), of which the LLM's may differ where one
        of the two trains; other families take the embeddings' own.
        """
        inner = model.model
        inner.get_input_embeddings().register_forward_hook(lambda module, args, found: found.to(inner.dtype))
        return model

    def set_budgets(self, processor: Any) -> None:
        """See `Idefics`; a frame is one tile."""
        super().set_budgets(processor)
        self.seen_frame(processor, Clip(1, 1, (0.0,)), self.video)
        own = processor.video_processor.fps, processor.video_processor.num_frames
        keep_frame_rule(processor.video_processor, self.video)
        # Its sampling wants both: a rate, and the most frames that may come of it.
        processor.video_processor.fps = self.video.fps or own[0]
        processor.video_processor.num_frames = self.video.num_frames or self.video.max_frames or own[1]

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

    def _whole(self, processor: Any) -> str:
        return str(processor.global_image_token)


class TinySmolVLM(TinyCheckpoint, SmolVLM):
    """A SmolVLM of the real classes with random weights, small enough to learn on a CPU."""
