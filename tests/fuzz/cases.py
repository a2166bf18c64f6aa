"""How many cases each fuzz target gets, and what must hold in every one of them."""

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from vlmft.errors import VlmftError

QUICK = {"grammar": 700, "registry text": 200, "registry values": 200, "rows": 300, "files": 100, "pictures": 500}
"""Cases in `make test`: 2,000 together."""
THOROUGH = 5
"""Times as many in `make test-slow`."""

TIMEOUT_S = 30

SIZES = pytest.mark.parametrize("times", [1, pytest.param(THOROUGH, marks=pytest.mark.slow)], ids=lambda n: f"x{n}")


def cases(target: str, times: int) -> Callable[[Any], Any]:
    """Settings of a target; the quick cases are the same in every session, the thorough ones are not."""
    return settings(
        max_examples=QUICK[target] * times,
        derandomize=times == 1,
        database=None,
        deadline=None,  # machines are shared; what hangs is found by `only_own_errors`
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
        print_blob=True,
    )


@contextmanager
def only_own_errors() -> Iterator[None]:
    """Let vlmft's own errors pass; fail on any other, on a warning, and on what takes longer than `TIMEOUT_S`."""

    def alarm(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"is still busy after {TIMEOUT_S} s")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(TIMEOUT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except VlmftError as error:
        assert error.problems and all(problem.encode() for problem in error.problems)  # result.json can hold it
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
