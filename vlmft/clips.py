"""Cut long videos into clips: `python -m vlmft.clips videos=/data/long out=/data/clips seconds=5`.

Each video is cut by a process of its own into a hidden folder of `out`. Its lines in clips.jsonl make its clips count;
then they are moved to their names. So a command that is killed leaves whole clips alone, and the same command goes on.
"""

import os
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, Self

from pydantic import Field, model_validator

from vlmft.config.app import Composition, run_app
from vlmft.config.spec import Spec
from vlmft.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from rich.table import Table

    from vlmft.annotation.cutting import Result, Rule
    from vlmft.annotation.journal import Journal, Row
    from vlmft.annotation.media import MediaFile

LINES = "clips.jsonl"
_PARTIAL = ".partial"
_LISTED = 5  # files named in one message


class ClipsConfig(Spec):
    """Every choice; conf/clips.yaml holds the values."""

    videos: Path = Field(description="folder of the videos, searched with its subfolders")
    out: Path = Field(description="folder to write the clips and clips.jsonl to")
    seconds: float = Field(gt=0, allow_inf_nan=False, description="length of a clip")
    cut: Literal["exact", "keyframe"] = Field(description="exact encodes anew; keyframe copies, and lengths differ")
    rest: Literal["join", "drop", "keep"] = Field(description="what is done with a last piece below min_seconds")
    min_seconds: float | None = Field(ge=0, allow_inf_nan=False, description="null: half of seconds")
    quality: int = Field(ge=0, le=51, description="of exact: CRF of H.264, 0 is lossless")
    workers: int = Field(ge=1, description="videos cut at a time")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.min_seconds is not None and self.min_seconds > self.seconds:
            raise ValueError(
                f"min_seconds={self.min_seconds:g} is more than seconds={self.seconds:g}; change one of the two"
            )
        return self

    def rule(self) -> "Rule":
        """How each video is cut.

        Raises:
            ConfigError: quality=0 is asked of an encoder that always loses something.
        """
        from vlmft.annotation.clip_encoder import best_encoder
        from vlmft.annotation.cutting import Rule

        encoder = best_encoder()
        if self.cut == "exact" and self.quality == 0 and encoder != "libx264":
            raise ConfigError("quality=0: this build of PyAV has no libx264, which alone is lossless; give 1 or more")
        least = self.seconds / 2 if self.min_seconds is None else self.min_seconds
        return Rule(self.seconds, self.cut, self.rest, least, self.quality, encoder)


def main() -> NoReturn:
    """The command."""
    sys.exit(run_app("clips", ClipsConfig, clips))


def clips(config: ClipsConfig, composition: Composition) -> int:
    """Cut what is not cut yet; return the exit code."""
    from rich.progress import Progress

    from vlmft.annotation.journal import open_journal
    from vlmft.annotation.processes import run_each
    from vlmft.screen import console

    rule = config.rule()
    folder, out = _folders(config)
    with open_journal(out / LINES) as journal:
        _refuse_other_lines(journal)
        _finish(out, journal.rows)
        videos = _videos(folder, out)
        done = {row["source"] for row in journal.rows}
        missing = [video for video in videos if video.reference not in done]
        how = _how(rule)
        _refuse_other_cuts(out, journal.rows, how)
        _refuse_taken_names(out, missing, journal.rows)
        problems, results = [], []
        jobs = {video.reference: (video.path, _partial(out, video.reference), rule) for video in missing}
        screen = console()
        try:
            with Progress(console=screen, disable=not screen.is_terminal, transient=True) as progress:
                results_as_they_come = run_each(_cut, jobs, config.workers)
                for reference, result in progress.track(results_as_they_come, len(jobs), description="cutting"):
                    if isinstance(result, str):
                        problems.append((reference, result))
                        continue
                    rows = _rows(reference, result, how)
                    journal.append(rows)
                    _finish(out, rows)
                    results.append(result)
        finally:
            for reference in jobs:
                shutil.rmtree(_partial(out, reference), ignore_errors=True)
        journal.sort(lambda row: str(row["clip"]))
    screen.print(_table(out, len(videos) - len(missing), results, len(problems)))
    DataError.raise_if(problem for _, problem in sorted(problems))
    return 0


def _cut(source: Path, folder: Path, rule: "Rule") -> "Result | str":
    """In a process of its own: cut one video; return what is wrong with it where that cannot be done."""
    from vlmft.annotation.cutting import cut_video

    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return cut_video(source, folder, rule)
    except DataError as error:
        return str(error)


def _folders(config: ClipsConfig) -> tuple[Path, Path]:
    folder, out = config.videos.expanduser().resolve(), config.out.expanduser().resolve()
    problems = []
    if not folder.is_dir():
        problems.append(f"videos={config.videos}: is no folder; give the one that the videos lie in")
    if out == folder:
        problems.append(f"out={config.out}: is the videos' own folder; choose another")
    if out.exists() and not out.is_dir():
        problems.append(f"out={config.out}: is a file, not a folder; choose another name")
    ConfigError.raise_if(problems)
    return folder, out


def _videos(folder: Path, out: Path) -> "list[MediaFile]":
    """The videos in order; `out` is not searched, should it lie among them."""
    from vlmft.annotation.media import find_media

    found = [file for file in find_media(folder, folder, leave_out=out).files if file.kind == "video"]
    if not found:
        raise DataError(f"videos={folder}: holds no video, by the endings of its files' names")
    names = Counter(_stem(file.reference) for file in found)
    twice = [file.reference for file in found if names[_stem(file.reference)] > 1]
    ConfigError.raise_if(
        f"videos: {reference}: its clips would have the names of another's; rename it" for reference in twice[:_LISTED]
    )
    return found


def _stem(reference: str) -> str:
    return reference.rpartition(".")[0]


def _partial(out: Path, reference: str) -> Path:
    """Where a video's clips lie until they count."""
    path = out / _stem(reference)
    return path.with_name(f".{path.name}{_PARTIAL}")


def _how(rule: "Rule") -> str:
    """The choices that a line names, so that clips of one kind stay together."""
    said = f"seconds={rule.seconds:g} cut={rule.cut} rest={rule.rest} min_seconds={rule.min_seconds:g}"
    return f"{said} quality={rule.quality} encoder={rule.encoder}" if rule.cut == "exact" else said


def _rows(reference: str, result: "Result", how: str) -> "list[Row]":
    folder = reference.rpartition("/")[0]
    rows: list[Row] = []
    for clip in result.clips:
        values = asdict(clip)
        name = values.pop("name")
        rows.append({"clip": f"{folder}/{name}" if folder else name, "source": reference, **values, "how": how})
    return rows


def _finish(out: Path, rows: "list[Row]") -> None:
    """Give clips that count their names, where these still lie in their videos' hidden folders, and remove those."""
    for row in rows:
        clip = out / row["clip"]
        waiting = _partial(out, row["source"]) / clip.name
        try:
            if waiting.exists():
                os.replace(waiting, clip)
        except OSError as error:
            raise StorageError(f"{clip}: cannot be written: {error.strerror}; the same command goes on") from error
    for source in {row["source"] for row in rows}:
        shutil.rmtree(_partial(out, source), ignore_errors=True)


def _refuse_other_lines(journal: "Journal") -> None:
    for place, row in zip(journal.places, journal.rows, strict=True):
        missing = [name for name in ("clip", "source", "how") if not isinstance(row.get(name), str)]
        if missing:
            raise DataError(f"{place}: has no {missing[0]}, so this command did not write it; choose another out")


def _refuse_other_cuts(out: Path, rows: "list[Row]", how: str) -> None:
    others = sorted({row["how"] for row in rows} - {how})
    if others:
        raise ConfigError(
            f"out={out}: holds clips of {others[0]}, and this command says {how}; give the same choices, or another out"
        )


def _refuse_taken_names(out: Path, missing: "list[MediaFile]", rows: "list[Row]") -> None:
    stems = {_stem(video.reference) for video in missing}
    clips = {out / row["clip"] for row in rows}
    taken = [path for path in sorted(out.rglob("*-*.mp4")) if path not in clips and _cut_from(path, out) in stems]
    ConfigError.raise_if(
        f"{path}: exists, though {LINES} does not name it, and nothing is overwritten; move it away, or choose another "
        "out"
        for path in taken[:_LISTED]
    )


def _cut_from(path: Path, out: Path) -> str:
    """The stem of the video whose clip a file would be by its name."""
    stem, _, number = path.relative_to(out).with_suffix("").as_posix().rpartition("-")
    return stem if number.isdigit() else ""


def _table(out: Path, before: int, results: "list[Result]", failed: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="videos cut into clips", title_justify="left", caption_justify="left")
    for column in ("cut before", "cut now", "damaged", "clips", "frames", "short ends joined", "kept", "dropped"):
        table.add_column(column, justify="right")
    rests = Counter(result.rest for result in results)
    new = [clip for result in results for clip in result.clips]
    dropped = sum(result.dropped_frames for result in results)
    counts = [before, len(results), failed, len(new), sum(clip.frames for clip in new), rests["joined"], rests["kept"]]
    table.add_row(*map(str, counts), f"{rests['dropped']} ({dropped} frames)" if dropped else "0")
    table.caption = Text(f"clips  {out}\nlines  {out / LINES}\nno sound is kept")
    return table


if __name__ == "__main__":
    main()
