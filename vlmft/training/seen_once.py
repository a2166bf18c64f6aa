"""Completions of one prompt hold the same pictures: where a batch has as many of each prompt, they are seen once."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vlmft.encoding.collate import Collator, HasMedia
from vlmft.models import Auto
from vlmft.models.shared_vision import SharedVision


def by_blocks(rows: Sequence[HasMedia]) -> tuple[list[int], int]:
    """An order in which the rows' media are equal blocks, and how many; the rows' own and 1 where there is none.

    Rows are of one prompt where they hold the very same media, not equal ones. Those without any stand last.
    """
    prompts: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        if row.media:
            prompts.setdefault(id(row.media), []).append(number)
    sizes = {len(numbers) for numbers in prompts.values()}
    if len(sizes) != 1:
        return list(range(len(rows))), 1
    (times,) = sizes
    blocks = [numbers[block] for block in range(times) for numbers in prompts.values()]
    return blocks + [number for number, row in enumerate(rows) if not row.media], times


def seen_once(model: Any, collator: Collator, times: int) -> AbstractContextManager[None]:
    """Within it, a batch's media are `times` equal blocks, of which the tower sees one, where the family allows it."""
    if times == 1 or isinstance(collator.family, Auto):  # no test shows of any model that once is enough
        return nullcontext()
    shared = SharedVision(model)
    return shared.repeated(times) if shared.works else nullcontext()
