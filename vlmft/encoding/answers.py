"""Where a chat template puts the answers: placeholders, and the comparison of two renderings.

Most templates do not mark what the assistant says, so a conversation is rendered twice: once with a placeholder
for each answer and once truly. The two texts must agree outside the answers, and what stands in a placeholder's
stead must be the answer, or one of the few rewritings that templates are known to make of it. Anything else is an
error: a mask that is wrong without a sound costs days.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vlmft.errors import DataError

Span = tuple[int, int]

# Placeholders are ASCII letters and digits only: strip, trim, escape, tojson, split('</think>') and a change of
# normal form all leave them as they are.
STEM = "VLMFTxPLACEHOLDERx"
ANSWER, REASONING, QUESTION = STEM + "A{}x", STEM + "R{}x", STEM + "Q{}x"
_MARK = re.compile(rf"{STEM}[AR]\d+x")
_SLOT = re.compile(rf"(?:(?:<think>\s*)?{STEM}R\d+x\s*</think>\s*)?{STEM}A(\d+)x")
_THINKING = re.compile(r"(<think>\s*)?(.*?)(\s*</think>\s*)(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Located:
    """A rendering and its answers. `literals`, one more than `spans`, is the text before, between and after them."""

    text: str
    literals: list[str]
    spans: list[Span]
    lost_thinking: bool
    """The template removed the last answer's thinking."""


def locate_answers(sample_id: str, answers: list[str], write: Callable[[list[str]], str]) -> Located:
    """Render a conversation and find its answers.

    `write` gives the conversation's text for the given answers.

    Raises:
        DataError: the template drops, repeats, reorders or rewrites an answer, or branches on what it says.
    """
    placeholders, replaced = _placeholders(answers)
    masked, text = write(placeholders), write(answers)
    slots = list(_SLOT.finditer(masked))
    edges = [0, *(edge for slot in slots for edge in slot.span()), len(masked)]
    literals = [masked[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    if [int(slot[1]) for slot in slots] != list(range(len(answers))) or any(STEM in literal for literal in literals):
        raise DataError(f"sample {sample_id}: the chat template drops, repeats or reorders answers")
    cores = [_MARK.sub(lambda mark: replaced[mark[0]], slot[0]) for slot in slots]
    spans = _match(sample_id, text, literals, cores, answers)
    lost = bool(answers) and "</think>" in placeholders[-1] and "</think>" not in slots[-1][0]
    return Located(text, literals, spans, lost)


def _placeholders(answers: list[str]) -> tuple[list[str], dict[str, str]]:
    """A placeholder for each answer, and the text that each mark in them stands for.

    An answer that thinks keeps its tags and the whitespace around them, since templates branch on `</think>` and
    on the position of the turn (Qwen3 keeps the last turn's thinking only): with a bare mark in its place the two
    renderings would differ outside the answers. Tags that are nested, repeated or followed by nothing are no
    thinking to a template that handles it, which is then found to have rewritten the answer.
    """
    placeholders: list[str] = []
    replaced: dict[str, str] = {}
    for index, answer in enumerate(answers):
        mark, reasoning = ANSWER.format(index), REASONING.format(index)
        match = _THINKING.fullmatch(answer.strip()) if "</think>" in answer else None
        if match is None:
            placeholders.append(mark)
            replaced[mark] = answer.strip()
        else:
            placeholders.append((match[1] or "") + reasoning + match[3] + mark)
            replaced |= {reasoning: match[2], mark: match[4]}
    return placeholders, replaced


def _rewritings(answer: str, core: str) -> Iterator[str]:
    """The forms in which a template may write `answer`, the longest first.

    `core` is the answer without whitespace around it and with its thinking as the template writes it: unchanged,
    removed, or wrapped again. Around it stands the author's whitespace, or none (`trim`), or in front what is
    behind the newlines (Qwen3's `lstrip('\\n')`).
    """
    before = answer[: len(answer) - len(answer.lstrip())]
    after = answer[len(answer.rstrip()) :]
    for left in (before, before.lstrip("\n"), ""):
        yield left + core + after
        yield left + core


def _match(sample_id: str, text: str, literals: list[str], cores: list[str], answers: list[str]) -> list[Span]:
    """The range of each answer in `text`, which must be the literals with the answers between them, to the letter.

    Literals are looked for only where an answer ends, so an answer may hold the template's own words. The longest
    rewriting that fits is the right one: two differ in whitespace alone, and what follows in `text` tells them
    apart, or is whitespace to the end, of which the author's comes first.
    """
    if not text.startswith(literals[0]):
        raise _branches(sample_id, literals[0], text, answers[:1])
    spans: list[Span] = []
    position = len(literals[0])
    for answer, core, literal in zip(answers, cores, literals[1:], strict=True):
        fitting = (form for form in _rewritings(answer, core) if text.startswith(form + literal, position))
        written = next(fitting, None)
        if written is None:
            expected, found = _from_difference(answer.strip(), text[position:].lstrip())
            raise DataError(
                f"sample {sample_id}: the chat template rewrote answer {len(spans) + 1}, so what is trained would not "
                f"be what the sample says: expected {expected!r}, the template wrote {found!r}; change the answer or "
                "the template"
            )
        spans.append((position, position + len(written)))
        position += len(written) + len(literal)
    if position != len(text):
        raise _branches(sample_id, "", text[position:], answers[-1:])
    return spans


def _branches(sample_id: str, expected: str, found: str, answers: list[str]) -> DataError:
    expected, found = _from_difference(expected, found)
    return DataError(
        f"sample {sample_id}: the text that the chat template writes around the answers depends on them: expected "
        f"{expected!r}, found {found!r}; change the answer {''.join(answers)[:200]!r} or the template"
    )


def _from_difference(expected: str, found: str) -> tuple[str, str]:
    """Both texts from a little before they part."""
    pairs = enumerate(zip(expected, found, strict=False))
    start = max(0, next((i for i, (a, b) in pairs if a != b), min(len(expected), len(found))) - 40)
    return expected[start : start + 200], found[start : start + 200]
