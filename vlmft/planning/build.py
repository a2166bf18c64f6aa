"""The model of a run as it trains, hollow: its real classes from its config, with the run's recipe."""

from typing import TYPE_CHECKING, Any

from vlmft.models.packing import use_packed_attention
from vlmft.models.tower import use_fast_tower
from vlmft.planning.hollow import CPU, Hollow, empty_model
from vlmft.planning.quantised import copy_inputs, quantise
from vlmft.recipes.apply import apply_recipe
from vlmft.recipes.dtypes import compute_in, torch_dtype

if TYPE_CHECKING:
    from vlmft.train import TrainConfig


def hollow_model(config: "TrainConfig", hollow: Hollow) -> Any:
    """The model of `config` with its recipe and precision, as `load_to_train` makes it, without a weight."""
    family, recipe, dtype = config.model, config.recipe, torch_dtype(config.precision)
    model = family.mended(family.skeleton())
    if family.attention == "eager":
        model.set_attn_implementation("eager")
    use_fast_tower(model)
    if config.batching.packs:
        use_packed_attention(model)
    quantise(model, recipe, family)
    model = apply_recipe(model, recipe, family, dtype)
    compute_in(model, dtype, CPU)
    copy_inputs(model)
    empty_model(model, hollow)
    return model
