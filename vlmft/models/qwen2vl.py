"""Qwen2-VL: a vision tower with full attention, a 2x2 patch merger as projector, a Qwen2 LLM."""

from typing import ClassVar

from vlmft.models.qwen_vl import QwenVL
from vlmft.models.tiny import TinyCheckpoint


class Qwen2VL(QwenVL):
    """A checkpoint of transformers' `Qwen2VLForConditionalGeneration`."""

    coordinate_style: ClassVar = "thousand"
    unserved_because: ClassVar[str | None] = None


class TinyQwen2VL(TinyCheckpoint, Qwen2VL):
    """A Qwen2-VL of the real classes with random weights, small enough to learn on a CPU."""
