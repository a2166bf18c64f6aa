"""How a rank's process ends."""

import os
import subprocess
import sys

import pytest

# What a process group's threads do to a process now and then, made certain: the interpreter's way out aborts.
ABORTS_ON_THE_WAY_OUT = """
import atexit, os, sys
from vlmft.training.ranks import leave

class Thread:
    def __del__(self, abort=os.abort):
        abort()

thread = Thread()
atexit.register(print, "asked")
print("done")
leave(int(sys.argv[1]))
"""


def leave(code: int, ranks: int) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-c", ABORTS_ON_THE_WAY_OUT, str(code)]
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": str(ranks)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("code", "said"), [(0, "done\nasked\n"), (75, "done\n")])
def test_one_of_several_goes_without_the_interpreters_way_out(code: int, said: str) -> None:
    left = leave(code, ranks=2)
    assert (left.returncode, left.stdout) == (code, said)


def test_one_alone_goes_as_any_program_does() -> None:
    assert leave(0, ranks=1).returncode < 0
