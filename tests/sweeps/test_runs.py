"""What is read from run folders, and how runs are compared."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import literally
from tests.sweeps.making import write_lines, write_run
from vlmft.errors import ConfigError, DataError
from vlmft.run_folder import RunFolder
from vlmft.sweeps.runs import (
    RunRecord,
    Score,
    best,
    chosen,
    common_level,
    differing,
    fastest,
    label,
    named_apart,
    read_run,
    read_sweep,
    write_jobs,
)


def record(name: str, *overrides: str, losses: tuple[float, ...] = (), **more: Any) -> RunRecord:
    points = tuple(enumerate(losses, start=1))
    return RunRecord(name, Path(name), more.pop("state", "done"), overrides=overrides, losses=points, **more)


def job(*overrides: str, code: int = 0, reason: str = "") -> dict[str, Any]:
    return {"overrides": list(overrides), "exit_code": code, "reason": reason}


class TestARun:
    def test_is_read_as_it_ended(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a", [3.0, 2.0, 1.0], 0.5, overrides=["seed=1"], trainable_parameters=7, parameters=9)
        found = read_run(tmp_path / "a")
        assert (found.name, found.state, found.reason, found.exit_code) == ("a", "done", "", 0)
        assert (found.overrides, found.steps, found.trainable_parameters, found.parameters) == (("seed=1",), 3, 7, 9)
        assert found.losses == ((1, 3.0), (2, 2.0), (3, 1.0)) and found.final_loss == 1.0
        assert found.tuned == {"exact_match": Score(0.5, 0.4, 0.6)} and found.base["exact_match"].value == 0.1
        assert found.evals == {"exact_match": ((3, 0.5),)}

    def test_a_failed_one_says_why_and_how_far_it_came(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a", [3.0, 2.0], code=4, reason="CUDA out of memory\nchange ...")
        found = read_run(tmp_path / "a")
        assert (found.state, found.reason, found.exit_code) == ("failed", "CUDA out of memory\nchange ...", 4)
        assert (found.steps, found.final_loss) == (2, 2.0)

    def test_one_whose_process_is_gone_is_not_running(self, tmp_path: Path) -> None:
        folder = RunFolder.create(tmp_path / "a", "seed: 0\n")
        folder.start(pid=2**22 + 1)
        found = read_run(folder.path)
        assert found.state == "failed" and found.reason.startswith("its process 4194305 is gone without a word; ")
        folder.start(pid=os.getpid())
        assert read_run(folder.path).state == "running"
        folder.start(pid=2**22 + 1, host="elsewhere")
        assert read_run(folder.path).state == "running"

    def test_a_line_being_written_is_left_for_later(self, tmp_path: Path) -> None:
        path = write_run(tmp_path / "a", [3.0])
        with (path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2, "lo')
        assert read_run(path).losses == ((1, 3.0),)

    @pytest.mark.parametrize("line", ["{not json}\n", "[1]\n", '{"loss": 2.0}\n', '{"step": 1, "loss": "low"}\n', "\n"])
    def test_a_damaged_line_is_named(self, tmp_path: Path, line: str) -> None:
        path = write_run(tmp_path / "a")
        write_lines(path / "metrics.jsonl", {"step": 1, "loss": None}, line)
        with pytest.raises(DataError, match=literally(f"{path}/metrics.jsonl:2: is damaged: should be a JSON object")):
            read_run(path)

    def test_a_folder_without_a_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is not a run folder: it has no config.yaml"):
            read_run(tmp_path)


class TestASweep:
    def test_a_job_that_never_became_a_run_is_among_its_jobs(self, tmp_path: Path) -> None:
        write_run(tmp_path / "0", [1.0], overrides=["seed=0", "run.dir=s"])
        write_run(tmp_path / "10", [1.0])
        write_jobs(tmp_path, {0: job("seed=0"), 1: job("seed=x", code=2, reason="seed: should be a number")})
        zero, one, ten = read_sweep(tmp_path)
        assert (zero.name, zero.state, zero.overrides) == ("0", "done", ("seed=0",))
        assert (one.name, one.state, one.exit_code, one.reason) == ("1", "failed", 2, "seed: should be a number")
        assert (ten.name, ten.state) == ("10", "done")

    def test_a_finished_job_that_was_refused_later_says_so_until_it_runs_again(self, tmp_path: Path) -> None:
        write_run(tmp_path / "0", [1.0])
        write_jobs(tmp_path, {0: job("seed=1", code=2, reason="0: this is not the run that began there")})
        (found,) = read_sweep(tmp_path)
        assert (found.state, found.reason) == ("failed", "0: this is not the run that began there")
        os.utime(tmp_path / "sweep.json", (1, 1))
        assert read_sweep(tmp_path)[0].state == "done"

    @pytest.mark.parametrize("text", ["{", "[]", '{"jobs": [{"number": 0}]}', '{"jobs": 3}'])
    def test_a_damaged_record_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(DataError, match=literally(f"{tmp_path}/sweep.json: is damaged (")):
            read_sweep(tmp_path)

    def test_an_empty_or_missing_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="holds neither a run .config.yaml. nor a sweep's jobs"):
            read_sweep(tmp_path)
        with pytest.raises(ConfigError, match="none: there is no such folder"):
            read_sweep(tmp_path / "none")

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        write_jobs(tmp_path, {2: job("a=1"), 1: job("a=2")})
        assert [found["number"] for found in json.loads((tmp_path / "sweep.json").read_text())["jobs"]] == [1, 2]


class TestComparing:
    def test_only_keys_chosen_differently_are_named(self) -> None:
        runs = [
            record("0", "optim.lr=1", "recipe=fft", "run.dir=a"),
            record("1", "optim.lr=2", "recipe=fft", "+x=1", "run.dir=b"),
        ]
        assert differing(runs) == ["optim.lr", "x"]
        assert [label(run, differing(runs)) for run in runs] == ["optim.lr=1", "optim.lr=2 x=1"]
        assert differing(runs[:1]) == ["optim.lr", "recipe"]

    def test_a_value_may_hold_equal_signs(self) -> None:
        assert chosen(["++a.b={c: 'd=e'}", "~model.x"]) == {"a.b": "{c: 'd=e'}", "~model.x": ""}

    def test_losses_are_smoothed_over_a_twentieth_of_the_run(self) -> None:
        run = record("0", losses=tuple(map(float, range(40))))
        assert run.smoothed[:2] == ((2, 0.5), (3, 1.5)) and run.smoothed_loss == 38.5
        assert run.mean_loss == 19.5
        assert record("0").smoothed == () and record("0").smoothed_loss is None

    def test_the_fastest_is_first_at_the_level_all_have_reached(self) -> None:
        slow, quick = record("slow", losses=(4, 3, 2, 1)), record("quick", losses=(4, 1.5, 1.2, 1.1))
        failed = record("failed", losses=(9.0,), state="failed")
        runs = [slow, quick, failed]
        assert common_level(runs) == 1.1
        assert [run.steps_to(2) for run in runs] == [3, 2, None]
        assert fastest(runs, 2.0) is quick
        assert fastest(runs, 0.5) is None and fastest(runs, None) is None and common_level([failed]) is None
        early = record("early", losses=(2, 1.9, 1, 1))
        assert fastest([slow, early], 1.0) is early

    def test_the_best_has_the_highest_score_or_else_the_lowest_loss(self) -> None:
        low = record("low", losses=(1.0,), tuned={"exact_match": Score(0.5)})
        high = record("high", losses=(2.0,), tuned={"exact_match": Score(0.9)})
        tie = record("tie", losses=(1.5,), tuned={"exact_match": Score(0.9)})
        failed = record("failed", losses=(0.1,), state="failed")
        assert best([low, high, tie, failed]) is tie
        assert best([record("a", losses=(2.0,)), quick := record("b", losses=(1.0,)), failed]) is quick
        assert best([failed]) is None

    def test_names_are_as_long_as_they_must_be(self) -> None:
        runs = [RunRecord("x", Path(path), "done") for path in ("/r/a/0", "/r/b/0", "/r/b/1")]
        assert [run.name for run in named_apart(runs)] == ["a/0", "b/0", "b/1"]
        assert [run.name for run in named_apart(runs[1:])] == ["0", "1"]
