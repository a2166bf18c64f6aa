"""A sweep's end: table, summary.csv, summary.png."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from tests.sweeps.making import write_lines, write_run
from vlmft.config.sweep import JobRecord
from vlmft.errors import StorageError
from vlmft.sweeps.finish import finish_sweep
from vlmft.sweeps.runs import RunRecord, read_sweep
from vlmft.sweeps.table import csv_text, verdict


def rows_of(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


def jobs(folder: Path, *codes: int) -> list[JobRecord]:
    said = {2: "seed: no"}
    return [
        JobRecord(number, (f"optim.lr={number + 1}", "recipe=fft"), folder / str(number), code, said.get(code, ""))
        for number, code in enumerate(codes)
    ]


def test_one_row_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"parameters": 9000, "trainable_parameters": 4000, "peak_memory_bytes": 3 * 1024**2}
    write_run(tmp_path / "0", [3.0, 0.25], 0.75, **sizes)
    write_run(tmp_path / "1", [2.0], code=3, reason="the loss of step 2 is nan\nmore")
    finish_sweep(tmp_path, jobs(tmp_path, 0, 3, 2))
    out = capsys.readouterr().out
    assert f"sweep {tmp_path}" in out
    assert rows_of(out) == [
        ["0", "optim.lr=1", "done", "0.250", "0.100 -> 0.750 [0.650, 0.850]", "2", "4,000", "3.0 MiB", "0"],
        ["1", "optim.lr=2", "failed: the loss of step 2 is nan", "2.000", "-", "-", "-", "-", "0"],
        ["2", "optim.lr=3", "failed: seed: no", "-", "-", "-", "-", "-", "-"],
    ]
    assert "fastest: 0 (optim.lr=1): 2 steps to a mean loss of 0.25, 1.625 on average over its steps" in out
    assert "ends best: 0 (optim.lr=1): exact_match 0.750 [0.650, 0.850], mean loss of its last steps 0.250" in out
    assert f"the same command with run.dir={tmp_path} runs what is missing" in out

    zero, one, two = csv.DictReader((tmp_path / "summary.csv").open())
    assert (zero["job"], zero["optim.lr"], zero["state"], zero["loss"]) == ("0", "1", "done", "0.25")
    scores = ("exact_match.tuned", "exact_match.tuned_low", "exact_match.base")
    assert [zero[name] for name in scores] == ["0.75", "0.65", "0.1"]
    assert (zero["parameters"], zero["trainable_parameters"], zero["peak_memory_bytes"]) == ("9000", "4000", "3145728")
    assert (one["state"], one["exit_code"], one["reason"]) == ("failed", "3", "the loss of step 2 is nan\nmore")
    assert (two["state"], two["exit_code"], two["overrides"]) == ("failed", "2", "optim.lr=3 recipe=fft")
    assert "recipe" not in zero and zero["overrides"] == "optim.lr=1 recipe=fft"
    with Image.open(tmp_path / "summary.png") as picture:
        assert picture.format == "PNG" and picture.width > 500


def test_a_second_start_shows_the_jobs_of_the_first_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write_run(tmp_path / str(number), [1.0])
    finish_sweep(tmp_path, jobs(tmp_path, 0, 0))
    finish_sweep(tmp_path, jobs(tmp_path, 0))
    out = capsys.readouterr().out
    assert [row[0] for row in rows_of(out)] == ["0", "1"] * 2
    assert "what is missing" not in out
    assert [found.name for found in read_sweep(tmp_path)] == ["0", "1"]


def test_a_job_with_a_damaged_file_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "0", [1.0])
    write_lines(tmp_path / "0" / "metrics.jsonl", "{\n")
    write_run(tmp_path / "1", [1.0])
    finish_sweep(tmp_path, jobs(tmp_path, 0, 0))
    found = capsys.readouterr()
    assert f"error: {tmp_path}/0/metrics.jsonl:1: is damaged" in found.err
    assert [row[0] for row in rows_of(found.out) if row[0]] == ["0", "1"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    write_run(tmp_path / "0", [1.0])
    (tmp_path / ".summary.csv.tmp").mkdir()
    with pytest.raises(StorageError, match=r"\.summary\.csv\.tmp: cannot be written: Is a directory"):
        finish_sweep(tmp_path, jobs(tmp_path, 0))


def test_words_of_the_command_line_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("recipe.llm.targets=[q_proj,v_proj]", "run.name=$x_{1}$ [red]")
    finish_sweep(tmp_path, [JobRecord(0, words, tmp_path / "0", 2, "[bold]no")])
    assert "recipe.llm.targets=[q_proj,v_proj]" in (out := capsys.readouterr().out) and "[bold]no" in out
    targets = ("recipe.llm.targets=[q_proj]", "recipe.llm.targets=[v_proj]")
    pair = [
        JobRecord(n, (words,), write_run(tmp_path / str(n), [n + 1.0]).parent, 0) for n, words in enumerate(targets)
    ]
    finish_sweep(tmp_path, pair)
    assert "ends best: 0 (recipe.llm.targets=[q_proj]): " in capsys.readouterr().out


def test_a_single_run_is_not_compared() -> None:
    only = RunRecord("0", Path("0"), "done", losses=((1, 2.0),))
    assert verdict([only], 2.0) == []
    assert csv_text([only]).splitlines()[1].startswith("0,done,,,")
