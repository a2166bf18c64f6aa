"""Qwen2.5-VL: a window-attention vision tower, a 2x2 patch merger as projector, a Qwen2 LLM with 3-D positions.

P = patches of a picture, M = merge size (2), T = temporal patch size (2), C = channels, s = patch size in pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.cache import cache_dir, make_once
from vlmft.errors import ConfigError, DataError
from vlmft.models.spec import Media, ModelSpec

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor


class Qwen25VL(ModelSpec):
    """A checkpoint of transformers' `Qwen2_5_VLForConditionalGeneration`."""

    component_paths: ClassVar = {
        "vision_tower": ("model.visual",),
        "projector": ("model.visual.merger",),
        "llm": ("model.language_model", "lm_head"),
    }
    block_paths: ClassVar = {"vision_tower": "model.visual.blocks", "llm": "model.language_model.layers"}

    def set_pixel_budget(self, processor: Any) -> None:
        """See `ModelSpec`; the two bounds are areas in pixels, kept by Qwen's processor under `size`."""
        from transformers.image_utils import SizeDict

        size = processor.image_processor.size
        low, high = self.min_pixels or size["shortest_edge"], self.max_pixels or size["longest_edge"]
        if low > high:
            raise ConfigError(
                f"model: min_pixels={low} is more than max_pixels={high} (null takes the checkpoint's own, "
                f"{size['shortest_edge']} and {size['longest_edge']}); change one of the two"
            )
        processor.image_processor.size = SizeDict(shortest_edge=low, longest_edge=high)

    def image_token_id(self, processor: Any) -> int:
        """See `ModelSpec`."""
        return int(processor.image_token_id)

    def num_image_tokens(self, processor: Any, height: int, width: int) -> int:
        """See `ModelSpec`: one token for each M x M block of patches."""
        images = processor.image_processor
        try:
            return int(images.get_number_of_image_patches(height, width, {})) // images.merge_size**2
        except ValueError as error:  # one side more than 200 times the other
            raise DataError(f"a picture of {width} x {height} pixels cannot be resized: {error}; crop it") from None

    def encode_image(self, processor: Any, image: "PIL.Image.Image") -> Media:
        """See `ModelSpec`. `patches` is uint8 [P, C, s*s] in the tower's order, `grid` [3] is t=1, h, w in patches."""
        import torch

        images = processor.image_processor
        pixels = images.process_image(image, do_convert_rgb=True)
        pixels = images.resize(
            pixels.unsqueeze(0), images.size, images.resample, factor=images.patch_size * images.merge_size
        )
        # One temporal slice crosses the process border; `model_inputs` repeats it T times.
        patches, grid_h, grid_w = images.patchify(pixels, images.patch_size, images.merge_size, temporal_patch_size=1)
        return {
            "patches": patches[0].reshape(grid_h * grid_w, pixels.shape[1], -1),
            "grid": torch.tensor([1, grid_h, grid_w]),
        }

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `mm_token_type_ids` [B, S] marks picture tokens with 1; 3-D positions derive from it."""
        import torch

        inputs = {"mm_token_type_ids": (input_ids == processor.image_token_id).int()}
        if media:
            inputs["patches"] = torch.cat([item["patches"] for item in media])
            inputs["image_grid_thw"] = torch.stack([item["grid"] for item in media])
        return inputs

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `pixel_values` is float32 [P, C*T*s*s], bit for bit what Qwen's own processor computes."""
        import torch

        if "patches" not in inputs:
            return inputs
        inputs = dict(inputs)
        patches = inputs.pop("patches")
        images = processor.image_processor
        scale = 1 / images.rescale_factor
        mean = torch.tensor(images.image_mean, device=patches.device).mul_(scale)[:, None]
        std = torch.tensor(images.image_std, device=patches.device).mul_(scale)[:, None]
        pixels = patches.to(torch.float32).sub_(mean).div_(std)
        repeated = pixels.unsqueeze(2).expand(-1, -1, images.temporal_patch_size, -1)
        inputs["pixel_values"] = repeated.reshape(len(patches), -1)
        return inputs


class TinyQwen25VL(Qwen25VL):
    """A Qwen2.5-VL of the real classes with random weights, small enough to learn on a CPU; made once, then kept."""

    def folder(self) -> Path:
        """The tiny checkpoint's folder in the cache, made on first use; `path` names another one."""
        from vlmft.models.tiny import FACTORY_VERSION

        if self.path is not None:
            return super().folder()
        return make_once(cache_dir() / "models" / f"tiny_qwen25vl-{FACTORY_VERSION}", build_tiny)


def build_tiny(folder: Path) -> None:
    """Write a tiny checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    import torch
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    from vlmft.models.tiny import CHATML_TEMPLATE, INITIALIZER_RANGE, QWEN_SPECIAL_TOKENS, train_qwen_tokenizer

    tokenizer = train_qwen_tokenizer(QWEN_SPECIAL_TOKENS)
    token = tokenizer.convert_tokens_to_ids
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}),
        chat_template=CHATML_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "num_heads": 4,
            "intermediate_size": 128,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "initializer_range": INITIALIZER_RANGE,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "initializer_range": INITIALIZER_RANGE,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.update(
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")], pad_token_id=token("<|endoftext|>")
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
