"""From media without words to training data: media found and cut, and captions asked for or left to be filled in."""

from vlmft.annotation.specs import Annotator, OpenAI, Placeholders

__all__ = ["Annotator", "OpenAI", "Placeholders"]
