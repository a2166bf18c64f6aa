"""What an optimiser step minimises: the seam between a trainer's own arithmetic and the step that all of them share.

A step is a number of samples, cut into micro-batches that fit into memory. Its loss must not depend on the cut: each
micro-batch gives a *share*, divided by totals of the whole step over all ranks, and shares add up.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from vlmft.encoding.loading import EncodedGroup
    from vlmft.models.spec import Media


class Unit(Protocol):
    """What a step is cut into: a sample, a pair, a completion. `Encoded` is one."""

    @property
    def id(self) -> str:
        """The sample's."""
        ...

    @property
    def media(self) -> "Sequence[Media]":
        """What decides which units may share a micro-batch (`ModelSpec.batch_kind`)."""
        ...

    @property
    def num_tokens(self) -> int:
        """Its tokens, without padding."""
        ...

    @property
    def num_places(self) -> int:
        """Token places that it takes in a micro-batch of its own."""
        ...

    @property
    def num_supervised(self) -> int:
        """Tokens that the loss asks for."""
        ...

    @property
    def num_vision_tokens(self) -> int:
        """Tokens of pictures and videos."""
        ...


U = TypeVar("U", bound=Unit)

Figure = tuple["float | Tensor", float]
"""A sum and the number of things that it is a sum of: their quotient is what is logged."""


@dataclass(slots=True)
class Share:
    """What one micro-batch adds to a step."""

    loss: "Tensor"
    """Scalar with a gradient; over the micro-batches of all ranks, these add up to the step's loss."""
    slots: int
    """Token places that went through the model, padding included."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """Beside the loss, by the name under which metrics.jsonl has them."""


class Objective(ABC, Generic[U]):
    """What a trainer minimises. One object lives as long as the run; every rank has one."""

    nothing: ClassVar[str] = "has nothing to learn from"
    """What is said of a step whose first weight is 0."""

    reports: ClassVar[bool] = True
    """Whether shares have figures; on several ranks they are gathered for each line."""

    @abstractmethod
    def begin(self, step: int, group: "EncodedGroup") -> Sequence[U]:
        """What the step of this rank's `group` is cut into; called once a step (counted from 0), on all ranks alike."""

    @abstractmethod
    def weights(self, units: Sequence[U]) -> tuple[float, ...]:
        """What these units add to the totals that `share` divides by, equally many in every step. None is negative."""

    @abstractmethod
    def share(self, model: Any, units: Sequence[U], weights: Sequence[float]) -> Share:
        """Forward pass and loss of a micro-batch.

        Args:
            model: as it is wrapped for this run's ranks; its forward pass is what gradients are shared through.
            units: some of what `begin` gave.
            weights: the sums of `weights` over the whole step and all ranks.
        """

    def judged(self, scores: Mapping[str, float]) -> None:  # noqa: B027 (most take no note)
        """Take note of an evaluation while training. Called on all ranks alike."""

    @property
    def is_over(self) -> bool:
        """Whether the run is to end before its last step, the same on all ranks."""
        return False

    def state(self) -> dict[str, Any]:
        """What this rank needs to go on after the current step, beyond weights: plain values and tensors."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Give back what lies outside of this process, however the run ends."""
