"""Molmo 2: a picture as a whole and in overlapping crops, a video in frames; patches pooled by attention; a Qwen3 LLM.

P = patches of a crop or frame, s = patch size in pixels, C = channels. A token pools K patches, 2 x 2 of a picture and
3 x 3 of a frame, named by their numbers among all patches of the batch; -1 stands for none.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.errors import ConfigError
from vlmft.models.pictures import Pictures
from vlmft.models.pixels import image_pixels, normalised, refuse_budget, video_pixels
from vlmft.models.spec import Media, MediaKind, MediumText, Pixels
from vlmft.models.tiny import TinyCheckpoint
from vlmft.types import Clip

if TYPE_CHECKING:
    from torch import Tensor

_FEATURE = "<im_patch>"


class Molmo2(Pictures):
    """A checkpoint of transformers' `Molmo2ForConditionalGeneration`.

    A budget for pictures bounds the number of crops: as many as its area has, in squares of the tower's size.
    """

    block_paths: ClassVar = {"vision_tower": "model.vision_tower.layers", "llm": "model.language_model.layers"}
    coordinate_style: ClassVar = "thousand"
    masks: ClassVar = "that the tokens of pictures and frames see each other"
    unpacked_because: ClassVar = "its pictures' tokens see each other by masks that know of one sample a row"

    def load_processor(self) -> Any:
        """See `ModelSpec`; the chat template is completed where it does not say all that the model is given."""
        processor = super().load_processor()
        processor.chat_template = _completed(processor)
        return processor

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; the image processor keeps the number of crops."""
        processor.image_processor.max_crops = self._most_crops(processor, self.image)
        videos, rule = processor.video_processor, self.video
        refuse_budget("video", rule, _size(videos))
        # Its own sampler takes `num_frames` at most, and `max_fps` a second at most.
        videos.do_sample_frames = True
        videos.fps, videos.max_fps = None, rule.fps
        videos.num_frames = rule.num_frames or rule.max_frames or videos.num_frames

    def placeholders(self, processor: Any) -> dict[MediaKind, str]:
        """See `ModelSpec`."""
        return {"image": processor.image_token, "video": processor.video_token}

    def feature_tokens(self, processor: Any) -> frozenset[int]:
        """See `ModelSpec`; the marks around a picture's rows are none."""
        return frozenset((processor.tokenizer.convert_tokens_to_ids(_FEATURE),))

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `ModelSpec`: what the crops cover."""
        from transformers.models.molmo2.image_processing_molmo2 import compute_crop_geometry

        images = processor.image_processor
        _, _, height, width = compute_crop_geometry(
            *size,
            max_crops=self._most_crops(processor, budget),
            overlap_margins=images.overlap_margins,
            crop_size=_size(images)[0],
            patch_size=images.patch_size,
        )
        return height, width

    def seen_frame(self, processor: Any, clip: Clip, budget: PixelBudget) -> tuple[int, int]:
        """See `ModelSpec`: the tower's size."""
        seen = _size(processor.video_processor)
        refuse_budget("video", budget, seen)
        return seen

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: the whole, then what the crops cover, row by row, each between marks."""
        crops = {"max_crops": self._most_crops(processor, budget)}
        grid, _ = processor.image_processor.get_image_grid_and_crops(*size, crops)
        return _in_runs(processor.replace_image_token({"image_grids": [grid]}, 0))

    def video_text(self, processor: Any, clip: Clip, budget: PixelBudget) -> MediumText:
        """See `ModelSpec`: each frame by itself, behind its time in seconds."""
        import torch

        self.seen_frame(processor, clip, budget)
        videos = processor.video_processor
        sides = [side // videos.patch_size for side in _size(videos)]
        rows, columns = (-(-side // pool) for side, pool in zip(sides, videos.pooling_size, strict=True))
        return _in_runs(processor.get_video_string(torch.tensor((clip.num_frames, rows, columns)), clip.timestamps))

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`. `patches` is uint8 [crops, P, s*s*C], the whole first, `pooling` [tokens, K].

        `grid` [4] says how many tokens are in a column and a row of the whole, and of what the crops cover.
        """
        found = image_pixels(processor, picture, max_crops=self._most_crops(processor, budget))
        return {
            "patches": found["pixel_values"],
            "pooling": found["image_token_pooling"],
            "grid": found["image_grids"][0],
        }

    def encode_video(self, processor: Any, frames: Pixels, clip: Clip, budget: PixelBudget) -> Media:
        """See `ModelSpec`. `frames` is uint8 [T, P, s*s*C], `pooling` [tokens, K], `grid` [3] is T, rows, columns."""
        found = video_pixels(processor, frames)
        return {
            "frames": found["pixel_values_videos"],
            "pooling": found["video_token_pooling"],
            "grid": found["video_grids"][0],
        }

    def shown(self, processor: Any, media: Media) -> Pixels:
        """See `ModelSpec`: the whole and its crops, or the frames."""
        pixels = _crops(media)
        part = processor.video_processor if "frames" in media else processor.image_processor
        side, patch = _size(part)[0], part.patch_size
        count = side // patch
        pixels = pixels.view(len(pixels), count, count, patch, patch, -1).transpose(2, 3)
        found: Pixels = pixels.reshape(len(pixels), side, side, -1).numpy()
        return found

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `mm_token_type_ids` [B, S] marks all that stands for pictures and videos with 1.

        The model takes pictures or videos, not both. Where both are there, videos are handed over as pictures of which
        only the whole is seen, all their frames' rows below each other: the same tokens, by the model's own account.
        """
        import torch
        from torch.nn.functional import pad

        marks = torch.tensor(processor.image_token_ids)
        inputs = {"mm_token_type_ids": torch.isin(input_ids, marks).long()}
        if not media:
            return inputs
        pixels = [_crops(item) for item in media]
        widest = max(item["pooling"].shape[1] for item in media)
        poolings, patches_before = [], 0
        for item, crops in zip(media, pixels, strict=True):
            pooling = item["pooling"]
            shifted = torch.where(pooling >= 0, pooling + patches_before, pooling)
            poolings.append(pad(shifted, (0, widest - pooling.shape[1]), value=-1))
            patches_before += crops.shape[0] * crops.shape[1]
        inputs |= {"pixels": torch.cat(pixels), "pooling": torch.cat(poolings)}
        if all("frames" in item for item in media):
            return inputs | {"video_grids": torch.stack([item["grid"] for item in media])}
        crops_each = torch.tensor([len(crops) for crops in pixels])
        is_video = torch.tensor(["frames" in item for item in media])
        return inputs | {
            "image_grids": torch.stack([_as_picture(item) for item in media]),
            "image_num_crops": crops_each,
            "is_frame": is_video.repeat_interleave(crops_each),
        }

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. Pixels are float32 [crops or frames, P, s*s*C], each as its own processor scales."""
        import torch

        inputs = dict(inputs)
        if "pixels" not in inputs:
            return inputs
        pixels, pooling = inputs.pop("pixels"), inputs.pop("pooling")
        if "video_grids" in inputs:
            scaled = _scaled(processor.video_processor, pixels)
            return inputs | {"pixel_values_videos": scaled, "video_token_pooling": pooling}
        images, is_frame = _scaled(processor.image_processor, pixels), inputs.pop("is_frame")[:, None, None]
        if is_frame.any():
            images = torch.where(is_frame, _scaled(processor.video_processor, pixels), images)
        return inputs | {"pixel_values": images, "image_token_pooling": pooling}

    def _most_crops(self, processor: Any, budget: PixelBudget) -> int:
        height, width = _size(processor.image_processor)
        if budget.size is not None or budget.min_pixels is not None:
            raise ConfigError(
                f"model.image: this checkpoint sees pictures in crops of {height} x {width} pixels, as many as "
                "max_pixels allows and their shape asks for; leave min_pixels, height and width null"
            )
        if budget.max_pixels is None:
            return int(processor.image_processor.max_crops)
        crops = budget.max_pixels // (height * width)
        if not crops:
            raise ConfigError(
                f"model.image: max_pixels={budget.max_pixels} is less than one crop of {height} x {width} pixels; "
                "raise it"
            )
        return crops


def _completed(processor: Any) -> str:
    """The chat template with what the official one leaves to others, or says otherwise of an answer that is given.

    It writes no first token, which the processor adds; it does not end the last answer; and it writes a space before
    the header of an answer that is given, but none where the model is to answer. The prompt of a single question stays
    the official one, token by token.
    """
    # The processor's own choice; most of these checkpoints have no other than the one that ends a turn.
    first, end = processor.tokenizer.bos_token or processor.tokenizer.eos_token, processor.tokenizer.eos_token
    template = re.sub(r"%\}[ \t]+\{#-? assistant", "%}{# assistant", processor.chat_template)
    turns = [{"role": role, "content": [{"type": "text", "text": role}]} for role in ("user", "assistant")]
    written = processor.apply_chat_template(turns, chat_template=template, tokenize=False)
    if not written.startswith(first):
        template = f"{{{{- '{first}' }}}}{template}"
    if not written.rstrip().endswith(end):
        template += "{% if messages[-1]['role'] == 'assistant' and not add_generation_prompt %}"
        template += f"{{{{- '{end}' }}}}{{% endif %}}"
    return template


def _size(part: Any) -> tuple[int, int]:
    return part.size["height"], part.size["width"]


def _in_runs(text: str) -> MediumText:
    """A medium's text with each run of feature tokens as one."""
    runs = re.findall(rf"(?:{_FEATURE})+", text)
    written = re.sub(rf"(?:{_FEATURE})+", _FEATURE, text)
    return MediumText(written, tuple(len(run) // len(_FEATURE) for run in runs))


def _crops(media: Media) -> "Tensor":
    return media["frames" if "frames" in media else "patches"]


def _as_picture(media: Media) -> "Tensor":
    """The grid [4] of a picture; of a video, as the model's own `get_video_features` makes it."""
    import torch

    if "patches" in media:
        return media["grid"]
    frames, rows, columns = media["grid"]
    return torch.stack([frames * rows, columns, 0 * columns, 0 * columns])


def _scaled(part: Any, pixels: "Tensor") -> "Tensor":
    """uint8 patches [N, P, s*s*C] as `part` hands them to the model, float32."""
    channels = len(part.image_mean)
    by_channel = pixels.view(*pixels.shape[:2], -1, channels).movedim(-1, 1)  # [N, C, P, s*s]
    return normalised(part, by_channel).movedim(1, -1).reshape(pixels.shape)


class TinyMolmo2(TinyCheckpoint, Molmo2):
    """A Molmo 2 of the real classes with random weights, small enough to learn on a CPU."""
