"""What trainers that measure against the model of the start have in common."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmft.train import TrainConfig


def kept_on(config: "TrainConfig") -> list[str]:
    """Why the model without its adapters is not the one of the start."""
    adapters = config.recipe.adapters
    if not adapters:
        return ["the recipe has no adapters"]
    reasons = [
        f"recipe.{name}.bias=true trains biases in place, which stay when adapters are off"
        for name, policy in adapters.items()
        if policy.bias
    ]
    if config.model.adapter is not None:
        reasons.append("with model.adapter the start is not the base, which is what is left without adapters")
    return reasons
