"""Qwen3.5: Qwen3-VL's encoding, a tower with one merger, and an LLM most of whose layers attend linearly.

Three of four layers of the LLM keep a state of fixed size (gated delta rule) in place of keys and values. Padding is
zeroed before it enters one, so a sample's logits do not depend on its batch.
"""

from typing import ClassVar

from vlmft.models.qwen3vl import Qwen3VL
from vlmft.models.qwen_vl import QwenVL
from vlmft.models.tiny import TinyCheckpoint


class Qwen35(Qwen3VL):
    """A checkpoint of transformers' `Qwen3_5ForConditionalGeneration`.

    transformers does not load a checkpoint's layers for the prediction of several tokens (`mtp`), so they are neither
    trained nor merged.
    """

    component_paths: ClassVar = QwenVL.component_paths
    unpacked_because: ClassVar = "its linear layers carry their state from one sample of a row into the next"
    unserved_because: ClassVar[str | None] = (
        "nobody has looked at how the server takes the weights of its linear layers"
    )


class TinyQwen35(TinyCheckpoint, Qwen35):
    """A Qwen3.5 of the real classes with random weights, small enough to learn on a CPU."""
