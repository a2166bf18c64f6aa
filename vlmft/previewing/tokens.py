"""Token ids as people read them: each token's text, whether the loss asks for it, and vision tokens as one."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

_LONGEST_CHARACTER = 16  # tokens; bytes that are no character by then are shown as what they are: U+FFFD
_JOINERS = "\u200c\u200d"  # parts of words and emoji


@dataclass(frozen=True, slots=True)
class Piece:
    """A token; or the tokens that share a character; or a picture's vision tokens."""

    kind: Literal["text", "control", "vision"]
    text: str
    """As the tokenizer writes it; of vision tokens, what they are."""
    ids: tuple[int, ...]
    """Of vision tokens a single one, which is repeated."""
    place: int
    """Of its first token, from 0."""
    supervised: bool


def read_tokens(
    tokenizer: Any,
    ids: Sequence[int],
    supervised: Sequence[bool],
    runs: Sequence[tuple[str, int]],
    features: frozenset[int],
) -> list[Piece]:
    """Cut a sample's tokens into pieces, whose texts join to the text that the tokens stand for.

    Args:
        runs: name and number of tokens of each unbroken run of vision tokens, in order.
        features: the vision tokens' ids.
    """
    from tokenizers.decoders import DecodeStream

    control = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    stream = DecodeStream(skip_special_tokens=False)
    remaining = iter(runs)
    pieces: list[Piece] = []
    held: list[int] = []  # tokens that are no whole character yet

    def release(end: int) -> None:
        nonlocal stream
        if held:
            text = tokenizer.backend_tokenizer.decode(held, skip_special_tokens=False)
            pieces.append(Piece("text", text, tuple(held), end - len(held), supervised[end - 1]))
            held.clear()
            stream = DecodeStream(skip_special_tokens=False)  # the old one still holds them, too

    place = 0
    while place < len(ids):
        token = ids[place]
        if token in features:
            release(place)
            name, count = next(remaining)
            stream.step(tokenizer.backend_tokenizer, token)
            pieces.append(Piece("vision", f"{name}: {count} tokens", (token,), place, supervised[place]))
            place += count
            continue
        if token in control or len(held) == _LONGEST_CHARACTER or (held and supervised[place] != supervised[place - 1]):
            release(place)
        held.append(token)
        place += 1
        text = stream.step(tokenizer.backend_tokenizer, token)
        if text is not None:
            kind: Literal["text", "control"] = "control" if token in control else "text"
            pieces.append(Piece(kind, text, tuple(held), place - len(held), supervised[place - 1]))
            held.clear()
    release(place)
    return pieces


def printable(text: str) -> str:
    """`text` with everything that would not be seen, or would move its neighbours, written as its number: <U+202E>.

    Newlines and tabs stay, and so do the characters that join others into a word or an emoji.
    """
    return text if text.isprintable() else "".join(_printable(text))


def _printable(text: str) -> Iterator[str]:
    for character in text:
        hidden = unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
        if hidden and character not in "\n\t" + _JOINERS:
            yield f"<U+{ord(character):04X}>"
        else:
            yield character
