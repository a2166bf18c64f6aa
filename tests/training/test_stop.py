"""Real signals, sent by this process to itself."""

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from vlmft.errors import InterruptedRunError, PreemptedError
from vlmft.training import stop as stop_module
from vlmft.training.stop import StopRequest

ALL = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in ALL}
    request = StopRequest()
    request.install()
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the request sees; set its only item."""
    now = [100.0]
    # The module's own view of `time`: a process whose every clock stands still waits for ever, as soon as garbage
    # that is collected meanwhile joins a process.
    monkeypatch.setattr(stop_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (signal.SIGTERM, PreemptedError),
        (signal.SIGUSR1, PreemptedError),
        (signal.SIGINT, InterruptedRunError),
    ],
)
def test_outside_training_a_signal_ends_the_run_at_once(
    stop: StopRequest, number: signal.Signals, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=f"^{number.name} received; stopped at once$"):
        send(number)


def test_in_training_the_first_is_kept_for_the_steps_end(stop: StopRequest) -> None:
    stop.deferred = True
    send(signal.SIGTERM)
    assert (stop.reason, stop.interrupted) == ("SIGTERM received", False)
    with pytest.raises(PreemptedError, match="^SIGTERM received; stopped after step 7$"):
        stop.stop_at("after step 7")


def test_the_second_is_obeyed_at_once_and_an_echo_is_not_a_second(stop: StopRequest, clock: list[float]) -> None:
    stop.deferred = True
    send(signal.SIGTERM)
    clock[0] += 0.4
    send(signal.SIGTERM)
    clock[0] += 0.6
    with pytest.raises(InterruptedRunError, match="^SIGINT received; stopped at once$"):
        send(signal.SIGINT)


def test_an_echo_outside_training_does_not_cut_short_the_leaving(stop: StopRequest, clock: list[float]) -> None:
    with pytest.raises(PreemptedError):
        send(signal.SIGTERM)
    clock[0] += 0.1
    send(signal.SIGTERM)


def test_a_rank_that_heard_nothing_stops_with_the_others() -> None:
    with pytest.raises(InterruptedRunError, match="^another rank was asked to stop; stopped after step 3$"):
        StopRequest(interrupted=True).stop_at("after step 3")


def test_on_its_way_out_nothing_is_obeyed_any_more(stop: StopRequest, clock: list[float]) -> None:
    with pytest.raises(PreemptedError):
        send(signal.SIGTERM)
    stop.ending = True
    clock[0] += 10
    send(signal.SIGTERM)
    send(signal.SIGINT)
    assert (stop.reason, stop.interrupted) == ("SIGTERM received", False)
