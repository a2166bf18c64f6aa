"""Load a checkpoint's model as a run trains it."""

from typing import TYPE_CHECKING, Any

from vlmft.models.kernels import use_kernels
from vlmft.models.packing import use_packed_attention
from vlmft.models.tower import use_fast_tower
from vlmft.recipes.apply import apply_recipe
from vlmft.recipes.base import load_base
from vlmft.recipes.dtypes import compute_in, torch_dtype
from vlmft.recipes.saved import load_earlier

if TYPE_CHECKING:
    import torch

    from vlmft.models.spec import ModelSpec, Precision
    from vlmft.recipes.recipe import Recipe


def load_to_train(
    family: "ModelSpec", recipe: "Recipe", precision: "Precision", device: "torch.device", packs: bool
) -> tuple[Any, str | None]:
    """The model with its kernels, its recipe, and what an earlier run trained (`model.adapter`), on `device`.

    Args:
        packs: it is to take packs.

    Returns:
        The model, and why Liger's kernels are not in use (`use_kernels`).

    Raises:
        ConfigError: as `load_base`, `use_kernels`, `use_packed_attention`, `apply_recipe` and `load_earlier`.
    """
    dtype = torch_dtype(precision)
    model = load_base(family, recipe, dtype, device)
    plain_because = use_kernels(model, family.kernels)
    use_fast_tower(model)
    if packs:
        use_packed_attention(model)
    model = apply_recipe(model, recipe, family, dtype)
    if family.adapter is not None:
        load_earlier(family.adapter, model, family, recipe)
    compute_in(model, dtype, device)
    return model, plain_because
