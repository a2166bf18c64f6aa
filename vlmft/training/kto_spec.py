"""The choices of trainer=kto; `kto_loss` holds the formulas and names their papers."""

from typing import ClassVar, Literal

from pydantic import Field

from vlmft.training.specs import TrainerSpec
from vlmft.types import Rated, Target


class Kto(TrainerSpec):
    """Single answers: good ones become likelier and bad ones less likely, measured against a reference."""

    learns: ClassVar[type[Target] | None] = Rated

    loss: Literal["kto", "apo_zero_unpaired"] = Field(description="what is minimised")
    beta: float = Field(gt=0, description="how closely the model is kept to the reference")
    desirable_weight: float = Field(gt=0, description="what the loss of a good answer counts")
    undesirable_weight: float = Field(gt=0, description="what the loss of a bad answer counts")
    reference: Literal["copy", "adapters_off"] = Field(
        description="how the log-probabilities of the model of the start are had"
    )

    @property
    def needs_kl(self) -> bool:
        """Whether the loss compares with the KL divergence, which answers of other samples estimate."""
        return self.loss == "kto"
