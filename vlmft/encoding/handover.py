"""Samples on their way from a loader process: one shared buffer instead of a hundred small tensors.

Each tensor that crosses a process border costs a file descriptor and about 0.1 ms in the training process; a step of 16
samples has 64 of them. In one buffer they cost what one costs, and are read as views, without a copy.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlmft.encoding.encoder import Encoded, Mismatched, Rating, Rejected
from vlmft.types import Labels, Solution

if TYPE_CHECKING:
    from torch import Tensor

_ALIGN = 8  # bytes: a view of int64 must begin at a multiple of its size


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in the buffer."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _RejectedPlaces:
    """A pair's other answer, its tensors replaced by their places."""

    input_ids: _Place
    supervised: _Place


@dataclass(frozen=True, slots=True)
class _RatingPlaces:
    """The same of what is learned beside a rated answer."""

    good: bool
    mismatched: tuple[_Place, _Place] | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """One sample, its tensors replaced by their places."""

    id: str
    num_vision_tokens: int
    input_ids: _Place
    supervised: _Place
    media: list[dict[str, _Place]]
    target: _RejectedPlaces | _RatingPlaces | Solution | Labels | None


@dataclass(frozen=True, slots=True)
class Parcel:
    """Samples whose tensors all lie in `buffer`, uint8."""

    buffer: "Tensor"
    entries: list[_Entry]


def wrap(samples: list[Encoded]) -> Parcel:
    """Copy the tensors of `samples` into one buffer."""
    pieces: list[Tensor] = []
    end = 0

    def put(tensor: "Tensor") -> _Place:
        nonlocal end
        place = _Place(end, tuple(tensor.shape), tensor.dtype)
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        pieces.append(flat)
        if padding := -len(flat) % _ALIGN:
            pieces.append(torch.zeros(padding, dtype=torch.uint8))
        end += len(flat) + padding
        return place

    def put_target(target: Rejected | Rating | Solution | Labels | None) -> Any:
        match target:
            case Rejected(input_ids, supervised):
                return _RejectedPlaces(put(input_ids), put(supervised))
            case Rating(good, other):
                return _RatingPlaces(good, None if other is None else (put(other.input_ids), put(other.supervised)))
        return target

    entries = [
        _Entry(
            sample.id,
            sample.num_vision_tokens,
            put(sample.input_ids),
            put(sample.supervised),
            [{name: put(tensor) for name, tensor in item.items()} for item in sample.media],
            put_target(sample.target),
        )
        for sample in samples
    ]
    return Parcel(torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8), entries)


def unwrap(parcel: Parcel) -> list[Encoded]:
    """The samples, as views into the parcel's buffer."""

    def get(place: _Place) -> "Tensor":
        length = place.dtype.itemsize
        for size in place.shape:
            length *= size
        return parcel.buffer[place.offset : place.offset + length].view(place.dtype).reshape(place.shape)

    def get_target(target: _RejectedPlaces | _RatingPlaces | Solution | Labels | None) -> Any:
        match target:
            case _RejectedPlaces(input_ids, supervised):
                return Rejected(get(input_ids), get(supervised))
            case _RatingPlaces(good, places):
                return Rating(good, None if places is None else Mismatched(*map(get, places)))
        return target

    return [
        Encoded(
            id=entry.id,
            input_ids=get(entry.input_ids),
            supervised=get(entry.supervised),
            media=[{name: get(place) for name, place in item.items()} for item in entry.media],
            num_vision_tokens=entry.num_vision_tokens,
            target=get_target(entry.target),
        )
        for entry in parcel.entries
    ]
