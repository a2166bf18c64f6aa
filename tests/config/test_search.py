"""`hydra/sweeper=optuna`: what Hydra's words become."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vlmft.config.app import run_app
from vlmft.config.pool import JobEnded, PoolJob, PoolSettings
from vlmft.config.search import Choice, ComposeTrial, Interval, RunTrials, Search

from .conftest import PROJECT, Main, write
from .test_pool import Pool

OPTUNA = ("-m", "hydra/sweeper=optuna", "run.dir=s")
Typed = Callable[..., tuple[int, list[Search], str]]


@pytest.fixture
def typed(home: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    for name in ("hydra/launcher/pool.yaml", "hydra/sweeper/optuna.yaml"):
        write(home / "conf", {name: (PROJECT / "conf" / name).read_text()})

    def type_(*argv: str, pool: Pool | None = None) -> tuple[int, list[Search], str]:
        plans: list[Search] = []

        def run_search(plan: Search, compose: ComposeTrial, run: RunTrials) -> None:
            plans.append(plan)
            if pool is not None:
                jobs = [*compose(0, ("seed=5",)), *compose(1, ("seed=x",)), *compose(2, ("seed=7",))]
                run(jobs, lambda *_: None, lambda job: job.number == 2)

        code = run_app("main", Main, lambda *_: 1, None, (*OPTUNA, *argv), home, pool, run_search)
        return code, plans, capsys.readouterr().err

    return type_


@pytest.mark.parametrize(
    ("word", "dimension"),
    [
        ("optim.lr=interval(1e-5,1e-3)", Interval(1e-5, 1e-3)),
        ("optim.lr=tag(log,interval(1e-5,1e-3))", Interval(1e-5, 1e-3, log=True)),
        ("seed=interval(1,8)", Interval(1.0, 8.0)),  # Hydra's interval is of fractions, unless it is cast
        ("seed=int(interval(1,8))", Interval(1, 8)),
        ("seed=tag(log,int(interval(1,64)))", Interval(1, 64, log=True)),
        ("seed=range(2,9,2)", Interval(2, 8, step=2)),
        ("optim.lr=range(0.1,0.5,0.1)", Interval(0.1, 0.4, step=0.1)),
        ("model=choice(tiny,large)", Choice(("tiny", "large"))),
        ("model=tiny,large", Choice(("tiny", "large"))),
        ("optim.betas=[0.1,0.2],[0.3,0.4]", Choice(("[0.1,0.2]", "[0.3,0.4]"))),
        ("token='a b',null", Choice(("'a b'", "null"))),
        ("dataset=glob(*,exclude=mix)", Choice(("A", "B", "sample_qa"))),
    ],
)
def test_words_become_a_space(typed: Typed, word: str, dimension: Interval | Choice) -> None:
    code, (plan,), err = typed(word, "model.width=3", "hydra.sweeper.trials=7")
    assert (code, err) == (0, "")
    key = word.partition("=")[0]
    assert plan.space.keys() == {key}
    found = plan.space[key]
    if isinstance(found, Interval) and isinstance(dimension, Interval):
        assert (found.low, found.high) == pytest.approx((dimension.low, dimension.high))
        assert [type(found.low), found.log, found.step] == [type(dimension.low), dimension.log, dimension.step]
    else:
        assert found == dimension
    assert (plan.words, plan.trials, plan.folder) == (("run.dir=s", "model.width=3"), 7, Path("s").absolute())


def test_an_experiments_file_may_give_the_space(typed: Typed, home: Path) -> None:
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      optim.lr: interval(0.1,0.2)\n      seed: 3\n"
    write(home / "conf", {"extra/searched.yaml": text})
    _, (plan,), err = typed("+extra=searched")
    assert err == "" and plan.space == {"optim.lr": Interval(0.1, 0.2)}
    assert plan.words == ("seed=3", "run.dir=s", "+extra=searched")


@pytest.mark.parametrize(
    ("words", "errors"),
    [
        (["seed=1"], ["hydra/sweeper=optuna: nothing to choose; give values such as optim.lr=interval(1e-5,1e-3)"]),
        (["model=tiny,lrge"], ["model: there is no option lrge; did you mean large?"]),
        (["optm.lr=interval(1,2)"], ["optm: unknown key; did you mean optim?"]),
        (["seed=interval(3,1)"], ["seed=interval(3,1): should go from a low to a high number"]),
        (
            ["optim.lr=tag(log,interval(0,1))"],
            ["optim.lr=tag(log,interval(0,1)): should go from a low to a high number, above 0 where it is logarithmic"],
        ),
        (["seed=tag(lg,interval(1,2))"], ["seed: the tag lg means nothing here; known: log"]),
        (
            ["seed=tag(log,range(1,9))"],
            ["seed=tag(log,range(1,9)): a range has even steps; use tag(log,interval(...))"],
        ),
        (
            ["seed=1,2", "hydra.sweeper.trials=0", "hydra.sweeper.direction=up", "+hydra.sweeper.trial=3"],
            [
                "hydra.sweeper.trial: unknown key; did you mean trials?",
                "hydra.sweeper.trials: should be a whole number of at least 1; found 0",
                "hydra.sweeper.direction: should be maximize or minimize; found 'up'",
            ],
        ),
    ],
)
def test_what_cannot_be_searched_ends_it_before_the_first_trial(
    typed: Typed, words: list[str], errors: list[str]
) -> None:
    code, plans, err = typed(*words)
    assert (code, plans, err.splitlines()) == (2, [], [f"error: {error}" for error in errors])
    assert not Path("s").exists()


def test_trials_are_jobs_and_one_stopped_early_has_not_failed(typed: Typed, capsys: object) -> None:
    class Stopping(Pool):
        def __call__(self, jobs: list[PoolJob], settings: PoolSettings, ended: JobEnded, stop_early: object) -> None:  # type: ignore[override]
            self.settings = settings
            for job in jobs:
                self.jobs.append(job)
                ended(job, 75 if stop_early(job) else 0, "")  # type: ignore[operator]

    pool = Stopping()
    code, _, err = typed("seed=1,2", "model=large", pool=pool)
    assert (code, [job.number for job in pool.jobs]) == (2, [0, 2])  # 2: trial 1 was seed=x
    assert "error: seed: Input should be a valid integer" in err
    assert pool.settings == PoolSettings(None, None, 1)
    assert "seed=7" in pool.jobs[1].command and "model=large" in pool.jobs[1].command
    typed("seed=1,2", "hydra/launcher=pool", "hydra.launcher.slots=3", pool=pool)
    assert pool.settings == PoolSettings(None, 1, 3)
