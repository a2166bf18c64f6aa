"""LLaVA-OneVision: SigLIP's tower, tiles for a picture that stands alone, pooled frames for a video, a Qwen2 LLM."""

import math
import re
from collections.abc import Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

from vlmft.config.media import PixelBudget
from vlmft.models.anyres import AnyRes, tile_of
from vlmft.models.pixels import as_pictures, keep_frame_rule, normalised, refuse_budget, video_pixels
from vlmft.models.spec import Media, MediaKind, MediumText, Pixels
from vlmft.models.tiny import TinyCheckpoint
from vlmft.types import Clip

if TYPE_CHECKING:
    from torch import Tensor


_HEADER = re.compile(r"(message(?:\.role|\['role'\])) \+ ' '")


class LlavaOnevision(AnyRes):
    """A checkpoint of transformers' `LlavaOnevisionForConditionalGeneration`.

    A picture is cut into tiles where it is its sample's only one; several are seen whole, as the family was trained.
    """

    def load_processor(self) -> Any:
        """See `ModelSpec`; its chat template begins an answer that is given as it begins one that is asked for.

        The published one writes a space behind every role, but none in the prompt: what is trained would not be what
        the model is asked by.
        """
        processor = super().load_processor()
        processor.chat_template = _HEADER.sub(r"\1 + ('' if \1 == 'assistant' else ' ')", processor.chat_template or "")
        return processor

    def mended(self, model: Any) -> Any:
        """See `ModelSpec`; the model then takes videos of different lengths in one batch."""
        model.model.get_video_features = MethodType(_features_of_videos, model.model)
        return model

    def set_budgets(self, processor: Any) -> None:
        """See `AnyRes`."""
        super().set_budgets(processor)
        self.seen_frame(processor, Clip(1, 1, (0.0,)), self.video)
        keep_frame_rule(processor.video_processor, self.video)

    def placeholders(self, processor: Any) -> dict[MediaKind, str]:
        """See `ModelSpec`."""
        return super().placeholders(processor) | {"video": processor.video_token}

    def feature_tokens(self, processor: Any) -> frozenset[int]:
        """See `ModelSpec`."""
        return super().feature_tokens(processor) | {processor.video_token_id}

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `AnyRes`; one tile where there are several pictures."""
        seen = super().seen_image(processor, size, budget, alone)
        return seen if alone else tile_of(processor.image_processor)

    def seen_frame(self, processor: Any, clip: Clip, budget: PixelBudget) -> tuple[int, int]:
        """See `ModelSpec`: one tile."""
        refuse_budget("video", budget, tile_of(processor.video_processor))
        return tile_of(processor.video_processor)

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `AnyRes`; one of several is a tile and a mark."""
        found = super().image_text(processor, size, budget, alone)
        return found if alone else MediumText(found.text, (processor.num_image_tokens + 1,))

    def video_text(self, processor: Any, clip: Clip, budget: PixelBudget) -> MediumText:
        """See `ModelSpec`: a quarter of a tile's tokens for each frame, and a mark at the end."""
        side = math.ceil(math.isqrt(processor.num_image_tokens) / 2)
        return MediumText(processor.video_token, (clip.num_frames * side * side + 1,))

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `AnyRes`. `alone` [1] says whether it was cut into tiles."""
        import PIL.Image
        import torch

        if alone:
            return super().encode_image(processor, picture, budget) | {"alone": torch.tensor([True])}
        part, image = processor.image_processor, PIL.Image.fromarray(picture)
        # A list of two tells it that the picture is one of several.
        found = part(images=[[image, image]], do_rescale=False, do_normalize=False, return_tensors="pt")
        size = torch.as_tensor(found["image_sizes"])[0]
        return {"pixels": found["pixel_values"][0], "size": size, "alone": torch.tensor([False])}

    def encode_video(self, processor: Any, frames: Pixels, clip: Clip, budget: PixelBudget) -> Media:
        """See `ModelSpec`. `frames` is uint8 [frames, C, H, W]."""
        return {"frames": video_pixels(processor, frames)["pixel_values_videos"][0]}

    def shown(self, processor: Any, media: Media) -> Pixels:
        """See `ModelSpec`."""
        return as_pictures(media["frames"]) if "frames" in media else super().shown(processor, media)

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `AnyRes`. `lengths` [videos] are their frames; for `batch_num_images` see `_neighbours`."""
        import torch

        inputs = super().collate(processor, input_ids, media)
        if images := [bool(item["alone"]) for item in media if "pixels" in item]:
            inputs["batch_num_images"] = torch.tensor(_neighbours(images))
        if videos := [item["frames"] for item in media if "frames" in item]:
            inputs |= {"frames": torch.cat(videos), "lengths": torch.tensor([len(frames) for frames in videos])}
        return inputs

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `AnyRes`. `pixel_values_videos` is float32 [videos, most frames, C, H, W], filled up with NaN."""
        from torch.nn.utils.rnn import pad_sequence

        inputs = super().model_inputs(processor, inputs)
        if "frames" in inputs:
            lengths = inputs.pop("lengths").tolist()
            frames = normalised(processor.video_processor, inputs.pop("frames")).split(lengths)
            inputs["pixel_values_videos"] = pad_sequence(list(frames), batch_first=True, padding_value=math.nan)
        return inputs


def _neighbours(alone: Sequence[bool]) -> list[int]:
    """How the model is told which pictures stand alone: by the number of pictures of each sample, 1 or more.

    To it, neighbours that do not stand alone may as well be of one sample. A run of them is never as short as 1, as a
    sample with such pictures has two at least.
    """
    counts: list[int] = []
    before = True
    for is_alone in alone:
        if is_alone or before:
            counts.append(1)
        else:
            counts[-1] += 1
        before = is_alone
    return counts


def _features_of_videos(self: Any, pixel_values_videos: "Tensor", *args: Any, **kwargs: Any) -> Any:
    """transformers' `get_video_features`, for videos that are filled up with NaN to the longest one's frames."""
    import torch

    original = type(self).get_video_features
    lengths = (~pixel_values_videos[:, :, 0, 0, 0].isnan()).sum(dim=1).tolist()
    if len(set(lengths)) == 1:
        return original(self, pixel_values_videos, *args, **kwargs)
    found = [
        original(self, video[None, :length], *args, **kwargs)
        for video, length in zip(pixel_values_videos, lengths, strict=True)
    ]
    found[0].pooler_output = torch.cat([features.pooler_output for features in found], dim=1)
    return found[0]


class TinyLlavaOnevision(TinyCheckpoint, LlavaOnevision):
    """A LLaVA-OneVision of the real classes with random weights, small enough to learn on a CPU."""
