"""What a classification head is made of. Light: the module itself is `classifier.Head`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vlmft.config.spec import Spec

Pooling = Literal["last", "mean", "max"]


class HeadSpec(Spec, abstract=True):
    """What reads a class from a sample's hidden state; it trains in full under every recipe."""

    pooling: Pooling = Field(
        description="what the head sees of a sample's hidden states: that of its last token, or the mean or the "
        "largest value over all of its tokens; padding never counts"
    )
    dropout: float = Field(ge=0, lt=1, description="share of the values before each linear layer set to 0 in training")
    lr_factor: float | None = Field(gt=0, description="the head's learning rate, as a factor of optim.lr")
    lr: float | None = Field(gt=0, description="or the rate itself; lr_factor is null then")

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.lr is None) == (self.lr_factor is None):
            found = "neither lr nor lr_factor is given" if self.lr is None else "lr and lr_factor are two rates for it"
            raise ValueError(f"{found}; set one of them, and the other to null")
        return self

    def rate(self, peak: float) -> float:
        """The head's peak learning rate where the run's is `peak`."""
        if self.lr is not None:
            return self.lr
        assert self.lr_factor is not None
        return peak * self.lr_factor

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the hidden layers, in order; none where the head is linear."""
        raise NotImplementedError


class LinearHead(HeadSpec):
    """One linear layer."""

    @property
    def widths(self) -> tuple[int, ...]:
        """See `HeadSpec`."""
        return ()


class MlpHead(HeadSpec):
    """One hidden layer with GELU between two linear ones."""

    hidden: int = Field(ge=1, description="width of the hidden layer")

    @property
    def widths(self) -> tuple[int, ...]:
        """See `HeadSpec`."""
        return (self.hidden,)
