"""What a scan leaves: problems.jsonl as they are found, tables on the screen, summary.json, and the verdict."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vlmft.checking.examine import Problem
from vlmft.checking.figures import Figures, figures_of, limits_of, plain
from vlmft.checking.scan import Scan
from vlmft.checking.tables import mix_table, token_table
from vlmft.errors import StorageError
from vlmft.run_folder import MetricsWriter
from vlmft.screen import console
from vlmft.training.step_plan import StepPlan

if TYPE_CHECKING:
    from vlmft.validate import ValidateConfig


class Report:
    """Files and screen of one scan.

    Args:
        folder: where the files go; those of an earlier scan are replaced.
        show: problems on the screen, at most; None: all.

    Raises:
        StorageError: the folder cannot be written.
    """

    def __init__(self, folder: Path, show: int | None) -> None:
        self.problems, self.summary = folder / "problems.jsonl", folder / "summary.json"
        self.show = show
        self.screen = console()
        self.kinds: Counter[str] = Counter()
        self.since = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for earlier in (self.problems, self.summary):
                earlier.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"out={folder}: cannot be written: {error.strerror}") from error
        self._writer = MetricsWriter(self.problems)
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_progress()
        self._writer.close()

    def found(self, problems: Sequence[Problem]) -> None:
        """List problems in the file, and on the screen as long as there is room. Raises `StorageError`."""
        for problem in problems:
            if self.show is None or self.kinds.total() < self.show:
                self.screen.print(problem.message, markup=False)
            self.kinds[problem.kind] += 1
            self._writer.append(problem.as_json())

    def progress(self, done: int, total: int) -> None:
        """Show, in a terminal, how many samples are done."""
        if not self.screen.is_terminal:
            return
        if self._bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("examining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            # Without its thread: processes are forked in between.
            bar = Progress(*columns, console=self.screen, auto_refresh=False)
            bar.start()
            self._bar = (bar, bar.add_task("examining", total=total))
        bar, task = self._bar
        bar.update(task, completed=done, refresh=True)

    def finish(self, config: "ValidateConfig", scan: Scan, ranks: int) -> list[str]:
        """Show the figures and write summary.json; return why a run would not start, or would stop for its data.

        Raises:
            StorageError: the file cannot be written.
        """
        self._end_progress()
        figures = figures_of(scan.table, scan.targets, scan.data.mixture.shares)
        trainer, a_step = config.trainer, config.global_batch_size
        plan = StepPlan.derive(len(scan.data.mixture), a_step, trainer.epochs, trainer.max_steps, ranks)
        reasons = self._reasons(config, figures)
        values = {
            "exit_code": 2 if reasons else 0,
            "reasons": reasons,
            "samples": scan.num_samples,
            "seconds": round(time.monotonic() - self.since, 3),
            "tokens": config.tokens,
            "decode": config.decode,
            "problems": dict(self.kinds),
            "entries": {entry.name: plain(entry) for entry in figures.trained},
            "held_out": {entry.name: plain(entry) for entry in figures.held_out},
            "total": plain(figures.total),
            "repeated": plain(figures.repeated_pairs),
            "steps": {"samples_a_pass": plan.num_samples, "a_pass": plan.num_samples / a_step, "run": plan.num_steps},
            "limits": limits_of(config, figures),
        }
        self._write_summary(values)
        steps = f"steps    {plan.num_samples / a_step:,.2f} a pass; {plan}"
        self._show(figures, [steps, *_limit_lines(values["limits"])])
        return reasons

    def _reasons(self, config: "ValidateConfig", figures: Figures) -> list[str]:
        reasons = []
        bad, allowed = figures.total.bad, config.max_bad_samples
        if bad > allowed:
            reasons.append(
                f"{bad} of {figures.total.samples} training samples cannot be used, max_bad_samples={allowed}; mend "
                f"what {self.problems} lists, or leave them out with max_bad_samples={bad}"
            )
        if held_out := sum(entry.bad for entry in figures.held_out):
            reasons.append(f"{held_out} held-out samples cannot be used; mend what {self.problems} lists")
        if self.kinds["overlap"]:
            reasons.append(f"held-out samples are also trained on; mend what {self.problems} lists")
        return reasons

    def _show(self, figures: Figures, lines: list[str]) -> None:
        if self.show is not None and self.kinds.total() > self.show:
            self.screen.print(f"... and {self.kinds.total() - self.show} more", markup=False)
        self.screen.print(mix_table(figures))
        if tokens := token_table(figures):
            self.screen.print(tokens)
        if figures.repeated_pairs:
            pairs = ", ".join(f"{later} = {earlier}" for later, earlier in figures.repeated_pairs)
            more = ", ..." if figures.total.repeated > len(figures.repeated_pairs) else ""
            lines.append(f"repeated {figures.total.repeated} samples: {pairs}{more}")
        if self.kinds:
            counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
            lines.append(f"problems {self.problems} ({counts})")
        for line in [*lines, f"summary  {self.summary}"]:
            self.screen.print(line, markup=False)

    def _write_summary(self, values: dict[str, Any]) -> None:
        text = json.dumps(values, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
        try:
            self.summary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write {self.summary}: {error.strerror}") from error

    def _end_progress(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None


def _limit_lines(limits: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"limits   {limit['over']} samples exceed {key}={limit['is']}; {limit['fits_all']} would take all of them"
        for key, limit in limits.items()
        if limit["over"]
    ]
