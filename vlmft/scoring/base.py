"""What every metric answers to."""

from abc import abstractmethod
from typing import ClassVar

from vlmft.config.spec import Spec


class MetricSpec(Spec, abstract=True):
    """How a generated answer is compared with the reference answer."""

    is_binary: ClassVar[bool] = False
    """Whether every score is 0 or 1, so that statistics for right and wrong answers apply."""

    @abstractmethod
    def score(self, prediction: str, reference: str) -> float:
        """Return how good `prediction` is, from 0 (worthless) to 1 (perfect)."""
