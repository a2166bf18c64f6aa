"""The choices of a preference trainer; `preference_loss` holds the formulas and names their papers."""

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from vlmft.config.grammar import expand
from vlmft.errors import ConfigError
from vlmft.training.specs import TrainerSpec
from vlmft.types import Preference, Target

DIFFERENCES = frozenset({"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"})
"""Losses of the difference between the two answers' scores, in which the divergence's unknown constant cancels."""
SORTING = frozenset({"aot", "aot_unpaired"})
"""Losses that compare sorted pairs of the whole step."""
OF_EACH_ANSWER = frozenset({"nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"})
"""Losses in which an answer's log-ratio to the reference stands alone."""
WITHOUT_REFERENCE = frozenset({"sft", "cpo", "simpo", "orpo"})
"""Losses that ask no reference for anything."""
LOSSES = DIFFERENCES | SORTING | OF_EACH_ANSWER | WITHOUT_REFERENCE
SMOOTHED = SORTING | {"exo_pair", "robust"}
"""Losses that read `label_smoothing`."""

MIXES = {"mpo": "sigmoid@0.8+bco_pair@0.2+sft"}
"""Mixes with a name: InternVL's weights (MPO, arXiv 2411.10442), without BCO's running shift, as in TRL."""


class Dpo(TrainerSpec):
    """Preference pairs: the chosen answer becomes likelier than the rejected one, measured against a reference."""

    learns: ClassVar[type[Target] | None] = Preference
    packs: ClassVar[bool] = True

    loss: str = Field(description="a loss, or a mix of weighted ones: sigmoid@0.8+bco_pair@0.2+sft")
    beta: float = Field(gt=0, description="how closely the model is kept to the reference; of ipo its tau")
    label_smoothing: float = Field(
        ge=0, lt=1, description="probability that a pair is the wrong way round; of robust, exo_pair and aot"
    )
    reference: Literal["precomputed", "adapters_off", "copy", "none"] = Field(
        description="how the log-probabilities of the model of the start are had"
    )
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = Field(
        description="what keeps the model to the reference"
    )
    f_alpha: float = Field(description="the coefficient of f_divergence=alpha")
    ld_alpha: float | None = Field(
        ge=0, le=1, description="weight of an answer's tokens beyond the shorter answer's length; null: 1"
    )
    wpo: bool = Field(description="weigh each pair by how likely the model itself would write its answers")
    discopop_tau: float = Field(gt=0, description="how sharply discopop goes over from one loss to the other")
    simpo_gamma: float = Field(ge=0, description="the margin that simpo asks for")

    @property
    def losses(self) -> dict[str, float]:
        """Each loss of the mix with its weight."""
        return expand(self.loss, LOSSES, MIXES, kind="loss")

    @property
    def needs_reference(self) -> bool:
        """Whether any loss of the mix asks for a reference."""
        return not self.losses.keys() <= WITHOUT_REFERENCE

    @field_validator("loss")
    @classmethod
    def _known(cls, loss: str) -> str:
        if "kto" in (term.partition("@")[0].strip() for term in loss.split("+")):
            raise ValueError(
                "kto learns from single answers, good or bad: take trainer=kto; for pairs, apo_zero is close to it"
            )
        try:
            expand(loss, LOSSES, MIXES, kind="loss")
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from None
        return loss

    @model_validator(mode="after")
    def _smoothing_that_is_read(self) -> Self:
        epsilon, losses = self.label_smoothing, self.losses
        if epsilon and not losses.keys() & SMOOTHED:
            raise ValueError(
                f"label_smoothing={epsilon} is read by none of loss={self.loss}; set it to 0, or use robust"
            )
        if "exo_pair" in losses and not epsilon:
            raise ValueError("loss=exo_pair needs label_smoothing above 0; its paper takes 0.001")
        if "robust" in losses and epsilon >= 0.5:
            raise ValueError(f"loss=robust needs label_smoothing below 0.5, where a pair says nothing; found {epsilon}")
        return self

    @model_validator(mode="after")
    def _divergence_that_cancels(self) -> Self:
        alone = sorted(self.losses.keys() - DIFFERENCES - {"sft"})
        if self.f_divergence != "reverse_kl" and alone:
            raise ValueError(
                f"f_divergence={self.f_divergence} has a constant that only cancels in the difference of two answers, "
                f"and {', '.join(alone)} takes no such difference; use reverse_kl, or {', '.join(sorted(DIFFERENCES))}"
            )
        return self

    @model_validator(mode="after")
    def _weights_of_pairs(self) -> Self:
        if self.wpo and (unpaired := sorted(self.losses.keys() & (SORTING | {"sft"}))):
            raise ValueError(
                f"wpo=true weighs pairs, and {', '.join(unpaired)} keeps none: aot sorts each answer by itself, sft is "
                "a mean over tokens; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _reference_where_it_is_needed(self) -> Self:
        if self.reference != "none":
            if not self.needs_reference:
                raise ValueError(f"loss={self.loss} asks no reference for anything; set reference=none")
            return self
        if alone := sorted(self.losses.keys() & OF_EACH_ANSWER):
            raise ValueError(
                f"reference=none: {', '.join(alone)} compares each answer by itself with the reference; use "
                "precomputed, adapters_off or copy"
            )
        if self.f_divergence != "reverse_kl":
            raise ValueError(
                f"reference=none: there is nothing that f_divergence={self.f_divergence} could diverge from"
            )
        return self
