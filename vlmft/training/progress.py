"""The progress bar, or a line now and then where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0


class TrainingProgress:
    """Shows loss, learning rate, rates and the wait for data of a run of `num_steps` steps."""

    def __init__(self, num_steps: int, console: Console) -> None:
        self.num_steps = num_steps
        self.console = console
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("training", total=num_steps, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, figures: dict[str, float]) -> None:
        """Show one log line of the trainer; lines without a loss are passed over."""
        if "loss" not in figures:
            return
        step = int(figures["step"])
        reward = f"reward {figures['reward']:.3f}  " if "reward" in figures else ""  # the loss says little beside it
        text = (
            f"{reward}loss {figures['loss']:.4f}  lr {figures['learning_rate']:.2e}  "
            f"{figures['samples_per_s']:.1f} samples/s"
        )
        if figures["supervised_tokens_per_s"]:
            text += f"  {figures['supervised_tokens_per_s']:.0f} supervised tokens/s"
        if figures.get("useful_tflops"):
            text += f"  {figures['useful_tflops']:.3g} TFLOP/s"
        if figures.get("mfu"):
            text += f" ({figures['mfu']:.0%} MFU)"
        if figures.get("data_wait", 0) >= 0.05:
            text += f"  {figures['data_wait']:.0%} waiting for data"
        self._bar.update(self._task, completed=step, figures=text)
        if not self.console.is_terminal and (
            step == self.num_steps or time.monotonic() - self._last_line >= _LINE_EVERY_S
        ):
            self._last_line = time.monotonic()
            self.console.print(f"step {step}/{self.num_steps}  {text}")


@contextmanager
def counting(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show how many things of how many are done, for the function that is given, while the body runs."""
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task = bar.add_task(what, total=None)
    last_line = time.monotonic()

    def show(done: int, of: int) -> None:
        nonlocal last_line
        bar.update(task, completed=done, total=of)
        if not console.is_terminal and (done == of or time.monotonic() - last_line >= _LINE_EVERY_S):
            last_line = time.monotonic()
            console.print(f"{what} {done}/{of}")

    with bar:
        yield show
