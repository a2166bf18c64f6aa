"""Make the indexes of many files, on all cores."""

import logging
import multiprocessing
import os
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from vlmft.data.sources.index import IndexOf
from vlmft.data.sources.parsed import counted
from vlmft.errors import DataError

logger = logging.getLogger(__name__)

WORTH_PROCESSES = 32 * 2**20
"""Bytes of files that take longer to read through here, at some 100 MB a second, than processes to start."""

_MAX_PROCESSES = 16
_LISTED = 20  # damaged files named at once


def make_all(indexes: Sequence[IndexOf]) -> None:
    """Make those indexes that are not in the cache folder yet.

    Ranks that do this at the same time share the work: each goes through the files in an order of its own, and
    leaves out what it finds made.

    Raises:
        DataError: files cannot be used; they are listed.
        StorageError: an index cannot be kept.
    """
    missing = [of for of in indexes if not of.exists()]
    size = sum(of.path.stat().st_size for of in missing)
    processes = min(cores(), len(missing), _MAX_PROCESSES)
    if size >= WORTH_PROCESSES:
        logger.info("indexing %s (%.1f GB), which is done once", counted(len(missing), "file"), size / 1e9)
    random.Random(os.getpid()).shuffle(missing)
    if size < WORTH_PROCESSES or processes < 2:
        found = [_problem(of) for of in missing]
    else:
        # Forks, as loader processes are: new ones would run a user's script again that has no `if __name__ ...`.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
            found = [*pool.map(_problem, missing)]
    problems = sorted(problem for problem in found if problem)
    more = len(problems) - _LISTED
    DataError.raise_if(problems[:_LISTED] + [f"{more} more files cannot be used"] * (more > 0))


def _problem(of: IndexOf) -> str:
    """Make an index that does not exist; returns what is wrong with its file."""
    try:
        if not of.exists():
            of.get()
    except DataError as error:
        return str(error)
    return ""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
