"""A run that is killed again and again, against one that is left alone: equal to the bit, and memory stays flat.

The same command is typed twice: once undisturbed, once with a kill at random moments (seeded) and the same command
again, until it is done. Killed are the driver or its rank, by SIGTERM (the run saves and leaves) or SIGKILL (it leaves
as it stands), while loading as well as while training. At the end the saved weights' hashes and every step's loss are
compared, and the resident memory of the undisturbed rank late in its life with that after its warm-up.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from common import provenance, show, write_result

from vlmft.training.commit import newest

STEPS, QUICK_STEPS = 2000, 150
KILLS, QUICK_KILLS = 24, 5
SAVE_EVERY, QUICK_SAVE_EVERY = 50, 20
BOUND_GROWTH = 0.01
VICTIMS = ("driver", "rank")
SIGNALS = (signal.SIGTERM, signal.SIGKILL)
LEFT = {-signal.SIGTERM, -signal.SIGKILL, 75, 128 + signal.SIGKILL, 128 + signal.SIGTERM}
"""Exit codes of a driver that was killed, or whose rank was. Anything else but 0 is a fault."""
WARM_UP = 0.25
"""Share of the steps after which memory is taken to have settled."""
PATIENCE_S = 180.0


@dataclass
class Memory:
    """Resident bytes of a rank, by the step it had finished."""

    samples: list[tuple[int, int]] = field(default_factory=list)

    def growth(self, steps: int) -> dict[str, Any]:
        """Compare the median over the last tenth of the steps with that over the tenth after the warm-up."""
        early = self._between(WARM_UP * steps, (WARM_UP + 0.1) * steps)
        late = self._between(0.9 * steps, steps)
        return {
            "after_warm_up_mib": early / 2**20,
            "at_end_mib": late / 2**20,
            "growth": late / early - 1,
            "samples": len(self.samples),
        }

    def _between(self, first: float, last: float) -> float:
        return statistics.median(size for step, size in self.samples if first <= step <= last)


@dataclass
class Kill:
    """One kill and what it cost."""

    victim: str
    signal: str
    after_s: float
    exit_code: int
    trained: int
    """Steps that this life trained."""
    wasted: int
    """Steps of these that the next life trains again."""


def main() -> int:
    """Measure, print, write benchmarks/results/soak.json; return 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help=f"optimiser steps (default: {STEPS})")
    parser.add_argument("--kills", type=int, help=f"kills at most (default: {KILLS})")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, victims and signals (default: 0)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, and no result file")
    options = parser.parse_args()
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    kills = options.kills or (QUICK_KILLS if options.quick else KILLS)
    save_every = QUICK_SAVE_EVERY if options.quick else SAVE_EVERY
    made = provenance()
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder), steps, kills, save_every, options.seed)
    report(figures)
    if not options.quick:
        write_result("soak", {"command": " ".join(["python benchmarks/soak.py", *sys.argv[1:]])} | figures, made)
    kept = figures["weights_equal"] and figures["losses_equal"] and figures["memory"]["growth"] < BOUND_GROWTH
    return int(not kept)


def soak(folder: Path, steps: int, kills: int, save_every: int, seed: int) -> dict[str, Any]:
    """Train once in peace and once under fire; return what came of it."""
    calm, stormy = folder / "calm", folder / "stormy"
    words = [f"trainer.max_steps={steps}", f"trainer.save_every={save_every}", "evaluation=none"]
    memory = Memory()
    started = time.monotonic()
    undisturbed = Life(calm, words)
    with undisturbed.watched(memory):
        code = undisturbed.wait()
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with exit code {code}: {undisturbed.said()}")
    undisturbed_s = time.monotonic() - started
    loading_s = undisturbed_s - training_seconds(calm)
    started = time.monotonic()
    lives, done = storm(stormy, words, random.Random(seed), kills, loading_s, training_seconds(calm) / kills)
    return {
        "steps": steps,
        "save_every": save_every,
        "seed": seed,
        "kills": len(done),
        "kills_by_kind": dict(Counter(f"{kill.signal} to the {kill.victim}" for kill in done)),
        "kills_before_a_first_step": sum(kill.trained == 0 for kill in done),
        "lives": lives,
        "exit_codes_of_killed_drivers": dict(Counter(str(kill.exit_code) for kill in done)),
        "wasted_steps": sum(kill.wasted for kill in done),
        "wasted_steps_by_sigterm": sum(kill.wasted for kill in done if kill.signal == "SIGTERM"),
        "undisturbed_s": undisturbed_s,
        "disturbed_s": time.monotonic() - started,
        "weights_equal": weights(calm) == weights(stormy),
        "losses_equal": losses(calm) == losses(stormy) and len(losses(calm)) == steps,
        "memory": memory.growth(steps) | {"bound_growth": BOUND_GROWTH},
        "each_kill": [vars(kill) for kill in done],
    }


def storm(
    run: Path, words: list[str], chance: random.Random, kills: int, loading_s: float, training_s: float
) -> tuple[int, list[Kill]]:
    """Type the command until it ends by itself, with `kills` kills at most; return the number of lives, and the kills.

    Raises:
        RuntimeError: a life ended as no kill explains, or does not end.
    """
    done: list[Kill] = []
    kept = 0
    while True:
        unchanged = metrics_file(run)
        life = Life(run, words)
        if len(done) == kills:
            code = life.wait()
            if code != 0:
                raise RuntimeError(f"the last life ended with exit code {code}: {life.said()}")
            return len(done) + 1, done
        victim, number = chance.choice(VICTIMS), chance.choice(SIGNALS)
        # One life in four ends while it loads, the others at any moment of their share of the training.
        while_loading = chance.random() < 0.25
        after_s = chance.uniform(0, loading_s if while_loading else training_s)
        if not while_loading:
            life.wait_for_a_step(unchanged)
        if life.ends_within(after_s):
            if life.code != 0:
                raise RuntimeError(f"a life ended by itself with exit code {life.code}: {life.said()}")
            return len(done) + 1, done
        aimed_at = life.kill(victim, number)
        code = life.wait()
        if code == 0:  # it was done before the signal had an effect
            return len(done) + 1, done
        if code not in LEFT:
            raise RuntimeError(f"{number.name} to the {aimed_at}: exit code {code}: {life.said()}")
        before, kept = kept, saved_step(run)
        # A life that ended before its first step may have left the lines of the one before it.
        here = reached(run) if metrics_file(run) != unchanged else before
        done.append(Kill(aimed_at, number.name, after_s, code, trained=here - before, wasted=here - kept))
        print(f"  {done[-1]}", flush=True)


class Life:
    """One start of the command. Its processes are all gone when `wait` returns."""

    def __init__(self, run: Path, words: list[str]) -> None:
        run.parent.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.log = run.parent / f"{run.name}.log"
        command = [sys.executable, "-m", "vlmft.train", f"run.dir={run}", *words]
        environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
        with self.log.open("wb") as log:
            self.driver = subprocess.Popen(command, cwd=run.parent, stdout=log, stderr=log, env=environment)
        self.process = psutil.Process(self.driver.pid)
        self.family: set[psutil.Process] = set()

    @property
    def code(self) -> int | None:
        """The driver's exit code; None while it lives."""
        return self.driver.poll()

    def rank(self) -> psutil.Process | None:
        """The driver's rank, once it is there."""
        with contextlib.suppress(psutil.Error):
            for child in self.process.children():
                if "vlmft.worker" in child.cmdline():
                    return child
        return None

    def wait_for_a_step(self, unchanged: tuple[int, int] | None) -> None:
        """Wait until this life has logged a step, or is over."""
        kept = saved_step(self.run)
        while self.code is None and (metrics_file(self.run) == unchanged or reached(self.run) <= kept):
            time.sleep(0.05)

    def ends_within(self, seconds: float) -> bool:
        """Wait; return whether the driver ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.driver.wait(seconds)
            return True
        return False

    def kill(self, victim: str, number: signal.Signals) -> str:
        """Send a signal to the victim, or to the driver where there is no rank yet; return who got it."""
        with contextlib.suppress(psutil.Error):
            self.family |= set(self.process.children(recursive=True))
        rank = self.rank() if victim == "rank" else None
        with contextlib.suppress(psutil.NoSuchProcess):
            (rank or self.process).send_signal(number)
        return "rank" if rank else "driver"

    def wait(self) -> int:
        """Wait for the driver and all it started; a killed driver's rank saves and leaves by itself."""
        code = self.driver.wait()
        _, alive = psutil.wait_procs(list(self.family), timeout=PATIENCE_S)
        if alive:
            raise RuntimeError(f"{len(alive)} processes of a run are still there {PATIENCE_S:g} s after its driver")
        return code

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2000:]

    @contextlib.contextmanager
    def watched(self, memory: Memory) -> Iterator[None]:
        """Sample the rank's resident memory twice a second while the body runs."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                rank = self.rank()
                with contextlib.suppress(psutil.Error):
                    if rank is not None:
                        memory.samples.append((reached(self.run), rank.memory_info().rss))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def lines(run: Path) -> list[dict[str, Any]]:
    """The finished lines of metrics.jsonl."""
    with contextlib.suppress(FileNotFoundError):
        whole = (run / "metrics.jsonl").read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]
    return []


def reached(run: Path) -> int:
    """The last step that was logged."""
    found = lines(run)
    return int(found[-1]["step"]) if found else 0


def metrics_file(run: Path) -> tuple[int, int] | None:
    """What changes with every line that is written or cut off."""
    with contextlib.suppress(FileNotFoundError):
        found = (run / "metrics.jsonl").stat()
        return found.st_ino, found.st_size
    return None


def saved_step(run: Path) -> int:
    """The step of the newest checkpoint that verifies."""
    committed, _ = newest(run / "checkpoints")
    return committed.step if committed else 0


def training_seconds(run: Path) -> float:
    """From the first logged step to the last."""
    found = lines(run)
    return float(found[-1]["time"] - found[0]["time"])


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every logged step."""
    return [(line["step"], line["loss"]) for line in lines(run) if "loss" in line]


def weights(run: Path) -> dict[str, str]:
    """sha256 of each file of trained weights; there is at least one."""
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (run / "final").glob("*.safetensors")}
    if not found:
        raise RuntimeError(f"{run.name} has saved no weights")
    return found


def report(figures: dict[str, Any]) -> None:
    """Print the table."""
    memory = figures["memory"]
    rows = [
        ("optimiser steps", f"{figures['steps']:,}"),
        ("kills", str(figures["kills"])),
        *((f"  {kind}", str(count)) for kind, count in sorted(figures["kills_by_kind"].items())),
        ("kills while loading", str(figures["kills_before_a_first_step"])),
        ("steps trained twice", str(figures["wasted_steps"])),
        ("  after SIGTERM", str(figures["wasted_steps_by_sigterm"])),
        ("undisturbed, s", f"{figures['undisturbed_s']:.0f}"),
        ("disturbed, s", f"{figures['disturbed_s']:.0f}"),
        ("final weights", "equal to the bit" if figures["weights_equal"] else "DIFFERENT"),
        ("losses", "equal to the bit" if figures["losses_equal"] else "DIFFERENT"),
        ("memory after warm-up, MiB", f"{memory['after_warm_up_mib']:.1f}"),
        ("memory at the end, MiB", f"{memory['at_end_mib']:.1f}"),
        ("growth", f"{memory['growth']:+.2%}"),
    ]
    note = f"resident memory of the undisturbed rank; at most {BOUND_GROWTH:.0%} growth is allowed"
    show(f"soak: a kill every so often, every {figures['save_every']} steps a checkpoint", ("", "found"), rows, [note])


if __name__ == "__main__":
    sys.exit(main())
