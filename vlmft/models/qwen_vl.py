"""What the Qwen-VL families share: patches of whatever size a picture has, merged M x M, and 3-D positions.

P = patches of a picture or video, M = merge size (2), T = temporal patch size (2), C = channels, s = patch size in
pixels. A picture is one slice of T equal frames; a video's frames are taken T at a time, the last one repeated to fill.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.errors import ConfigError, DataError
from vlmft.models.spec import Media, MediaKind, MediumText, ModelSpec, Pixels
from vlmft.models.tower import tower_inputs
from vlmft.types import Clip

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_SIZES = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")  # of pictures and videos, for their positions


class QwenVL(ModelSpec, abstract=True):
    """A checkpoint of one of the Qwen-VL classes."""

    component_paths: ClassVar = {
        "vision_tower": ("model.visual",),
        "projector": ("model.visual.merger",),
        "llm": ("model.language_model", "lm_head"),
    }
    block_paths: ClassVar = {"vision_tower": "model.visual.blocks", "llm": "model.language_model.layers"}
    unpacked_because: ClassVar[str | None] = None

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; Qwen's processors keep the two bounds, areas in pixels, under `size`.

        A fixed size is kept as its area alone: the processors know no other form.
        """
        from transformers.image_utils import SizeDict

        for kind, part, budget in (
            ("image", processor.image_processor, self.image),
            ("video", processor.video_processor, self.video),
        ):
            low, high = bounds(part, kind, budget)
            if budget.size is not None:
                height, width = fixed_size(part, kind, budget, low, high)
                low = high = height * width
            part.size = SizeDict(shortest_edge=low, longest_edge=high)
        rule, videos = self.video, processor.video_processor
        videos.do_sample_frames = True
        videos.num_frames, videos.fps = rule.num_frames, rule.fps
        videos.min_frames = rule.min_frames or videos.min_frames
        videos.max_frames = rule.max_frames or videos.max_frames

    def placeholders(self, processor: Any) -> dict[MediaKind, str]:
        """See `ModelSpec`."""
        return {"image": processor.image_token, "video": processor.video_token}

    def feature_tokens(self, processor: Any) -> frozenset[int]:
        """See `ModelSpec`."""
        return frozenset((processor.image_token_id, processor.video_token_id))

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `ModelSpec`: whole blocks of M x M patches."""
        return self._seen(processor.image_processor, "image", size, budget)

    def seen_frame(self, processor: Any, clip: Clip, budget: PixelBudget) -> tuple[int, int]:
        """See `ModelSpec`: whole blocks of M x M patches."""
        return self._seen(processor.video_processor, "video", (clip.height, clip.width), budget)

    def _seen(self, part: Any, kind: MediaKind, size: tuple[int, int], budget: PixelBudget) -> tuple[int, int]:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        low, high = bounds(part, kind, budget)
        if budget.size is not None:
            return fixed_size(part, kind, budget, low, high)
        with narrow_explained(kind, size):
            height, width = smart_resize(*size, factor=block_side(part), min_pixels=low, max_pixels=high)
        return height, width

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: one token for each M x M block of patches."""
        blocks = num_blocks(processor.image_processor, self.seen_image(processor, size, budget))
        return MediumText(processor.image_token, (blocks,))

    def video_text(self, processor: Any, clip: Clip, budget: PixelBudget) -> MediumText:
        """See `ModelSpec`: one token for each M x M block of patches of each T frames."""
        videos = processor.video_processor
        blocks = num_blocks(videos, self.seen_frame(processor, clip, budget))
        return MediumText(processor.video_token, (-(-clip.num_frames // videos.temporal_patch_size) * blocks,))

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`. `patches` is uint8 [P, C, s*s] in the tower's order, `grid` [3] is t=1, h, w in patches."""
        import torch

        images = processor.image_processor
        size = self.seen_image(processor, picture.shape[:2], budget)
        # A view of interleaved pixels: torch's uint8 resizing wants them so, and would interleave [C, H, W] again.
        pixels = _resized(images, torch.from_numpy(picture).permute(2, 0, 1)[None], size)
        # One temporal slice crosses the process border; `model_inputs` repeats it T times.
        patches = _patches(pixels[0].permute(1, 2, 0).contiguous().numpy(), images.patch_size, images.merge_size)
        grid = [1, size[0] // images.patch_size, size[1] // images.patch_size]
        return {"patches": torch.from_numpy(patches), "grid": torch.tensor(grid)}

    def encode_video(self, processor: Any, frames: Pixels, clip: Clip, budget: PixelBudget) -> Media:
        """See `ModelSpec`. `video_patches` is uint8 [P, C, T*s*s], `video_grid` [3] is t, h, w, in patches."""
        import torch

        videos = processor.video_processor
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        size = self.seen_frame(processor, clip, budget)
        pixels = _resized(videos, pixels, size).unsqueeze(0)
        patches, *grid = videos.patchify(pixels, videos.patch_size, videos.merge_size, videos.temporal_patch_size)
        return {
            "video_patches": patches[0].reshape(len(patches[0]), pixels.shape[2], -1),
            "video_grid": torch.tensor(grid),
        }

    def shown(self, processor: Any, media: Media) -> Pixels:
        """See `ModelSpec`: `patchify`, backwards. A video's last frame comes again where it fills a slice."""
        if "patches" in media:
            part, patches, grid = processor.image_processor, media["patches"], media["grid"]
        else:
            part, patches, grid = processor.video_processor, media["video_patches"], media["video_grid"]
        (t, h, w), size, merge = grid.tolist(), part.patch_size, part.merge_size
        frames = patches.shape[2] // size**2  # of a slice
        pixels = patches.reshape(t, h // merge, w // merge, merge, merge, -1, frames, size, size)
        pixels = pixels.permute(0, 6, 1, 3, 7, 2, 4, 8, 5)
        found: Pixels = pixels.reshape(t * frames, h * size, w * size, -1).numpy()
        return found

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `mm_token_type_ids` [B, S] marks pictures' tokens with 1 and videos' with 2."""
        import torch

        types = (input_ids == processor.image_token_id).int() + 2 * (input_ids == processor.video_token_id).int()
        inputs = {"mm_token_type_ids": types}
        images = [item for item in media if "patches" in item]
        videos = [item for item in media if "video_patches" in item]
        if images:
            inputs["patches"] = torch.cat([item["patches"] for item in images])
            inputs["image_grid_thw"] = torch.stack([item["grid"] for item in images])
        if videos:
            inputs["video_patches"] = torch.cat([item["video_patches"] for item in videos])
            inputs["video_grid_thw"] = torch.stack([item["video_grid"] for item in videos])
        return inputs

    def packed_positions(self, model: Any, inputs: dict[str, "Tensor"], lengths: Sequence[int]) -> "Tensor":
        """See `ModelSpec`; [4, 1, S]: a row that counts tokens, then the model's own of time, height and width."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        def unpacked(packed: "Tensor") -> "Tensor":
            return pad_sequence(list(packed[0].split(list(lengths))), batch_first=True)

        owner = next(module for module in model.modules() if hasattr(module, "get_rope_index"))
        filled = unpacked(torch.ones(1, sum(lengths), dtype=torch.int64))
        tokens = {name: unpacked(inputs[name]) for name in ("input_ids", "mm_token_type_ids")}
        sizes = {name: inputs[name] for name in _SIZES if name in inputs}
        rows, _ = owner.get_rope_index(**tokens, **sizes, attention_mask=filled)  # [3, samples, longest]
        return torch.cat([super().packed_positions(model, inputs, lengths)[None], rows[:, filled.bool()][:, None]])

    def tower_inputs(
        self, model: Any, inputs: dict[str, "Tensor"], device: "torch.device", times: int
    ) -> dict[str, Any]:
        """See `ModelSpec`."""
        kinds = {kind: f"{kind}_grid_thw" for kind in ("image", "video")}
        grids = {kind: inputs[name] for kind, name in kinds.items() if name in inputs}
        grids = {kind: sizes[: len(sizes) // times] for kind, sizes in grids.items()}
        return tower_inputs(model, grids, device) if grids else {}

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. Pixels are float32 [P, C*T*s*s], bit for bit what Qwen's own processors compute."""
        inputs = dict(inputs)
        if "patches" in inputs:
            images = processor.image_processor
            pixels = _normalised(images, inputs.pop("patches"))
            repeated = pixels.unsqueeze(2).expand(-1, -1, images.temporal_patch_size, -1)
            inputs["pixel_values"] = repeated.reshape(len(pixels), -1)
        if "video_patches" in inputs:
            pixels = _normalised(processor.video_processor, inputs.pop("video_patches"))
            inputs["pixel_values_videos"] = pixels.reshape(len(pixels), -1)
        return inputs


def bounds(part: Any, kind: str, budget: PixelBudget, sharing: int = 1) -> tuple[int, int]:
    """Least and largest area in pixels, of which either may be the checkpoint's own (`part`'s).

    Args:
        sharing: frames of which the checkpoint's own bounds are the sum.

    Raises:
        ConfigError: the two cross.
    """
    own = part.size["shortest_edge"] // sharing, part.size["longest_edge"] // sharing
    low, high = budget.min_pixels or own[0], budget.max_pixels or own[1]
    if low > high:
        raise ConfigError(
            f"model.{kind}: min_pixels={low} is more than max_pixels={high} (null takes the checkpoint's own, "
            f"{own[0]} and {own[1]}); change one of the two"
        )
    return low, high


def fixed_size(part: Any, kind: str, budget: PixelBudget, low: int, high: int) -> tuple[int, int]:
    """The budget's fixed size in whole blocks. Raises `ConfigError` where its area is outside of the bounds."""
    assert budget.size is not None
    block = block_side(part)
    height, width = (max(1, round(side / block)) * block for side in budget.size)
    if not low <= height * width <= high:
        raise ConfigError(
            f"model.{kind}: height={budget.height} width={budget.width} is {height} x {width} in whole blocks of "
            f"{block} pixels, an area of {height * width}, outside of min_pixels={low} and max_pixels={high}; change "
            "the size, or the bounds"
        )
    return height, width


@contextmanager
def narrow_explained(kind: MediaKind, size: tuple[int, int]) -> Iterator[None]:
    """Turn what Qwen's resizing says of one side more than 200 times the other into a `DataError`."""
    try:
        yield
    except ValueError as error:
        noun = "picture" if kind == "image" else "video"
        raise DataError(f"a {noun} of {size[1]} x {size[0]} pixels cannot be resized: {error}; crop it") from None


def block_side(part: Any) -> int:
    """A block's side, in pixels."""
    return int(part.patch_size * part.merge_size)


def num_blocks(part: Any, size: tuple[int, int]) -> int:
    """Blocks of a picture or frame that the tower sees at `size`."""
    return (size[0] // block_side(part)) * (size[1] // block_side(part))


def _resized(part: Any, pixels: "Tensor", size: tuple[int, int]) -> "Tensor":
    """Pictures [N, C, H, W] at `size`, uint8, by the same call that the official processors make."""
    from transformers.image_processing_backends import TorchvisionBackend
    from transformers.image_utils import SizeDict

    return TorchvisionBackend.resize(part, pixels, SizeDict(height=size[0], width=size[1]), part.resample)


def _patches(pixels: Pixels, s: int, m: int) -> Pixels:
    """Cut [H, W, C] into [P, C, s*s], in the order of Qwen's `patchify`: blocks of m x m patches, row by row.

    One band of blocks at a time, so that its channels are split and its patches cut while it is in the cache; a patch's
    row moves as one item of s bytes. 12 megapixels take 21 ms, `patchify` of [C, H, W] 88 ms.
    """
    import numpy as np

    height, width, channels = pixels.shape
    blocks_high, blocks_wide = height // (m * s), width // (m * s)
    row = f"V{s}"
    patches = np.empty((blocks_high, blocks_wide, m, m, channels, s), row)
    band = np.empty((channels, m * s, width), np.uint8)
    cut = band.view(row).reshape(channels, m, s, blocks_wide, m).transpose(3, 1, 4, 0, 2)
    for number in range(blocks_high):
        band[...] = pixels[number * m * s : (number + 1) * m * s].transpose(2, 0, 1)
        patches[number] = cut
    return patches.view(np.uint8).reshape(blocks_high * blocks_wide * m * m, channels, s * s)


def _normalised(part: Any, patches: "Tensor") -> "Tensor":
    """uint8 patches [P, C, ...] as float32, with the processor's mean and deviation."""
    import torch

    scale = 1 / part.rescale_factor
    mean = torch.tensor(part.image_mean, device=patches.device).mul_(scale)[:, None]
    std = torch.tensor(part.image_std, device=patches.device).mul_(scale)[:, None]
    return patches.to(torch.float32).sub_(mean).div_(std)
