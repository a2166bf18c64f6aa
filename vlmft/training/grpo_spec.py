"""What is chosen of `trainer=grpo`."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlmft.training.rollouts_spec import RolloutsSpec, VllmRollouts
from vlmft.training.specs import TrainerSpec
from vlmft.types import Solution, Target

Loss = Literal["grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]
_CLIPS = ("grpo", "bnpo", "dapo", "dr_grpo", "luspo")
"""The losses that clip the ratio on both sides, as PPO does."""


class Grpo(TrainerSpec):
    """Group relative policy optimisation: a prompt is answered several times, and what earns more is made likelier."""

    learns: ClassVar[type[Target] | None] = Solution

    rollouts: RolloutsSpec
    num_generations: int = Field(ge=2, description="completions of each prompt; their rewards are compared")
    max_new_tokens: int = Field(ge=1, description="longest completion")
    temperature: float = Field(gt=0, allow_inf_nan=False, description="of sampling, and of the log-probs in the loss")
    top_p: float = Field(gt=0, le=1, description="sample from the likeliest tokens with this much probability together")
    top_k: int | None = Field(ge=1, description="sample from so many of the likeliest tokens; null: from all")
    min_p: float | None = Field(
        ge=0, le=1, description="sample from tokens at least this share as likely as the likeliest; null: from all"
    )
    repetition_penalty: float = Field(
        gt=0, allow_inf_nan=False, description="divides the logits of tokens that the text has already; 1: none"
    )
    rollout_batch_size: int = Field(ge=1, description="completions that a rank generates at once")
    steps_per_generation: int = Field(ge=1, description="steps whose completions are made together, at their first")
    loss: Loss = Field(description="how the completions' tokens are weighed")
    importance_sampling: Literal["token", "sequence"] = Field(
        description="whether the ratio of new to old probability is each token's, or the completion's geometric mean"
    )
    epsilon_low: float = Field(gt=0, lt=1, description="a ratio counts at least as 1 - epsilon_low")
    epsilon_high: float = Field(
        gt=0, allow_inf_nan=False, description="a ratio counts at most as 1 + epsilon_high; in cispo as epsilon_high"
    )
    delta: float | None = Field(
        gt=1, allow_inf_nan=False, description="largest ratio where the advantage is negative; null: none"
    )
    sapo_temperatures: tuple[float, float] = Field(
        description="of sapo's gate, for advantages above 0 and for the others"
    )
    vespo_k: tuple[float, float] = Field(
        description="powers of vespo's weight, for advantages from 0 on and for those below"
    )
    vespo_lambda: tuple[float, float] = Field(description="decays of vespo's weight, likewise")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        description="whose standard deviation an advantage is divided by"
    )
    mask_truncated: bool = Field(description="completions cut at max_new_tokens take no part in the loss")
    beta: float = Field(
        ge=0, allow_inf_nan=False, description="weight of the KL divergence from the model at the start"
    )
    weighed_kl: bool = Field(description="the KL divergence is weighed by the ratio, so that its gradient is unbiased")
    top_entropy: float = Field(
        ge=0, le=1, description="share of the step's tokens that are learned from: those of the highest entropy"
    )
    entropy_bonus: float = Field(
        ge=0, allow_inf_nan=False, description="weight of the mean entropy of the tokens that are learned from"
    )
    off_policy_threshold: float | None = Field(
        gt=0,
        allow_inf_nan=False,
        description="nats a token by which the model may find a completion of negative advantage less likely than "
        "whoever made it, before it is left out",
    )
    save_completions: int | None = Field(
        ge=1, description="steps between two files of completions; null: none are kept"
    )

    @property
    def room(self) -> int:
        """See `TrainerSpec.room`."""
        return self.max_new_tokens

    @property
    def corrects(self) -> bool:
        """Whether what a server draws is weighed by how likely the trainer finds it."""
        return isinstance(self.rollouts, VllmRollouts) and self.rollouts.correction != "none"

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems = [*self._ratio_problems(), *self._shape_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _ratio_problems(self) -> list[str]:
        problems = []
        if self.loss == "cispo" and self.epsilon_high <= 1:
            problems.append(
                f"epsilon_high={self.epsilon_high:g} is the largest ratio itself in loss=cispo, and should be above 1, "
                "such as 5.0"
            )
        if self.delta is not None and self.loss not in _CLIPS:
            problems.append(f"delta={self.delta:g} has no part in loss={self.loss}; set it to null")
        elif self.delta is not None and self.delta <= 1 + self.epsilon_high:
            problems.append(
                f"delta={self.delta:g} should be above 1 + epsilon_high={1 + self.epsilon_high:g}, where clips begin"
            )
        needed = {"luspo": "sequence", "vespo": "token"}.get(self.loss, self.importance_sampling)
        if self.importance_sampling != needed:
            problems.append(f"loss={self.loss} needs importance_sampling={needed}; found {self.importance_sampling}")
        problems += self._policy_problems()
        made = self.rollouts
        if self.loss == "vespo" and isinstance(made, VllmRollouts) and made.correction.startswith("sequence"):
            problems.append(
                f"loss=vespo weighs the whole completion itself: rollouts.correction={made.correction} should be "
                "token_truncate, token_mask or none"
            )
        return problems

    def _policy_problems(self) -> list[str]:
        problems = []
        limits = {"top_p": 1.0, "top_k": None, "min_p": None, "repetition_penalty": 1.0}
        narrows = [
            f"{name}={getattr(self, name):g}" for name, none in limits.items() if (getattr(self, name) or none) != none
        ]
        if self.corrects and narrows:
            problems.append(
                f"{', '.join(narrows)}: the server's log-probabilities are then of the tokens that are left, not of "
                "all, and rollouts.correction would weigh completions down for that alone; set it to none, or draw "
                "from all tokens"
            )
        is_own = not isinstance(self.rollouts, VllmRollouts)
        if self.off_policy_threshold is not None and is_own and self.steps_per_generation == 1:
            problems.append(
                f"off_policy_threshold={self.off_policy_threshold:g} leaves nothing out: with steps_per_generation=1 "
                "the model that learns has made every completion; set it to null, or raise steps_per_generation"
            )
        if self.weighed_kl and self.beta == 0:
            problems.append("weighed_kl=true has no part where beta=0; set it to false, or beta above 0")
        return problems

    def _shape_problems(self) -> list[str]:
        shapes = {
            "sapo_temperatures": self.sapo_temperatures,
            "vespo_k": self.vespo_k,
            "vespo_lambda": self.vespo_lambda,
        }
        return [
            f"{name}={list(values)} should be two numbers above 0"
            for name, values in shapes.items()
            if min(values) <= 0
        ]
