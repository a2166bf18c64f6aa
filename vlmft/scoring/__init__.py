"""Text and answer become a number here; the same functions serve metrics and rewards. Imports no torch."""

from vlmft.scoring.answers import Choice, Correctness, Format
from vlmft.scoring.base import MetricSpec, check_references, named_score
from vlmft.scoring.boxes import BoxIoU
from vlmft.scoring.mathematics import MathCorrectness
from vlmft.scoring.rewards import Reward, rewards_of, weighted_sum
from vlmft.scoring.structured import FieldAccuracy, JsonValidity
from vlmft.scoring.text import ExactMatch, Length

__all__ = [
    "BoxIoU",
    "Choice",
    "Correctness",
    "ExactMatch",
    "FieldAccuracy",
    "Format",
    "JsonValidity",
    "Length",
    "MathCorrectness",
    "MetricSpec",
    "Reward",
    "check_references",
    "named_score",
    "rewards_of",
    "weighted_sum",
]
