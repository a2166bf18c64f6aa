"""What trains, and how: a policy for each component, applied to a model, saved and loaded again."""

from vlmft.recipes.policies import Frozen, Full, Lora, Norms, Policy, TopK
from vlmft.recipes.recipe import Recipe

__all__ = ["Frozen", "Full", "Lora", "Norms", "Policy", "Recipe", "TopK"]
