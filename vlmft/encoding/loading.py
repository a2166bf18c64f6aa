"""Groups of samples, encoded in loader processes or here; they come in order either way."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader

from vlmft.data.problems import SampleError
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.handover import unwrap, wrap
from vlmft.encoding.time_limit import OverdueError
from vlmft.errors import VlmftError

Item = TypeVar("Item")


@dataclass(slots=True)
class EncodedGroup:
    """Samples that were encoded together: an optimiser step of one rank, or prompts that are answered at once."""

    samples: list[Encoded]
    bad: dict[str, str] = field(default_factory=dict)
    """Samples that could not be used: id -> reason. They are missing from the group, nothing takes their place."""


class Groups(Protocol):
    """Groups by number. An error that no sample is to blame for is returned: torch would wrap a raised one."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> EncodedGroup | VlmftError: ...


def encode_group(
    encoder: Encoder, items: Sequence[Item], encode: Callable[[Item], Encoded], sample_id: Callable[[Item], str]
) -> EncodedGroup | VlmftError:
    """Apply `encode` to each item, for as long as the encoder's time limit gives each.

    Returns:
        The group; or the error, where one is no sample's own.
    """

    def encoded(item: Item) -> Encoded | SampleError:
        try:
            return encode(item)
        except SampleError as error:
            return error

    group = EncodedGroup([])
    limit = encoder.time_limit
    try:
        for item, found in zip(
            items, limit.map(encoded, items) if limit else [encoded(item) for item in items], strict=True
        ):
            if isinstance(found, Encoded):
                group.samples.append(found)
            elif isinstance(found, SampleError):
                group.bad[found.sample_id] = str(found)
            else:
                assert isinstance(found, OverdueError) and limit
                group.bad[sample_id(item)] = (
                    f"{sample_id(item)}: was not read and decoded within {limit.seconds:g} s; look at its files, "
                    "or raise sample_timeout_s where the storage is slow"
                )
    except VlmftError as error:
        return error
    return group


def load(groups: Groups, num_workers: int, start: int = 0) -> Iterator[EncodedGroup]:
    """Give the groups from number `start` on, encoded by `num_workers` loader processes, or here where that is 0.

    Raises:
        VlmftError: what the groups returned as such.
        RuntimeError: a loader process has died; the text is torch's own, however its death was noticed.
    """
    loader: DataLoader[Any] = DataLoader(
        groups,  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(start, len(groups)),
        num_workers=num_workers,
        collate_fn=_wrapped if num_workers else _as_it_is,  # type: ignore[arg-type]
        generator=torch.Generator(),  # its own: starting a loader must not draw from the run's randomness
    )
    stream = iter(loader)
    while True:
        try:
            item = next(stream)
        except StopIteration:
            return
        except (OSError, EOFError, RuntimeError) as error:
            # A batch lies in memory that its loader process hands over: killed in between, it leaves a broken
            # connection, which torch passes on as it is.
            _raise_if_dead(getattr(stream, "_workers", []), error)
            raise
        if isinstance(item, VlmftError):
            raise item
        if isinstance(item, EncodedGroup):
            yield item
        else:
            parcel, bad = item
            yield EncodedGroup(unwrap(parcel), bad)


def _raise_if_dead(workers: Sequence[Any], cause: Exception) -> None:
    for worker in workers:
        worker.join(timeout=1.0)  # its connections close a moment before it is gone
        if worker.exitcode:
            how = (
                f"is killed by signal: {signal.strsignal(-worker.exitcode)}."
                if worker.exitcode < 0
                else f"exited unexpectedly with exit code {worker.exitcode}."
            )
            raise RuntimeError(f"DataLoader worker (pid {worker.pid}) {how}") from cause


def _wrapped(item: EncodedGroup | VlmftError) -> Any:
    """What crosses from a loader process: the group's tensors in one buffer."""
    return item if isinstance(item, VlmftError) else (wrap(item.samples), item.bad)


def _as_it_is(item: Any) -> Any:
    return item
