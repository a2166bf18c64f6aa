"""GLM-4.6V: the family is `Glm4v`, with another form of times in the text; a tiny checkpoint of its own."""

from vlmft.models.glm4v import Glm4v
from vlmft.models.tiny import TinyCheckpoint


class TinyGlm46v(TinyCheckpoint, Glm4v):
    """A GLM-4.6V of the real classes with random weights, small enough to learn on a CPU."""
