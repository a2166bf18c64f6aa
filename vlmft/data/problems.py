"""The one place where a sample's id and place are put before what is wrong with it.

The check at the start, the reader while training and the encoder all go through here, so that a damaged
file gives the same message whenever it is found.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from vlmft.errors import DataError


class SampleError(DataError):
    """One sample cannot be used. `sample_id` lets a caller count and list it (`max_bad_samples`)."""

    def __init__(self, *problems: str, sample_id: str = "") -> None:
        super().__init__(*problems)
        self.sample_id = sample_id


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
        raise SampleError(*named, sample_id=sample_id) from error
