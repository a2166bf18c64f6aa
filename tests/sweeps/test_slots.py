"""The places for jobs that devices and cores make."""

import os
from typing import Any

import pytest

from tests.support import literally
from vlmft.config.pool import PoolSettings
from vlmft.errors import ConfigError
from vlmft.sweeps import slots
from vlmft.sweeps.slots import make_slots


def places(
    devices: tuple[str, ...] | None = None, per_job: int = 1, count: int | None = None, **environ: str
) -> list[tuple[str, str | None]]:
    found = make_slots(PoolSettings(devices, per_job, count), {"OMP_NUM_THREADS": "1"} | environ)
    return [(slot.name, slot.environment.get("CUDA_VISIBLE_DEVICES")) for slot in found]


@pytest.fixture(autouse=True)
def _four_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "count_devices", lambda: 4)


@pytest.mark.parametrize(
    ("asked", "environ", "found"),
    [
        (((), 1, 2), {}, [("cpu slot 0", ""), ("cpu slot 1", "")]),
        (((), 1, None), {}, [("cpu slot 0", "")]),
        ((("0", "1", "2", "3"), 2, None), {}, [("cuda 0,1", "0,1"), ("cuda 2,3", "2,3")]),
        ((("4", "7", "5"), 2, None), {}, [("cuda 4,7", "4,7")]),
        ((None, 1, None), {}, [(f"cuda {n}", str(n)) for n in range(4)]),
        ((None, 2, 1), {}, [("cuda 0,1", "0,1")]),
        ((None, 1, 2), {"CUDA_VISIBLE_DEVICES": "2,GPU-a,5,6"}, [("cuda 2", "2"), ("cuda GPU-a", "GPU-a")]),
        ((("6",), 1, None), {"CUDA_VISIBLE_DEVICES": "2,6"}, [("cuda 6", "6")]),
    ],
)
def test_each_has_its_devices(asked: Any, environ: dict[str, str], found: list[tuple[str, str]]) -> None:
    assert places(*asked, **environ) == found


def test_without_devices_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "count_devices", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert places(count=3) == [(f"cpu slot {n}", None) for n in range(3)]
    assert [dict(slot.environment) for slot in make_slots(PoolSettings(None, 1, 3), {})] == [
        {"OMP_NUM_THREADS": "2"}
    ] * 3
    (pair,) = make_slots(PoolSettings(("0", "1"), 2, None), {})
    assert dict(pair.environment) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "0,1"}


@pytest.mark.parametrize(
    ("asked", "environ", "error"),
    [
        ((("0", "1"), 4, None), {}, "hydra.launcher.devices_per_job=4: there are only 2 devices (0, 1)"),
        ((("0", "1"), 1, 3), {}, "hydra.launcher.slots=3: 2 devices, 1 a job, are 2; leave slots out, or name more"),
        (
            (("0", "3"), 1, None),
            {"CUDA_VISIBLE_DEVICES": "3"},
            "hydra.launcher.devices: 0 is hidden by CUDA_VISIBLE_DEVICES=3; name devices as they stand there",
        ),
    ],
)
def test_what_is_not_there_is_refused(asked: Any, environ: dict[str, str], error: str) -> None:
    with pytest.raises(ConfigError, match=literally(error)):
        places(*asked, **environ)
