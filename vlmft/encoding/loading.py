"""Groups of samples, encoded in loader processes or here; they come in order either way."""

import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, get_worker_info

from vlmft.data.problems import SampleError, crashed, overdue
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.handover import unwrap, wrap
from vlmft.encoding.time_limit import OverdueError
from vlmft.errors import VlmftError

Item = TypeVar("Item")
Result = TypeVar("Result")

# What ends a process by its own fault; SIGKILL is the kernel's answer to a lack of memory, and no sample's fault.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


@dataclass(slots=True)
class EncodedGroup:
    """Samples that were encoded together: an optimiser step of one rank, or prompts that are answered at once."""

    samples: list[Encoded]
    bad: dict[str, str] = field(default_factory=dict)
    """Samples that could not be used: id -> reason. They are missing from the group, nothing takes their place."""
    shares: int = 0
    """Of a step that is shared out by cost: the same number on ranks that came to the same shares."""


class Watch:
    """Which item each loader process is at, in memory that outlives it, and the items that have killed one.

    A decoder written in C may crash on a damaged file, and takes its process along: no exception tells of it. So the
    place is written down before an item is begun, and the one at which a process crashed is left out when another
    process takes its work over.
    """

    def __init__(self) -> None:
        self.crashed: dict[tuple[int, int], str] = {}
        """(group, item) -> the signal."""
        self._board: torch.Tensor | None = None

    def open(self, num_workers: int) -> None:
        """Make room for so many processes."""
        self._board = torch.full((num_workers, 2), -1, dtype=torch.int64).share_memory_()

    def begin(self, group: int, item: int) -> None:
        """Write down, in a loader process, what it begins."""
        worker = get_worker_info()
        if worker is not None and self._board is not None:
            self._board[worker.id, 0] = group
            self._board[worker.id, 1] = item

    def blame(self, worker: int, reason: str) -> bool:
        """Leave out what a dead process was at; False where that is known already, or it was at nothing."""
        assert self._board is not None
        group, item = self._board[worker].tolist()
        if group < 0 or (group, item) in self.crashed:
            return False
        self.crashed[group, item] = reason
        return True


class Groups(Protocol):
    """Groups by number. An error that no sample is to blame for is returned: torch would wrap a raised one."""

    @property
    def watch(self) -> Watch:
        """The same object for as long as the groups are loaded."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> EncodedGroup | VlmftError: ...


def encode_group(
    encoder: Encoder,
    number: int,
    items: Sequence[Item],
    encode: Callable[[Item], Encoded],
    sample_id: Callable[[Item], str],
    watch: Watch,
    places: Sequence[int] | None = None,
) -> EncodedGroup | VlmftError:
    """Apply `encode` to each item of group `number`, for as long as the encoder's time limit gives each.

    Args:
        places: of the items, as `watch` is to know them; None: 0, 1, ...

    Returns:
        The group; or the error, where one is no sample's own.
    """
    group = EncodedGroup([])
    try:
        for found in attempts(encoder, number, items, encode, sample_id, watch, places):
            if isinstance(found, SampleError):
                group.bad[found.sample_id] = str(found)
            else:
                group.samples.append(found)
    except VlmftError as error:
        return error
    return group


def attempts(
    encoder: Encoder,
    number: int,
    items: Sequence[Item],
    do: Callable[[Item], Result],
    sample_id: Callable[[Item], str],
    watch: Watch,
    places: Sequence[int] | None = None,
) -> list[Result | SampleError]:
    """What `do` gives for each item of a group, or why it cannot be used; arguments as of `encode_group`.

    Raises:
        VlmftError: one that is no sample's own.
    """
    places = range(len(items)) if places is None else places

    def attempt(index: int) -> Result | SampleError:
        if (number, places[index]) in watch.crashed:
            return crashed(sample_id(items[index]), watch.crashed[number, places[index]])
        watch.begin(number, places[index])
        try:
            return do(items[index])
        except SampleError as error:
            return error

    limit = encoder.time_limit
    if limit is None:
        return [attempt(index) for index in range(len(items))]
    found = limit.map(attempt, range(len(items)))
    return [
        overdue(sample_id(item), limit.seconds) if isinstance(one, OverdueError) else one
        for item, one in zip(items, found, strict=True)
    ]


def load(groups: Groups, num_workers: int, start: int = 0) -> Generator[EncodedGroup]:
    """Give the groups from number `start` on, encoded by `num_workers` loader processes, or here where that is 0.

    A sample whose decoder crashes its loader process is a bad one; others take its work over.

    Raises:
        VlmftError: what the groups returned as such.
        RuntimeError: a loader process has died in another way; the text is torch's own, however its death was noticed.
    """
    done = start
    while True:
        try:
            for group in _load(groups, num_workers, done):
                done += 1
                yield group
            return
        except _CrashedError:
            continue


def _load(groups: Groups, num_workers: int, start: int) -> Iterator[EncodedGroup]:
    groups.watch.open(num_workers)
    loader: DataLoader[Any] = DataLoader(
        groups,  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(start, len(groups)),
        num_workers=num_workers,
        collate_fn=_wrapped if num_workers else _as_it_is,  # type: ignore[arg-type]
        generator=torch.Generator(),  # its own: starting a loader must not draw from the run's randomness
    )
    stream = iter(loader)
    if num_workers and threading.current_thread() is threading.main_thread():
        # torch's handler raises for a dead loader process wherever the main thread is, in the middle of a step too;
        # a stream that is waited for notices by itself.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        while True:
            try:
                item = next(stream)
            except StopIteration:
                return
            except (OSError, EOFError, RuntimeError) as error:
                # A batch lies in memory that its loader process hands over: killed in between, it leaves a broken
                # connection, which torch passes on as it is.
                _raise_if_dead(getattr(stream, "_workers", []), groups.watch, error)
                raise
            if isinstance(item, VlmftError):
                raise item
            if isinstance(item, EncodedGroup):
                yield item
            else:
                parcel, bad, shares = item
                yield EncodedGroup(unwrap(parcel), bad, shares)
    finally:
        # Now, and not when the garbage collector comes by: an error's traceback keeps the stream alive.
        if num_workers:
            stream._shutdown_workers()  # type: ignore[attr-defined]


class _CrashedError(Exception):
    """A loader process crashed at a sample that is left out from here on."""


def _raise_if_dead(workers: Sequence[Any], watch: Watch, cause: Exception) -> None:
    for number, worker in enumerate(workers):
        worker.join(timeout=1.0)  # its connections close a moment before it is gone
        if not worker.exitcode:
            continue
        how = signal.strsignal(-worker.exitcode) if worker.exitcode < 0 else ""
        if -worker.exitcode in _CRASHES and watch.blame(number, f"{how} (signal {-worker.exitcode})"):
            raise _CrashedError from cause
        ended = f"is killed by signal: {how}." if how else f"exited unexpectedly with exit code {worker.exitcode}."
        raise RuntimeError(f"DataLoader worker (pid {worker.pid}) {ended}") from cause


def _wrapped(item: EncodedGroup | VlmftError) -> Any:
    """What crosses from a loader process: the group's tensors in one buffer."""
    return item if isinstance(item, VlmftError) else (wrap(item.samples), item.bad, item.shares)


def _as_it_is(item: Any) -> Any:
    return item
