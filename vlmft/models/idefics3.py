"""Idefics3: SigLIP's tower over square tiles, pixel shuffle and one linear layer as projector, a Llama 3 LLM."""

from typing import Any

from vlmft.models.idefics import Idefics
from vlmft.models.tiny import TinyCheckpoint


class Idefics3(Idefics):
    """A checkpoint of transformers' `Idefics3ForConditionalGeneration`, SmolVLM's first generation among them."""

    def _whole(self, processor: Any) -> str:
        return str(processor.global_image_tag)


class TinyIdefics3(TinyCheckpoint, Idefics3):
    """An Idefics3 of the real classes with random weights, small enough to learn on a CPU."""
