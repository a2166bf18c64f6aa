"""Pixtral: the family is `Mistral3`, in LLaVA's class and with a token for each patch; a tiny checkpoint of its own."""

from vlmft.models.mistral3 import Mistral3
from vlmft.models.tiny import TinyCheckpoint


class TinyPixtral(TinyCheckpoint, Mistral3):
    """A Pixtral of the real classes with random weights, small enough to learn on a CPU."""
