"""64-bit hashes of sample ids, and how they become order, shares and seeds.

Nothing here depends on the process, on Python's own `hash` or on which other samples there are.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from vlmft.data.spec import Rows, Source

Hashes: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]

_MASK = (1 << 64) - 1


@runtime_checkable
class Hashed(Protocol):
    """A source that has its ids' hashes at hand."""

    def id_hashes(self, rows: Rows) -> Hashes:
        """What `id_hashes` gives."""
        ...


def id_hashes(source: Source, rows: Rows) -> Hashes:
    """Hash the sample ids of `rows`; about a microsecond each where the source does not have them at hand."""
    return source.id_hashes(rows) if isinstance(source, Hashed) else hash_texts(source.sample_id(int(r)) for r in rows)


def rows_with_twins(source: Source, at_once: int = 2**23) -> list[int]:
    """The rows whose ids have the hash of another row's, ascending; holds some `at_once` hashes at a time."""
    rows = [np.arange(first, min(first + at_once, len(source))) for first in range(0, len(source), at_once)]
    found: list[int] = []
    for number in range(len(rows)):  # each time, the hashes of one remainder
        drawn = [hashes[hashes % len(rows) == number] for hashes in (id_hashes(source, some) for some in rows)]
        ascending = np.sort(np.concatenate(drawn))
        repeated = np.unique(ascending[1:][ascending[1:] == ascending[:-1]])
        if len(repeated):
            for some in rows:
                found += some[np.isin(id_hashes(source, some), repeated)].tolist()
    return sorted(found)


def hash_texts(texts: Iterable[str]) -> Hashes:
    """The hash of each text."""
    return np.frombuffer(digests(texts), dtype="<u8").astype(np.uint64)


def digests(texts: Iterable[str]) -> bytes:
    """The hash of each text (BLAKE2b) as 8 bytes, little-endian, one after the other."""
    blake = hashlib.blake2b
    return b"".join([blake(text.encode(errors="surrogatepass"), digest_size=8).digest() for text in texts])


def mix(hashes: Hashes, *numbers: int) -> Hashes:
    """Mix whole numbers (a seed, an epoch) or a salt into every hash.

    One splitmix64 step for each number (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators", figure 15). Arithmetic is modulo 2**64.
    """
    mixed = _step(hashes)
    for number in numbers:
        mixed = _step(mixed ^ _step(np.array([number & _MASK], dtype=np.uint64)))
    return mixed


def mix_each(hashes: Hashes, numbers: Hashes) -> Hashes:
    """Mix one number into each hash."""
    return _step(_step(hashes) ^ _step(numbers))


def salt(purpose: str) -> int:
    """A fixed number for one purpose, so that draws for different purposes have nothing in common."""
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def _step(x: Hashes) -> Hashes:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
