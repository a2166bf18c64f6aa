"""This process's place among the ranks, from the environment that its launcher set."""

import atexit
import os
import sys
from typing import NoReturn


def world_size() -> int:
    """All ranks of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among all ranks; 0 writes and prints."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its machine: the number of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def leave(code: int) -> NoReturn:
    """End this rank's process.

    Of several ranks, none goes through the interpreter's own way out: a process group has threads that it does not
    wait for, and now and then one of them aborts there (exit 134, after everything was done). What libraries have
    registered for the end is run before, unless the rank has failed: then it might wait for a peer that is gone.
    """
    if world_size() == 1:
        sys.exit(code)
    try:
        if code == 0:
            atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
