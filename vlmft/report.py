"""Show runs side by side: `python -m vlmft.report dir=<sweep folder>`, or `dir=[runs/a,runs/b]`."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

from pydantic import BeforeValidator, Field

from vlmft.config.app import Composition, run_app
from vlmft.config.spec import Spec
from vlmft.errors import ConfigError, StorageError, VlmftError


def _folders(value: object) -> object:
    """A single folder is a list of one, and a job's number its folder's name."""
    folders = value if isinstance(value, list | tuple) else [value]
    if not folders:
        raise ValueError("name a sweep's folder or runs: dir=runs/sweep, dir=[runs/a,runs/b]")
    return [str(folder) if type(folder) is int else folder for folder in folders]


class ReportConfig(Spec):
    """What to show, and where to; conf/report.yaml holds the values."""

    dir: Annotated[tuple[Path, ...], BeforeValidator(_folders)] = Field(
        description="a sweep's folder, a run's, or a list of these"
    )
    html: Path | None = Field(description="a file to write the page to, which needs nothing else; null: none")
    csv: Path | None = Field(description="a file to write every figure to; null: none")
    loss_below: float | None = Field(
        gt=0, description="the loss that a column says the steps to; null: the lowest that every finished run reached"
    )


def main() -> NoReturn:
    """The command."""
    sys.exit(run_app("report", ReportConfig, report))


def report(config: ReportConfig, composition: Composition) -> int:
    """Show the runs; return the exit code."""
    from vlmft.screen import console
    from vlmft.sweeps.page import html_page
    from vlmft.sweeps.runs import named_apart, read_run, read_sweep
    from vlmft.sweeps.table import WIDTH, csv_text, screen_table

    problems: list[str] = []
    groups = []
    for folder in config.dir:
        try:
            is_run = (folder.expanduser() / "config.yaml").is_file()
            groups.append([read_run(folder)] if is_run else read_sweep(folder))
        except VlmftError as error:
            problems += [f"dir: {problem}" for problem in error.problems]
    ConfigError.raise_if(problems)
    records = [record for group in groups for record in group]
    if len(groups) > 1:
        records = named_apart(records)
    title = ", ".join(str(folder) for folder in config.dir)
    console(width=WIDTH).print(screen_table(records, title, config.loss_below))
    if config.html is not None:
        _write(config.html, html_page(records, title, config.loss_below))
    if config.csv is not None:
        _write(config.csv, csv_text(records, config.loss_below))
    return 0


def _write(path: Path, text: str) -> None:
    path = path.expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    main()
