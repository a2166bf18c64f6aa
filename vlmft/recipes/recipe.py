"""A recipe: one policy for each component."""

import re
from collections.abc import Iterable
from typing import Self

from pydantic import Field, model_validator

from vlmft.config.spec import Spec
from vlmft.errors import ConfigError
from vlmft.recipes.policies import Base, Frozen, Lora, Policy, own_rate


class Rate(Spec):
    """A learning rate for the weights whose names match; it replaces their component's."""

    match: str = Field(min_length=1, description="a regular expression, searched in names as in the unwrapped model")
    lr_factor: float | None = Field(default=None, gt=0, description="the rate, as a factor of optim.lr")
    lr: float | None = Field(default=None, gt=0, description="or the rate itself")

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.lr is None) == (self.lr_factor is None):
            raise ValueError(f"match={self.match!r}: needs lr_factor or lr, and only one of them")
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match={self.match!r} is no regular expression: {error}") from None
        return self

    def rate(self, peak: float) -> float:
        """The peak learning rate where the run's is `peak`."""
        return own_rate(self.lr, self.lr_factor, peak)


class Recipe(Spec):
    """What trains in each component of the model."""

    vision_tower: Policy
    projector: Policy
    llm: Policy
    extras: dict[str, Policy] = Field(description="policies of further components that a family names")
    rates: tuple[Rate, ...] = Field(description="rates of their own for weights that a regular expression names")
    lr: float = Field(gt=0, description="the peak learning rate that suits this recipe; optim.lr starts from it")

    def policies(self, components: Iterable[str]) -> dict[str, Policy]:
        """The policy of each of a family's `components`.

        Raises:
            ConfigError: the family has a component without a policy, or the recipe one that the family lacks.
        """
        known = self._named
        components = tuple(components)
        problems = [
            f"recipe.extras.{name}: needed: this model has a component {name}"
            for name in components
            if name not in known
        ]
        problems += [
            f"recipe.extras.{name}: this model has no such component; it has {', '.join(components)}"
            for name in self.extras
            if name not in components
        ]
        ConfigError.raise_if(problems)
        return {name: known[name] for name in components}

    @property
    def adapters(self) -> dict[str, Lora]:
        """The components that get adapters."""
        return {name: policy for name, policy in self._named.items() if isinstance(policy, Lora)}

    @property
    def bases(self) -> dict[str, Base]:
        """What a component's base is kept in, where that is said; the others' is in the run's precision."""
        kept = {name: p.base for name, p in self._named.items() if isinstance(p, Frozen | Lora)}
        return {name: base for name, base in kept.items() if base is not None}

    @property
    def quantised(self) -> dict[str, Base]:
        """The bases that bitsandbytes keeps."""
        return {name: base for name, base in self.bases.items() if base != "bf16"}

    @property
    def _named(self) -> dict[str, Policy]:
        return {"vision_tower": self.vision_tower, "projector": self.projector, "llm": self.llm} | self.extras

    @model_validator(mode="after")
    def _adapters_agree(self) -> Self:
        # PEFT knows rank and alpha by layer, but these only for an adapter as a whole.
        for field in ("dropout", "rslora", "dora", "bias"):
            values = {name: getattr(policy, field) for name, policy in self.adapters.items()}
            if len(set(values.values())) > 1:
                raise ValueError(f"{field} must be the same in every component with adapters; found {values}")
        if len(set(self.quantised.values())) > 1:
            raise ValueError(
                f"base: nf4 and int8 cannot stand in one model, since its loader quantises in one way alone; found "
                f"{self.quantised}: take one of them for both, or null or bf16 for one"
            )
        return self
