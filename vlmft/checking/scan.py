"""A scan: which samples a run would touch, and all of them examined."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from vlmft.checking.counts import Counts, Table, Target
from vlmft.checking.examine import Counter, Examiner, Problem
from vlmft.checking.workers import work_through
from vlmft.data.problems import SampleError
from vlmft.data.run_data import RunData
from vlmft.data.split import refuse_overlap
from vlmft.errors import DataError
from vlmft.evaluation import Generate

if TYPE_CHECKING:
    from vlmft.validate import ValidateConfig


class Scan:
    """Every sample that the run of `config` would touch: what it trains on, then what is held out, as the files go.

    Raises:
        ConfigError: the model's files cannot be used.
    """

    def __init__(self, config: "ValidateConfig", data: RunData) -> None:
        self.config, self.data = config, data
        self.targets = _targets(data, _judged(config, data))
        self.num_samples = self.targets[-1].stop
        self.counts = Counts(self.num_samples)
        counter = _load_counter(config) if config.tokens else None
        self.examiner = Examiner(self.targets, self.counts, config.model.media_rules, counter, config.decode)

    @property
    def table(self) -> Table:
        """What has been found out about each sample."""
        return self.counts.table

    def overlap(self) -> list[Problem]:
        """What is said where a held-out sample is trained on, too."""
        try:
            refuse_overlap(self.data.mixture.visited, self.data.held_out)
        except DataError as error:
            return [Problem("", "", "", "overlap", problem) for problem in error.problems]
        return []

    def run(self) -> Iterator[tuple[int, list[Problem]]]:
        """Examine all samples; each time some are done, give how many are, and further problems in the files' order.

        Raises:
            InterruptedRunError, PreemptedError: a signal asked to stop.
            VlmftError: something else is wrong that no sample is to blame for.
        """
        timeout_s, workers = self.config.sample_timeout_s, self.config.num_workers or _cores()
        lost = partial(self.examiner.lost, seconds=timeout_s)
        with contextlib.closing(work_through(self.examiner, lost, self.num_samples, workers, timeout_s)) as found:
            yield from found


def _load_counter(config: "ValidateConfig") -> Counter:
    from vlmft import assembly

    assembly.quiet_libraries()
    trainer, processor = config.trainer, config.model.load_processor()
    return Counter(config.model, processor, config.batching.max_tokens, trainer.learns, trainer.room)


def _judged(config: "ValidateConfig", data: RunData) -> frozenset[str] | None:
    """The held-out samples that the run would encode, to have the model answer them; None: all."""
    if not isinstance(config.evaluation, Generate):
        return frozenset()
    most = config.evaluation.max_samples
    if most is None or most >= data.num_held_out:
        return None
    try:
        return frozenset(sample.id for sample in data.held_out_samples(most))
    except SampleError:  # the run would not come so far
        return None


def _targets(data: RunData, judged: frozenset[str] | None) -> list[Target]:
    targets: list[Target] = []
    start = 0
    for held_out, pairs in ((False, data.mixture.visited), (True, data.held_out)):
        for source, rows in pairs:
            targets.append(Target(source, rows, start, held_out, judged if held_out else None))
            start = targets[-1].stop
    return targets


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
