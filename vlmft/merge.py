"""Merge what a run trained into its base: `python -m vlmft.merge run=runs/x out=merged/`.

This process is the driver: it checks what can be checked without a model, and never imports torch. One child writes
the folder beside `out`; another, which loads it with plain transformers, compares its answers with the trained
model's. Only then is it given the name `out`.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from pydantic import Field

from vlmft.config.app import Composition, run_app
from vlmft.config.spec import Spec
from vlmft.errors import ConfigError, DifferentAnswersError, PreemptedError

SHUTDOWN_TIMEOUT_S = 10.0


class MergeConfig(Spec):
    """Every choice of a merge; conf/merge.yaml holds the values."""

    run: Path = Field(description="the run's folder, or its final/")
    out: Path = Field(description="the folder to write; it does not exist, or is empty")
    samples: int = Field(ge=0, description="samples that both models answer; 0: none")
    max_new_tokens: int = Field(ge=1, description="tokens of an answer, at most")
    max_shard_size: str = Field(pattern=r"^\d+[KMG]B$", description="size of a weight file, at most, such as 5GB")
    device: Literal["auto", "cpu", "cuda"] = Field(description="where the models are put")
    base_model: str | None = Field(description="the base's id on the hub, for the card; null: model.path, if it is one")
    trust_remote_code: bool = Field(description="run the base's own Python code, where the run did")


def main() -> NoReturn:
    """The command."""
    sys.exit(run_app("merge", MergeConfig, merge))


def merge(config: MergeConfig, composition: Composition) -> int:
    """Carry out one merge; return its exit code."""
    from vlmft.summary import console
    from vlmft.training import commit

    final, out = finished(config.run), free(config.out)
    with begun(out) as made, _stoppable(), tempfile.TemporaryDirectory(prefix="vlmft-merge-") as between:
        request = Path(between) / "request.json"
        told = config.model_copy(update={"run": final, "out": made.partial})
        request.write_text(told.model_dump_json(), encoding="utf-8")
        for module in ("vlmft.merging.write", "vlmft.merging.check"):
            code = run_child(module, request)
            if code:
                made.keep = code == DifferentAnswersError.exit_code
                rest = f"; what was written is left in {made.partial}" if made.keep else ""
                sys.stderr.write(f"error: nothing was written to {out}{rest}\n")
                return code
        made.lock_file.unlink()
        commit.publish(out)
        made.keep = True
    console().print(f"merged   {out}")
    return 0


@dataclass
class Begun:
    """A merge that has begun."""

    partial: Path
    """The folder that is written, beside its place."""
    lock_file: Path
    keep: bool = False
    """Whether the folder stays when the merge ends."""


@contextlib.contextmanager
def begun(out: Path) -> Iterator[Begun]:
    """Hold the place of a merge into `out` while the body runs: the empty folder beside it, with its lock in it.

    What an earlier merge left there is removed; so is what this one leaves, unless it is to be kept.

    Raises:
        ConfigError: another merge is writing there, or has just ended.
        StorageError: the folder cannot be made.
    """
    from vlmft import lock
    from vlmft.training import commit

    partial = commit.partial_folder(out)
    made = Begun(partial, lock.lock_file(partial, lock.MERGE))
    with lock.held(partial, lock.MERGE, f"out={out}: {partial}"):
        if not made.lock_file.exists():  # it was the last thing that another merge removed
            raise ConfigError(f"out={out}: another merge into it has ended just now; start this one again")
        try:
            free(out)
            for left in partial.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left != made.lock_file:
                    left.unlink()
            yield made
        finally:
            made.lock_file.unlink(missing_ok=True)
            if not made.keep:
                shutil.rmtree(partial, ignore_errors=True)


def run_child(module: str, request: Path) -> int:
    """Run one step of the merge in a process of its own; return its exit code. An error has been shown then."""
    from vlmft import launch

    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    command = [sys.executable, "-m", module, str(request)]
    ended = launch.run_ranks(command, 1, threads, shutdown_timeout_s=SHUTDOWN_TIMEOUT_S)
    if ended.exit_code == PreemptedError.exit_code or ended.exit_code > 128 + signal.SIGINT:  # it could not say why
        sys.stderr.write(f"error: {ended.reason.replace('rank 0', module)}\n")
    return ended.exit_code


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM an error while the body runs, so that what was begun is cleared away; children hear it first."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise PreemptedError("stopped by SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def finished(path: Path) -> Path:
    """The `final` folder of a run that has ended well, or a `final` folder that stands alone.

    Raises:
        ConfigError: there is no such folder, no saved model in it, or the run is not finished.
    """
    from vlmft.run_folder import DONE, RunFolder

    path = path.expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(f"run={path}: there is no such folder; give a run folder, or its final/")
    run = RunFolder(path.parent if path.name == "final" else path)
    state = run.read_result().get("state")
    if state not in (None, DONE):
        raise ConfigError(
            f"run={path}: the run is not finished (result.json says {state}); go on with its own command and "
            f"run.dir={run.path}, and merge it then"
        )
    final = next((folder for folder in (path, run.final) if (folder / "vlmft.json").is_file()), None)
    if final is None:
        raise ConfigError(f"run={path}: holds no saved model; expected a run folder, or its final/ with a vlmft.json")
    return final


def free(out: Path) -> Path:
    """`out`, absolute, where nothing is lost by writing there.

    Raises:
        ConfigError: it is a file, or a folder that is not empty.
    """
    out = out.expanduser().absolute()
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ConfigError(f"out={out}: is a file or a link, not a folder; choose another name")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"out={out}: is not empty, and nothing is overwritten; choose another name, or empty it")
    return out


if __name__ == "__main__":
    main()
