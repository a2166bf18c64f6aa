"""Look at the data before a run does: every row's structure first, then every medium, within a given time.

Pictures are decoded; of a video its container is read, and its frames when it is trained on.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlmft.data.hashing import id_hashes, mix, salt
from vlmft.data.media.image import open_image
from vlmft.data.media.video import probe_video
from vlmft.data.problems import SampleError, naming_sample
from vlmft.data.spec import Rows, Source
from vlmft.errors import DataError
from vlmft.types import Image, Media, Sample

_STRIDE = 64  # samples between two looks at the clock

# Only decoding lets other threads run. On 2 cores, 72 JPEGs of 1080p take 1.14 s one by one and 0.40 s on threads;
# 6,600 PNGs of 56 px take 0.76 s one by one and 1.9 s on threads.
_WORTH_A_THREAD = 64 * 1024  # bytes


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    `problems` has one entry a bad sample, in the order of the files. Of `total` samples, `parsed` had their
    structure checked, and `checked` their media read as well; `complete` means that no sample was left out.
    """

    problems: list[str]
    checked: int
    total: int
    complete: bool
    parsed: int = 0


def check(sources: Sequence[tuple[Source, Rows]], budget_s: float, limit: int = 20) -> CheckReport:
    """Check samples until `budget_s` seconds are used up or `limit` bad ones are found; 0 checks nothing.

    Samples are taken in the order of their ids' hashes, so what time allows is spread evenly over the files.
    A problem reads as it would when the sample is met in training.
    """
    total = sum(len(rows) for _, rows in sources)
    if budget_s <= 0 or not total:
        return CheckReport([], 0, total, total == 0)
    run = _Check(sources, time.monotonic() + budget_s, limit)
    parsed = run.structure()
    checked = run.media() if parsed == total else 0
    problems = [text for _, text in sorted(run.bad.items())]
    complete = checked == total and len(problems) <= limit
    return CheckReport(problems[:limit], checked, total, complete, parsed)


class _Check:
    def __init__(self, sources: Sequence[tuple[Source, Rows]], end: float, limit: int) -> None:
        self.sources = [source for source, _ in sources]
        self.end, self.limit = end, limit
        self.bad: dict[tuple[int, int], str] = {}
        # A damaged picture may belong to many samples, but need not be decoded for each.
        self.media_problems: dict[Path, str | None] = {}
        source = np.repeat(np.arange(len(sources)), [len(rows) for _, rows in sources])
        row = np.concatenate([np.asarray(rows, dtype=np.int64) for _, rows in sources])
        order = np.argsort(mix(np.concatenate([id_hashes(*pair) for pair in sources]), salt("check")), kind="stable")
        self.where = np.stack([source[order], row[order]], axis=1)

    def structure(self) -> int:
        """Check the rows themselves; return how many."""
        for done in range(0, len(self.where), _STRIDE):
            if self._is_over():
                return done
            for index, row in self.where[done : done + _STRIDE].tolist():
                self._note(index, row, self._structure_problem(index, row))
        return len(self.where)

    def media(self) -> int:
        """Read each sample and its media; return how many."""
        with ThreadPoolExecutor() as pool:
            for done in range(0, len(self.where), _STRIDE):
                if self._is_over():
                    return done
                stride = [(index, row) for index, row in self.where[done : done + _STRIDE].tolist()]
                samples = {where: self._read(*where) for where in stride if where not in self.bad}
                self._look_at({item.path: item for sample in samples.values() if sample for item in sample.media}, pool)
                for (index, row), sample in samples.items():
                    if sample:
                        self._note(index, row, self._media_problem(sample))
        return len(self.where)

    def _is_over(self) -> bool:
        return time.monotonic() >= self.end or len(self.bad) >= self.limit

    def _note(self, index: int, row: int, problem: str | None) -> None:
        if problem is not None:
            self.bad[index, row] = problem

    def _structure_problem(self, index: int, row: int) -> str | None:
        try:
            self.sources[index].check_row(row)
        except SampleError as error:
            return str(error)
        return None

    def _read(self, index: int, row: int) -> Sample | None:
        try:
            return self.sources[index][row]
        except SampleError as error:
            self._note(index, row, str(error))
            return None

    def _look_at(self, media: dict[Path, Media], pool: ThreadPoolExecutor) -> None:
        new = {path: medium for path, medium in media.items() if path not in self.media_problems}
        large = [path for path, medium in new.items() if _is_large(medium)]
        self.media_problems.update(zip(large, pool.map(lambda path: _problem(new[path]), large), strict=True))
        self.media_problems.update((p, _problem(medium)) for p, medium in new.items() if p not in self.media_problems)

    def _media_problem(self, sample: Sample) -> str | None:
        try:
            with naming_sample(sample.id, sample.place):
                for problem in filter(None, (self.media_problems[item.path] for item in sample.media)):
                    raise DataError(problem)  # the first alone, as reading would
        except SampleError as error:
            return str(error)
        return None


def _is_large(medium: Media) -> bool:
    if medium.data is not None:
        return len(medium.data) > _WORTH_A_THREAD
    return os.path.exists(medium.path) and os.path.getsize(medium.path) > _WORTH_A_THREAD


def _problem(medium: Media) -> str | None:
    try:
        if isinstance(medium, Image):
            open_image(medium)
        else:
            probe_video(medium)
    except DataError as error:
        return str(error)
    return None
