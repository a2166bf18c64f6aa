"""GLM-4.5V and GLM-4.6V as mixtures of experts: the family is `Glm4v`, with a tiny checkpoint of its own."""

from vlmft.models.glm4v import Glm4v
from vlmft.models.tiny import TinyCheckpoint


class TinyGlm4vMoe(TinyCheckpoint, Glm4v):
    """A mixture-of-experts GLM-4.5V of the real classes with random weights, small enough to learn on a CPU."""
