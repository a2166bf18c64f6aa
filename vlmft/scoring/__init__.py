"""Text and answer become a number here; the same functions serve metrics and rewards. Imports no torch."""

from vlmft.scoring.base import MetricSpec, check_references, named_score
from vlmft.scoring.text import ExactMatch

__all__ = ["ExactMatch", "MetricSpec", "check_references", "named_score"]
