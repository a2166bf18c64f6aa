import faulthandler
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing import active_children
from typing import Any

import pytest
import torch

from tests.support import encoding
from vlmft.data.problems import SampleError
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.loading import EncodedGroup, Watch, encode_group, load
from vlmft.encoding.time_limit import TimeLimit
from vlmft.errors import DataError, VlmftError


def encoded(name: str) -> Encoded:
    return Encoded(
        name,
        torch.tensor([len(name)] * 5),
        torch.tensor([True] * 5),
        [{"pixels": torch.ones(20, 20)}],
        num_vision_tokens=3,
    )


class Numbers:
    """Group n holds the samples n and n + 0.5."""

    def __init__(self, count: int, fails: Sequence[int] = ()) -> None:
        self.count = count
        self.fails = fails
        self.watch = Watch()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> EncodedGroup | VlmftError:
        if number in self.fails:
            return DataError(f"group {number} is gone")
        return EncodedGroup([encoded(f"{number}"), encoded(f"{number}.5")], {f"{number}.7": "too long"})


def encoder(limit: TimeLimit | None) -> Encoder:
    made: Any = encoding()[0]
    made.time_limit = limit
    return made


@pytest.mark.parametrize("num_workers", [0, 2])
def test_groups_come_in_order_from_where_it_starts(num_workers: int) -> None:
    groups = list(load(Numbers(6), num_workers, start=2))
    assert [[sample.id for sample in group.samples] for group in groups] == [[f"{n}", f"{n}.5"] for n in range(2, 6)]
    assert [group.bad for group in groups] == [{f"{n}.7": "too long"} for n in range(2, 6)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_no_sample_comes_out_in_its_place(num_workers: int) -> None:
    stream = load(Numbers(6, fails=[1]), num_workers)
    assert next(stream).samples[0].id == "0"
    with pytest.raises(DataError, match="^group 1 is gone$"):
        next(stream)


def test_a_group_crosses_in_one_buffer() -> None:
    """Each tensor by itself would take a file descriptor, of which a process has 1,024."""
    (group,) = load(Numbers(1), num_workers=1)
    tensors = [t for s in group.samples for t in (s.input_ids, s.supervised, s.media[0]["pixels"])]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert all(torch.equal(s.media[0]["pixels"], torch.ones(20, 20)) for s in group.samples)


def test_a_loader_process_that_dies_between_two_groups_is_named() -> None:
    """Its next groups are announced, but the memory that they lie in went with it."""
    others = active_children()
    stream = load(Numbers(50), num_workers=1)
    next(stream)
    (worker,) = (child for child in active_children() if child not in others)
    time.sleep(0.5)  # it works ahead
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    time.sleep(0.1)  # nothing is raised in between, in the middle of whatever the process does
    with pytest.raises(RuntimeError, match=rf"^DataLoader worker \(pid {worker.pid}\) is killed by signal: Killed\."):
        list(stream)


class Crashing:
    """Group n holds the samples n-a and n-b; some of them end the process that encodes them."""

    def __init__(self, crashes: dict[str, int], limit: TimeLimit | None) -> None:
        self.crashes, self.encoder, self.watch = crashes, encoder(limit), Watch()

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> EncodedGroup | VlmftError:
        def encode(name: str) -> Encoded:
            if name in self.crashes:
                faulthandler.disable()  # pytest's would print a page
                os.kill(os.getpid(), self.crashes[name])
                time.sleep(60)
            return encoded(name)

        items = [f"{number}-{letter}" for letter in "ab"]
        return encode_group(self.encoder, number, items, encode, lambda name: f"mine/{name}", self.watch)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("limit", [None, TimeLimit(60)])
def test_a_decoder_that_crashes_makes_its_sample_bad(num_workers: int, limit: TimeLimit | None) -> None:
    crashes = {"1-b": signal.SIGSEGV, "4-a": signal.SIGABRT}
    groups = list(load(Crashing(crashes, limit), num_workers))
    names = [[sample.id for sample in group.samples] for group in groups]
    assert names == [["0-a", "0-b"], ["1-a"], ["2-a", "2-b"], ["3-a", "3-b"], ["4-b"], ["5-a", "5-b"]]
    assert [group.bad for group in groups if group.bad] == [
        {
            "mine/1-b": "mine/1-b: Segmentation fault (signal 11) ended the loader process that was reading it; "
            "replace its files, which crash their decoder"
        },
        {
            "mine/4-a": "mine/4-a: Aborted (signal 6) ended the loader process that was reading it; replace its files, "
            "which crash their decoder"
        },
    ]


def test_a_loader_process_that_is_killed_for_memory_blames_no_sample() -> None:
    with pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid \d+\) is killed by signal: Killed\."):
        list(load(Crashing({"2-a": signal.SIGKILL}, None), num_workers=1))


class TestGroup:
    def test_a_bad_sample_is_missing_and_named(self) -> None:
        def encode(name: str) -> Encoded:
            if name == "b":
                raise SampleError("mine/b: no picture", sample_id="mine/b")
            return encoded(name)

        for limit in (None, TimeLimit(60)):
            group = encode_group(encoder(limit), 0, ["a", "b", "c"], encode, lambda name: f"mine/{name}", Watch())
            assert isinstance(group, EncodedGroup)
            assert [sample.id for sample in group.samples] == ["a", "c"]
            assert group.bad == {"mine/b": "mine/b: no picture"}

    def test_a_decoder_that_hangs_makes_its_sample_bad(self) -> None:
        def encode(name: str) -> Encoded:
            if name == "b":
                time.sleep(60)
            return encoded(name)

        group = encode_group(encoder(TimeLimit(0.2)), 0, ["a", "b", "c"], encode, lambda name: f"mine/{name}", Watch())
        assert isinstance(group, EncodedGroup)
        assert [sample.id for sample in group.samples] == ["a", "c"]
        assert group.bad == {
            "mine/b": "mine/b: was not read and decoded within 0.2 s; look at its files, "
            "or raise sample_timeout_s where the storage is slow"
        }

    def test_another_error_is_returned(self) -> None:
        def encode(name: str) -> Encoded:
            raise DataError("the file has gone")

        for limit in (None, TimeLimit(60)):
            error = encode_group(encoder(limit), 0, ["a"], encode, str, Watch())
            assert isinstance(error, DataError) and str(error) == "the file has gone"
