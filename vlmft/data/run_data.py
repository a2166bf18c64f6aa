"""The data of one run: what it trains on, and what is held out of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlmft.data.check import CheckReport, check
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.data.spec import DatasetSpec, Rows, Source
from vlmft.data.split import refuse_overlap, select_rows, split_holdout, subset
from vlmft.errors import DataError
from vlmft.types import Sample


@dataclass(frozen=True)
class RunData:
    """Training stream and held-out rows; `check` makes sure that they do not overlap."""

    mixture: Mixture
    held_out: tuple[tuple[Source, Rows], ...]

    def check(self, budget_s: float, max_bad_samples: int) -> CheckReport:
        """Check samples for up to `budget_s` seconds, the held-out ones first; returns what was covered.

        Before, and whatever time it takes: no held-out sample may also be trained on.

        Raises:
            DataError: a held-out sample is also trained on; or more than `max_bad_samples` training samples, or any
                held-out sample, cannot be used. All are listed.
        """
        refuse_overlap(self.mixture.visited, self.held_out)
        end = time.monotonic() + budget_s
        held_out = check(self.held_out, budget_s)
        trained = check(self.mixture.visited, end - time.monotonic(), limit=max_bad_samples + 20)
        problems = [*held_out.problems]
        if len(trained.problems) > max_bad_samples:
            problems += trained.problems
        if held_out.problems and max_bad_samples:
            problems.append(
                f"{len(held_out.problems)} of these are held out: max_bad_samples leaves out training samples, never "
                "those that a run is judged by; mend them, or take them out of the data"
            )
        DataError.raise_if(problems)
        return CheckReport(
            problems=trained.problems,
            checked=held_out.checked + trained.checked,
            total=held_out.total + trained.total,
            complete=held_out.complete and trained.complete,
        )

    @property
    def num_held_out(self) -> int:
        """Samples that are kept out of training."""
        return sum(len(rows) for _, rows in self.held_out)

    def held_out_samples(self, at_most: int | None) -> list[Sample]:
        """Read the held-out samples, at most so many of each entry in proportion, the same in every run."""
        total = self.num_held_out
        if at_most is None or total <= at_most:
            shares = [len(rows) for _, rows in self.held_out]
        else:
            shares = [max(1, round(at_most * len(rows) / total)) for _, rows in self.held_out]
        return [
            source[int(row)]
            for (source, rows), share in zip(self.held_out, shares, strict=True)
            for row in subset(source, rows, share)
        ]

    def fingerprints(self) -> dict[str, dict[str, str | int]]:
        """Each training entry's data file by hash and number of rows."""
        return {part.source.name: part.source.fingerprint() for part in self.mixture.parts}

    def held_out_fingerprints(self) -> dict[str, dict[str, str | int]]:
        """The same of each file that held-out samples come from."""
        return {source.name: source.fingerprint() for source, _ in self.held_out}


def open_run_data(
    dataset: Mapping[str, DatasetSpec],
    eval_dataset: Mapping[str, DatasetSpec],
    holdout: float,
    seed: int,
    temperature: float | None = None,
) -> RunData:
    """Open every entry and split off what is held out.

    Held out is `eval_dataset` where it is given; else, for each training entry, its own held-out file, or a share
    `holdout` of its rows, drawn by hash of the sample's id.

    Raises:
        ConfigError: a share leaves nothing to train on or nothing held out.
        DataError: a file cannot be used.
    """
    parts: list[MixturePart] = []
    held_out: list[tuple[Source, Rows]] = []
    problems: list[str] = []
    for name, spec in dataset.items():
        try:
            source = spec.open(name)
            own_eval = None if eval_dataset else spec.open_eval(name)
        except DataError as error:  # one bad entry must not hide the next
            problems += error.problems
            continue
        rows: Rows = np.arange(len(source))
        if own_eval is not None:
            held_out.append((own_eval, np.arange(len(own_eval))))
        elif holdout and not eval_dataset:
            rows, held = split_holdout(source, holdout)
            held_out.append((source, held))
        parts.append(MixturePart(source, spec.visits, rows, spec.weight))
    for name, spec in eval_dataset.items():
        try:
            source = spec.open(name)
        except DataError as error:
            problems += error.problems
            continue
        held_out.append((source, select_rows(source, np.arange(len(source)), spec.factor)))
    DataError.raise_if(problems)
    return RunData(Mixture(parts, seed, temperature), tuple(held_out))
