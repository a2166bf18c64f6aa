"""A rank's stdout and stderr, which nobody has to read.

What a run prints is for whoever looks on; what counts stands in the run folder. A reader that has gone (`| head`, a
closed terminal) or that has stopped reading (a full pipe) must neither end nor stall days of training, so such lines
are dropped.
"""

import io
import os
import select
import sys
from typing import Any

PATIENCE_S = 5.0
"""How long a line waits for a reader that does not read; the lines after it do not wait, until it reads again."""


def install() -> None:
    """Put such an outlet in place of sys.stdout and sys.stderr."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            raw = Outlet(stream.fileno())
        except (AttributeError, OSError, ValueError):  # no file at all: a test's buffer, or closed from the start
            continue
        stream.flush()
        setattr(sys, name, io.TextIOWrapper(raw, encoding=stream.encoding, errors="replace", write_through=True))


class Outlet(io.RawIOBase):
    """Writes to a file descriptor, as far as anybody takes it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.patience_s = PATIENCE_S

    def fileno(self) -> int:
        """The descriptor written to."""
        return self.descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self.descriptor)

    def writable(self) -> bool:
        """Always: what cannot be written is dropped."""
        return True

    def write(self, data: Any) -> int:
        """Write all of `data`, or drop what nobody takes; either way it counts as written."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            # A pipe is ready when it has room for PIPE_BUF bytes: as many as can be written without waiting.
            if not select.select([], [self.descriptor], [], self.patience_s)[1]:
                self.patience_s = 0.0
                break
            try:
                left = left[os.write(self.descriptor, left[: select.PIPE_BUF]) :]
            except OSError:  # the reader has gone, or the terminal, or the disk is full
                break
            self.patience_s = PATIENCE_S
        return size
