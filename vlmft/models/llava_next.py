"""LLaVA-NeXT (1.6): CLIP's tower over a picture and its tiles, read before its last block; LLMs of several makers."""

from vlmft.models.anyres import AnyRes
from vlmft.models.tiny import TinyCheckpoint


class LlavaNext(AnyRes):
    """A checkpoint of transformers' `LlavaNextForConditionalGeneration` with a CLIP tower.

    Every picture is cut into tiles, whether or not it is its sample's only one.
    """


class TinyLlavaNext(TinyCheckpoint, LlavaNext):
    """A LLaVA-NeXT of the real classes with random weights, small enough to learn on a CPU."""
