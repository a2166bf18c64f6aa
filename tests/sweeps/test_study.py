"""The search: what Optuna is told of trials that end well, badly, early, or not at all; and that it goes on."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import optuna
import pytest
from PIL import Image

from tests.support import literally
from tests.sweeps.making import write_run
from vlmft.config.pool import JobEnded, PoolJob, StopEarly
from vlmft.config.search import Choice, Interval, Search
from vlmft.errors import ConfigError, PreemptedError
from vlmft.run_folder import RunFolder
from vlmft.sweeps.runs import chosen, read_run
from vlmft.sweeps.study import search

Ends = Callable[[PoolJob, dict[str, str]], int]


def plan(folder: Path, **changes: Any) -> Search:
    values: dict[str, Any] = {
        "folder": folder,
        "words": ("recipe=fft", "run.dir=s"),
        "space": {"optim.lr": Interval(1e-4, 1e-1, log=True), "recipe.llm.rank": Interval(4, 16, step=4)},
        "trials": 6,
        "objective": "eval.tuned.exact_match",
        "direction": "maximize",
        "seed": 0,
        "startup_trials": 2,
        "prune_by": None,
        "prune_every_steps": 2,
    }
    return Search(**values | changes)


class Pool:
    """Runs trials as `ends` says: it leaves a run's folder and gives an exit code."""

    def __init__(self, ends: Ends, wrong: Iterable[int] = ()) -> None:
        self.ends, self.wrong = ends, wrong
        self.ran: list[tuple[int, dict[str, str]]] = []
        self.root = Path()

    def compose(self, number: int, words: tuple[str, ...]) -> list[PoolJob]:
        return [] if number in self.wrong else [PoolJob(number, words, self.root / str(number), ("true",))]

    def run(self, jobs: Iterable[PoolJob], ended: JobEnded, stop_early: StopEarly) -> None:
        for job in jobs:
            values = chosen(job.overrides)
            self.ran.append((job.number, values))
            code = self.ends(job, values)
            ended(job, 75 if stop_early(job) else code, "")

    def search(self, plan: Search) -> optuna.Study:
        self.root = plan.folder
        search(plan, self.compose, self.run)
        return load(plan.folder)


def load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def scored(job: PoolJob, values: dict[str, str]) -> int:
    shutil.rmtree(job.folder, ignore_errors=True)
    write_run(job.folder, [1.0], score=1 - float(values["optim.lr"]))
    return 0


def without_memory(job: PoolJob, values: dict[str, str]) -> int:
    shutil.rmtree(job.folder, ignore_errors=True)
    write_run(job.folder, [1.0], code=4, reason="out of memory")
    return 4


def test_the_best_values_are_found_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = Pool(scored)
    study = pool.search(plan(tmp_path, trials=12))
    rates = [float(values["optim.lr"]) for _, values in pool.ran]
    ranks = {values["recipe.llm.rank"] for _, values in pool.ran}
    assert all(1e-4 <= rate <= 1e-1 for rate in rates) and ranks <= {"4", "8", "12", "16"}
    assert states(study) == ["COMPLETE"] * 12 and study.best_value == pytest.approx(1 - min(rates))
    best = rates.index(min(rates))
    assert f"best     trial {best}: eval.tuned.exact_match " in capsys.readouterr().out
    with Image.open(tmp_path / "study.png") as picture:
        assert picture.format == "PNG"


def test_how_trials_end_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Failed ones FAIL, also where the objective is missing or the words were wrong; no start tries one twice."""

    def ends(job: PoolJob, values: dict[str, str]) -> int:
        if job.number == 1:
            return without_memory(job, values)
        if job.number == 2:
            write_run(job.folder, [1.0])
            return 0
        return scored(job, values)

    study = Pool(ends, wrong=[3]).search(plan(tmp_path, trials=5))
    assert states(study) == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert (
        f"error: {tmp_path}/2/result.json: has no number eval.tuned.exact_match (hydra.sweeper.objective=); "
        "the trial counts as failed" in capsys.readouterr().err
    )


def test_an_interrupted_search_goes_on_with_its_open_trial(tmp_path: Path) -> None:
    def ends(job: PoolJob, values: dict[str, str]) -> int:
        if job.number == 2:
            raise PreemptedError("the sweep was stopped by SIGTERM")
        return scored(job, values)

    first = Pool(ends)
    with pytest.raises(PreemptedError):
        first.search(plan(tmp_path))
    assert states(load(tmp_path)) == ["COMPLETE", "COMPLETE", "RUNNING"] and (tmp_path / "study.png").is_file()
    second = Pool(scored)
    assert states(second.search(plan(tmp_path))) == ["COMPLETE"] * 6
    assert [number for number, _ in second.ran] == [2, 3, 4, 5]
    assert second.ran[0] == first.ran[2]  # the same values again
    third = Pool(scored)
    assert len(third.search(plan(tmp_path)).trials) == 6 and third.ran == []
    drawn = [values["optim.lr"] for _, values in (*first.ran, *second.ran[1:])]
    assert len(set(drawn)) == len(drawn)


def test_a_failed_trial_is_tried_again_by_the_next_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a failed job of any sweep is: with the same values, in its own folder. Optuna is told of both."""

    def ends(job: PoolJob, values: dict[str, str]) -> int:
        return without_memory(job, values) if job.number in (0, 1) else scored(job, values)

    first = Pool(ends, wrong=[2])
    assert states(first.search(plan(tmp_path, trials=4))) == ["FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert [number for number, _ in first.ran] == [0, 1, 3]

    def better(job: PoolJob, values: dict[str, str]) -> int:
        return without_memory(job, values) if job.number == 1 else scored(job, {"optim.lr": str(job.number)})

    second = Pool(better)
    study = second.search(plan(tmp_path, trials=6))
    assert [number for number, _ in second.ran] == [0, 1, 2, 4, 5]
    assert second.ran[:2] == first.ran[:2]
    assert states(study)[4:] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert "best     trial 0: eval.tuned.exact_match 1 with " in capsys.readouterr().out
    third = Pool(scored)
    assert states(third.search(plan(tmp_path, trials=6)))[9:] == ["COMPLETE"]
    assert [number for number, _ in third.ran] == [1]


def test_a_search_that_was_killed_while_it_asked_goes_on(tmp_path: Path) -> None:
    study = Pool(without_memory).search(plan(tmp_path, trials=1))
    study.ask()  # no value has been chosen yet
    study.enqueue_trial({"optim.lr": 0.01, "recipe.llm.rank": 4}, user_attrs={"job": 0})
    again = Pool(scored)
    found = again.search(plan(tmp_path, trials=3))
    assert states(found) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert [number for number, _ in again.ran] == [0, 1, 2]
    assert again.ran[0] == (0, {"optim.lr": "0.01", "recipe.llm.rank": "4"})


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_trial_behind_the_median_is_stopped(tmp_path: Path, direction: str) -> None:
    """By the loss, whichever way the objective goes: trials 0 to 3 have a loss of 1, trial 4 of 9, trial 5 of 0.5."""

    def ends(job: PoolJob, values: dict[str, str]) -> int:
        loss = {4: 9.0, 5: 0.5}.get(job.number, 1.0)
        write_run(job.folder, [loss] * 4, score=0.5)
        return 0

    study = Pool(ends).search(plan(tmp_path, prune_by="loss", direction=direction))
    assert states(study) == ["COMPLETE"] * 4 + ["PRUNED", "COMPLETE"]
    assert [abs(value) for value in study.trials[4].intermediate_values.values()] == [9.0]
    assert list(study.trials[5].intermediate_values) == [2, 4]  # means of two steps
    pruned = read_run(tmp_path / "4")
    assert (pruned.state, pruned.reason) == (
        "pruned",
        "loss 9 at step 2 is behind the median of the other trials",
    )


def test_a_trial_is_stopped_by_its_score_while_it_trains(tmp_path: Path) -> None:
    def ends(job: PoolJob, values: dict[str, str]) -> int:
        write_run(job.folder, [1.0], score=0.9 if job.number < 3 else 0.2)
        return 0

    study = Pool(ends).search(plan(tmp_path, trials=4, prune_by="eval/exact_match"))
    assert states(study) == ["COMPLETE"] * 3 + ["PRUNED"]


def test_a_trial_that_ended_by_itself_when_told_is_complete(tmp_path: Path) -> None:
    class Late(Pool):
        def run(self, jobs: Iterable[PoolJob], ended: JobEnded, stop_early: StopEarly) -> None:
            for job in jobs:
                write_run(job.folder, [float(job.number)] * 2, score=0.5)
                stop_early(job)
                ended(job, 0, "")

    assert states(Late(scored).search(plan(tmp_path, trials=4, prune_by="loss"))) == ["COMPLETE"] * 4


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"objective": "train.loss"}, "objective: was 'maximize eval.tuned.exact_match', is 'maximize train.loss'"),
        ({"words": ("recipe=lora_llm",)}, "words: was ['recipe=fft'], is ['recipe=lora_llm']"),
        ({"space": {"optim.lr": Choice(("1", "2"))}}, "space: was {'optim.lr': 'Interval(low=0.0001, high=0.1, "),
    ],
)
def test_another_study_in_the_folder_is_refused(tmp_path: Path, changes: dict[str, Any], error: str) -> None:
    Pool(scored).search(plan(tmp_path, trials=1))
    with pytest.raises(ConfigError, match=literally(f"run.dir={tmp_path} holds a study with other {error}")):
        Pool(scored).search(plan(tmp_path, **changes))


def test_choices_are_taken_as_they_are_written(tmp_path: Path) -> None:
    pool = Pool(lambda job, values: (write_run(job.folder, [2.0]), 0)[1])
    targets = Choice(("[q_proj,v_proj]", "all-linear"))
    study = pool.search(plan(tmp_path, space={"targets": targets}, objective="train.loss", direction="minimize"))
    assert {values["targets"] for _, values in pool.ran} == set(targets.values)
    assert study.best_value == 2.0
    assert RunFolder(tmp_path / "0").read_result()["state"] == "done"
