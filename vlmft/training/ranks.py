"""This process's place among the ranks, from the environment that its launcher set."""

import os


def world_size() -> int:
    """All ranks of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among all ranks; 0 writes and prints."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its machine: the number of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))
