import itertools
from types import SimpleNamespace

import pytest

from vlmft.training import meters
from vlmft.training.meters import Meters, StepTotals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock comes four seconds after the last."""
    ticks = itertools.count(100, 4)
    monkeypatch.setattr(meters, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))


@pytest.mark.usefixtures("clock")
def test_rates_are_totals_over_the_time_since_the_last_reading() -> None:
    meter = Meters()
    meter.restart()
    meter.wait(0.5)
    meter.add(
        StepTotals(supervised_tokens=6, tokens=60, vision_tokens=20, samples=4, most_micro_batches=2), 60, 80, 3.0
    )
    meter.add(StepTotals(supervised_tokens=2, tokens=20, vision_tokens=0, samples=4, most_micro_batches=1), 20, 20, 1.0)
    assert meter.read() == {
        "loss": 2.0,
        "samples_per_s": 2.0,
        "tokens_per_s": 20.0,
        "vision_tokens_per_s": 5.0,
        "supervised_tokens_per_s": 2.0,
        "data_wait": 0.125,
        "padding": pytest.approx(0.2),
        "micro_batches": 2,
    }
    meter.wait(100)  # the clock that tells the seconds since the last line is another
    meter.add(StepTotals(supervised_tokens=8, tokens=8, vision_tokens=0, samples=1, most_micro_batches=3), 8, 8, 0.5)
    second = meter.read()
    assert (second["supervised_tokens_per_s"], second["padding"], second["micro_batches"]) == (2.0, 0.0, 3)
    assert second["data_wait"] == 1.0


@pytest.mark.usefixtures("clock")
def test_time_before_a_restart_is_not_training_time() -> None:
    meter = Meters()
    for _ in range(10):
        meter.restart()
    meter.add(StepTotals(supervised_tokens=4, tokens=4, vision_tokens=4, samples=4, most_micro_batches=1), 4, 4, 1.0)
    assert meter.read()["samples_per_s"] == 1.0


def test_a_reading_without_a_step_is_all_zero() -> None:
    assert set(Meters().read().values()) == {0}


def test_how_full_packs_are() -> None:
    meter = Meters()
    totals = StepTotals(supervised_tokens=4, tokens=60, vision_tokens=4, samples=4, most_micro_batches=2)
    meter.add(totals, filled=60, slots=60, loss=1.0, budget=100)
    meter.add(totals, filled=30, slots=30, loss=1.0, budget=50)
    assert meter.read()["pack_fill"] == pytest.approx(0.6)
    meter.add(totals, filled=60, slots=80, loss=1.0)
    assert "pack_fill" not in meter.read()


@pytest.mark.usefixtures("clock")
def test_useful_operations_a_second_and_their_share_of_the_peak() -> None:
    totals = StepTotals(supervised_tokens=4, tokens=60, vision_tokens=4, samples=4, most_micro_batches=2, flops=400e12)
    known, unknown = Meters(peak_tflops=989.4), Meters()
    for meter in (known, unknown):
        meter.restart()
        meter.add(totals, 60, 60, 1.0)
    read = known.read()  # the clock goes on for both
    assert read["useful_tflops"] == pytest.approx(400 / 8)
    assert read["mfu"] == pytest.approx(400 / 8 / 989.4)
    assert unknown.read()["mfu"] is None
