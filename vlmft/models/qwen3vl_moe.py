"""Qwen3-VL as a mixture of experts: the family is `Qwen3VL`, with a tiny checkpoint of its own."""

from vlmft.models.qwen3vl import Qwen3VL
from vlmft.models.tiny import TinyCheckpoint


class TinyQwen3VLMoe(TinyCheckpoint, Qwen3VL):
    """A mixture-of-experts Qwen3-VL of the real classes with random weights, small enough to learn on a CPU."""
