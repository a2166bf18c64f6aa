"""The mark of an answer that nobody has given yet, which training must never learn."""

from vlmft.errors import DataError

PLACEHOLDER = "[ANNOTATE"
"""How a placeholder begins; `python -m vlmft.annotate` writes `[ANNOTATE: what is to be said here]`."""

_SHOWN = 80  # characters


def placeholder(what: str) -> str:
    """The text that stands where `what` is to be filled in."""
    return f"{PLACEHOLDER}: {what}]"


def refuse_placeholder(text: str, where: str = "the answer") -> None:
    """Raise `DataError` where `text` holds a placeholder; `where` names the text in the message."""
    at = text.find(PLACEHOLDER)
    if at >= 0:
        shown = text[at:] if len(text) - at <= _SHOWN else f"{text[at : at + _SHOWN]}..."
        raise DataError(f"{where} is still to be filled in: {shown}; write the answer there, or leave the sample out")
