"""The one place where a sample's id and place are put before what is wrong with it.

`validate`, the check at the start, the reader while training and the encoder all go through here, so that a damaged
file gives the same message whenever it is found.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vlmft.errors import DataError


class SampleError(DataError):
    """One sample cannot be used. `sample_id` lets a caller count and list it (`max_bad_samples`)."""

    def __init__(self, *problems: str, sample_id: str = "", place: str = "") -> None:
        super().__init__(*problems)
        self.sample_id = sample_id
        self.place = place
        """As `Sample.place`; empty where it is not known."""


@contextmanager
def naming_sample(sample_id: str, place: str) -> Iterator[None]:
    """Turn a `DataError` raised inside into a `SampleError` whose message starts with the sample's id and place."""
    try:
        yield
    except SampleError:
        raise
    except DataError as error:
        # The chat format names the sample by itself, for those who call it alone.
        # A message may quote half a character (\ud800), which no file could hold.
        printable = (problem.encode(errors="backslashreplace").decode() for problem in error.problems)
        problems = (problem.removeprefix(f"sample {sample_id}: ") for problem in printable)
        named = (f"{sample_id} ({place}): {problem}" for problem in problems)
        raise SampleError(*named, sample_id=sample_id, place=place) from error


def place_in(message: str, sample_id: str) -> str | None:
    """The place that `naming_sample` has written into a message about a sample; None where it has none."""
    found = re.match(rf"{re.escape(sample_id)} \((.*?, row \d+)\): ", message)
    return found[1] if found else None


def crashed(sample_id: str, how: str) -> SampleError:
    """The sample whose files ended the process that was reading it. `how` names the signal or exit code."""
    return SampleError(
        f"{sample_id}: {how} ended the loader process that was reading it; replace its files, which crash their "
        "decoder",
        sample_id=sample_id,
    )


def overdue(sample_id: str, seconds: float) -> SampleError:
    """The sample that took more than `seconds` to be read and decoded."""
    return SampleError(
        f"{sample_id}: was not read and decoded within {seconds:g} s; look at its files, or raise sample_timeout_s "
        "where the storage is slow",
        sample_id=sample_id,
    )
