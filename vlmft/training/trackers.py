"""Trackers: whatever becomes of one, the run goes on without it."""

import logging
import os
import re
import threading
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from vlmft.errors import ConfigError, VlmftError
from vlmft.training.specs import Logger

MLFLOW_QUEUE = "mlflow.utils.async_logging.async_logging_queue"
"""The logger that tells what mlflow's threads could not send; nothing is raised for it."""

_MAX_REASON = 500  # characters
_LEAST_SECRET = 8  # characters; a shorter value ("true", "0") would blot out ordinary words
_CREDENTIAL = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_GIVEN_AWAY = (
    re.compile(r"(?<=://)[^\s/]+(?=@)"),  # https://user:password@host
    re.compile(r"(?<=\?)[^\s'\"]*=[^\s'\"]*"),  # https://host/path?key=value
    re.compile(r"(?<=\bBearer )\S+", re.IGNORECASE),
    re.compile(r"(?:(?<=api.key)|(?<=token)|(?<=secret)|(?<=password))['\"]?\s*[=:]\s*\S+", re.IGNORECASE),
)


def tracker_callbacks(logger: Logger, run_folder: Path, tb_folder: Path) -> "list[Guard]":
    """A guarded callback for each tracker; made before weights are loaded, so that a missing one is found at once.

    Raises:
        ConfigError: a name is unknown to transformers, or its package is not installed.
    """
    guards: list[Guard] = []
    problems: list[str] = []
    for name in logger.report_to:
        try:
            (kind,) = get_reporting_integration_callbacks([name])
            guards.append(guarded(name, kind()))
        except (ValueError, RuntimeError, ImportError) as error:
            problems.append(f"logger.report_to: {name}: {error}")
    ConfigError.raise_if(problems)
    for guard in guards:
        if guard.name == "tensorboard":
            guard.tracker.logging_dir = str(tb_folder)
            _hush_writer_thread()
        elif guard.name == "wandb":
            # Its settings files are found without this variable: those of the current folder still hold.
            os.environ.setdefault("WANDB_DIR", str(run_folder))
        elif guard.name == "mlflow":
            # Each attempt to connect would be a warning, with the whole address.
            logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
            logging.getLogger(MLFLOW_QUEUE).addFilter(guard.heard)
    return guards


def guarded(name: str, tracker: TrainerCallback) -> "Guard":
    """`tracker` behind a guard, whose class is its own: Trainer warns where two callbacks share one."""
    kind: type[Guard] = type(f"Guarded{type(tracker).__name__}", (Guard,), {})
    return kind(name, tracker)


class Guard(TrainerCallback):
    """Hands every event on to a tracker until one fails: that gives a warning, and the tracker gets no further event.

    vlmft's own errors pass: a signal's handler may raise one in the middle of an event. The end of training is held
    back until `close`, as scores follow it: mlflow and trackio would begin a second run for them.
    """

    def __init__(self, name: str, tracker: TrainerCallback) -> None:
        self.name = name
        self.tracker = tracker
        self.failed = False
        self._end: Callable[[], Any] | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Tell the tracker that training has ended, if it has; nothing follows."""
        if self._end is not None:
            self._end()

    def heard(self, record: logging.LogRecord) -> bool:
        """A filter for what the tracker's client logs: an error counts as a failed event, and is not printed itself."""
        if record.levelno < logging.ERROR:
            return True
        self._give_up(one_line(record.getMessage()))
        return False

    def _hand_on(self, event: str, *args: Any, **kwargs: Any) -> Any:
        if self.failed:
            return None
        try:
            return getattr(self.tracker, event)(*args, **kwargs)
        except Exception as error:
            ours = _ours(error)
            if ours is not None:
                raise ours from None
            said = one_line(str(error))
            self._give_up(f"{type(error).__name__}: {said}" if said else type(error).__name__)
            return None

    def _hold_back(self, event: str, *args: Any, **kwargs: Any) -> None:
        self._end = partial(self._hand_on, event, *args, **kwargs)

    def _give_up(self, reason: str) -> None:
        with self._lock:
            first, self.failed = not self.failed, True
        if first:
            logging.getLogger(__name__).warning(
                "%s failed and gets nothing more of this run: %s. Training goes on; metrics.jsonl has every figure",
                self.name,
                reason,
            )


for _event in (name for name in dir(TrainerCallback) if name.startswith("on_")):
    setattr(Guard, _event, partialmethod(Guard._hold_back if _event == "on_train_end" else Guard._hand_on, _event))


def one_line(said: str) -> str:
    """The first line, shortened, without the credentials that an address or the environment holds."""
    line = next((line.strip() for line in said.splitlines() if line.strip()), "")
    secrets = [v for k, v in os.environ.items() if _CREDENTIAL.search(k) and len(v) >= _LEAST_SECRET]
    for secret in sorted(secrets, key=len, reverse=True):
        line = line.replace(secret, "***")
    for pattern in _GIVEN_AWAY:
        line = pattern.sub("***", line)
    return line.rstrip(".") if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]} ..."


def _ours(error: BaseException) -> VlmftError | None:
    """The error of vlmft's own that a tracker's client has wrapped in one of its own, if any."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, VlmftError):
            return link
        link = link.__cause__ or link.__context__
    return None


def _hush_writer_thread() -> None:
    """Print no traceback of TensorBoard's writer thread, whose error the next event raises again."""
    printed = threading.excepthook

    def hook(args: Any) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            printed(args)

    threading.excepthook = hook
