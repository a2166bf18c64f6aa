"""A wish to stop, from a signal."""

import signal
import time
from dataclasses import dataclass
from types import FrameType

from vlmft.errors import InterruptedRunError, PreemptedError

ECHO_S = 0.5
"""Signals closer together than this are one; `launch.ECHO_S` on the driver's side."""


@dataclass
class StopRequest:
    """Collects signals. While training it waits for the end of the step, so that all ranks stop at the same one."""

    deferred: bool = False
    ending: bool = False
    """The process is on its way out already: a signal changes nothing any more."""
    reason: str = ""
    interrupted: bool = False
    _since: float = 0.0

    def install(self) -> None:
        """Catch SIGTERM, SIGUSR1 (leave the machine) and SIGINT (the user) from now on."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def obey(self) -> None:
        """Stop here if a signal came: Python drops what a handler raises inside some destructors and callbacks."""
        if self.reason and not self.deferred:
            self.stop_at("at once")

    def stop_at(self, where: str) -> None:
        """Raise what the signal asked for."""
        kind = InterruptedRunError if self.interrupted else PreemptedError
        raise kind(f"{self.reason or 'another rank was asked to stop'}; stopped {where}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.ending:
            return
        # `timeout` and cluster managers signal a process and then its whole group: one wish, heard twice.
        echo = bool(self.reason) and time.monotonic() - self._since < ECHO_S
        again = bool(self.reason) and not echo
        self._since = time.monotonic()
        self.reason = f"{signal.Signals(number).name} received"
        self.interrupted = number == signal.SIGINT
        if again or not (self.deferred or echo):
            self.stop_at("at once")
