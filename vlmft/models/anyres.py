"""What LLaVA-NeXT and LLaVA-OneVision share: a picture once as a whole, and once in tiles of the best-fitting grid."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.models.pictures import Pictures
from vlmft.models.pixels import image_pixels, normalised, refuse_budget
from vlmft.models.spec import Media, MediumText, Pixels

if TYPE_CHECKING:
    from torch import Tensor


class AnyRes(Pictures, abstract=True):
    """A checkpoint of one of these classes. Its config holds the grids, so a run cannot choose others."""

    component_paths: ClassVar = Pictures.component_paths | {
        "projector": ("model.multi_modal_projector", "model.image_newline")
    }
    bare_parameters: ClassVar = frozenset(("model.image_newline",))
    coordinate_style: ClassVar = "unit"
    unpacked_because: ClassVar = None

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; a picture's grid follows from its shape alone."""
        self.seen_image(processor, (1, 1), self.image)

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `ModelSpec`: the grid's size."""
        from transformers.image_processing_utils import select_best_resolution

        refuse_budget("image", budget, tile_of(processor.image_processor))
        height, width = select_best_resolution(list(size), processor.image_processor.image_grid_pinpoints)
        return height, width

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: the whole's tokens, then the tiles' without what only pads them, a mark after each row."""
        self.seen_image(processor, size, budget, alone)
        features = processor._get_number_of_features(*size, *tile_of(processor.image_processor))
        dropped = processor.vision_feature_select_strategy == "default"
        return MediumText(processor.image_token, (features - dropped,))

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`. `pixels` is uint8 [tiles, C, H, W], the whole first; `size` [2] is the original's."""
        import torch

        found = image_pixels(processor, picture)
        return {"pixels": found["pixel_values"][0], "size": torch.as_tensor(found["image_sizes"])[0]}

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `tiles` [pictures] says how many each has."""
        import torch

        images = [item for item in media if "pixels" in item]
        if not images:
            return {}
        return {
            "pixels": torch.cat([item["pixels"] for item in images]),
            "tiles": torch.tensor([len(item["pixels"]) for item in images]),
            "image_sizes": torch.stack([item["size"] for item in images]),
        }

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `pixel_values` is float32 [pictures, most tiles, C, H, W], filled up with zeros."""
        from torch.nn.utils.rnn import pad_sequence

        inputs = dict(inputs)
        if "pixels" in inputs:
            tiles = inputs.pop("tiles").tolist()
            pixels = normalised(processor.image_processor, inputs.pop("pixels"))
            inputs["pixel_values"] = pad_sequence(list(pixels.split(tiles)), batch_first=True)
        return inputs


def tile_of(part: Any) -> tuple[int, int]:
    """A tile's (height, width)."""
    size = part.crop_size if getattr(part, "do_center_crop", False) and part.crop_size else part.size
    return (size["height"], size["width"]) if size.get("height") else (size["shortest_edge"],) * 2
