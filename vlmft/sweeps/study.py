"""The search for the best choices: Optuna asks for trials, the pool runs them, their folders say how they did.

The study stands in the sweep's folder. Started again, it goes on: trials that were interrupted first, each from its
own checkpoint, then those that failed, then new ones until there are enough.

What Optuna has been told of a trial is final, so a failed one is tried again as another trial with the same values;
both are one job, with one folder. A job's number is what people see as the trial's.
"""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.config.pool import PoolJob
from vlmft.config.search import Choice, ComposeTrial, Interval, RunTrials, Search
from vlmft.errors import ConfigError, InterruptedRunError, PreemptedError, StorageError, VlmftError
from vlmft.run_folder import PRUNED, RunFolder
from vlmft.screen import console
from vlmft.sweeps.runs import read_metrics

if TYPE_CHECKING:
    import optuna

STUDY = "study.db"
PICTURE = "study.png"
_JOB = "job"
_LEFT = (PreemptedError.exit_code, InterruptedRunError.exit_code)


def search(plan: Search, compose: ComposeTrial, run: RunTrials) -> None:
    """Run trials until `plan.trials` are told; draw study.png and name the best.

    A trial whose job fails, or has no objective, is told FAIL, and the next start tries it again; one that was stopped
    early, PRUNED; one that a signal ended stays open for the next start.

    Raises:
        ConfigError: Optuna is not installed, or the folder holds another study.
        InterruptedRunError, PreemptedError: a signal ended it.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("hydra/sweeper=optuna: Optuna is not installed; pip install 'vlmft[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _open_study(plan)
    trials = _Trials(plan, study, compose)
    try:
        run(trials.jobs(), trials.ended, trials.stop_early)
    finally:
        _draw(study, plan)
    try:
        best = study.best_trial
    except ValueError:  # none is complete
        return
    chose = " ".join(f"{key}={value}" for key, value in best.params.items())
    console().print(f"best     trial {_job(best)}: {plan.objective} {best.value:.4g} with {chose}", markup=False)


class _Trials:
    """The jobs of a study, and what becomes of them."""

    def __init__(self, plan: Search, study: "optuna.Study", compose: ComposeTrial) -> None:
        self.plan, self.study, self.compose = plan, study, compose
        self.open: dict[int, optuna.Trial] = {}  # by job, as what follows
        self.reported: dict[int, int] = {}  # the last step that Optuna knows of
        self.pruned: dict[int, str] = {}  # why

    def jobs(self) -> Iterator[PoolJob]:
        """Interrupted trials, then those that had failed before this start, then new ones."""
        import optuna

        space = {key: _distribution(dimension) for key, dimension in self.plan.space.items()}
        states = optuna.trial.TrialState
        for trial in _by_job(self.study).values():
            if trial.state == states.RUNNING and trial.params.keys() != space.keys():  # killed while it was asked for
                self.study.tell(trial.number, state=states.FAIL)
        before = _by_job(self.study)
        for job, trial in before.items():
            if trial.state == states.RUNNING:
                self.reported[job] = max(trial.intermediate_values, default=0)
                yield from self._start(job, optuna.Trial(self.study, trial._trial_id))
        for job, trial in before.items():
            if trial.state == states.FAIL:
                self.study.enqueue_trial(trial.params, user_attrs={_JOB: job})
        while self.study.get_trials(deepcopy=False, states=(states.WAITING,)):
            again = self.study.ask(space)
            yield from self._start(again.user_attrs[_JOB], again)
        while len(jobs := _by_job(self.study)) < self.plan.trials:
            job, new = max(jobs, default=-1) + 1, self.study.ask(space)
            new.set_user_attr(_JOB, job)
            yield from self._start(job, new)

    def ended(self, job: PoolJob, exit_code: int, reason: str) -> None:
        """Tell Optuna how a trial did."""
        import optuna

        trial = self.open.pop(job.number)
        if job.number in self.pruned and exit_code != 0:
            RunFolder(job.folder).write_result(state=PRUNED, reason=self.pruned[job.number])
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif exit_code == 0 and (value := self._objective(job)) is not None:
            self.study.tell(trial, value)
        elif exit_code not in _LEFT:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def stop_early(self, job: PoolJob) -> bool:
        """Report how a trial is doing; whether it does worse than the median of those before it at the same step."""
        name, trial = self.plan.prune_by, self.open[job.number]
        if name is None:
            return False
        try:
            lines = list(read_metrics(RunFolder(job.folder).metrics))
        except VlmftError:
            return False  # the table at the end says what is wrong with the file
        points = [(int(line["step"]), float(line[name])) for line in lines if line.get(name) is not None]
        if not name.startswith("eval/"):
            points = _means(points, self.plan.prune_every_steps)
        # Optuna compares in the study's direction: a loss is better where it is lower.
        sign = 1.0 if (self.plan.direction == "minimize") == (not name.startswith("eval/")) else -1.0
        for step, value in points:
            if step <= self.reported.get(job.number, 0):
                continue
            self.reported[job.number] = step
            trial.report(sign * value, step)
            if trial.should_prune():
                self.pruned[job.number] = f"{name} {value:.4g} at step {step} is behind the median of the other trials"
                return True
        return False

    def _start(self, job: int, trial: "optuna.Trial") -> Iterator[PoolJob]:
        import optuna

        words = tuple(f"{key}={trial.params[key]}" for key in self.plan.space)
        self.open[job] = trial
        jobs = self.compose(job, words)
        if not jobs:
            self.open.pop(job)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        yield from jobs

    def _objective(self, job: PoolJob) -> float | None:
        try:
            value: Any = RunFolder(job.folder).read_result()
        except StorageError:
            return None
        for part in self.plan.objective.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            return float(value)
        sys.stderr.write(
            f"error: {job.folder / 'result.json'}: has no number {self.plan.objective} (hydra.sweeper.objective=); "
            "the trial counts as failed\n"
        )
        return None


def _job(trial: "optuna.trial.FrozenTrial") -> int:
    """The job that a trial was, or is; before it is told, it has the trial's own number, which no other job has."""
    return int(trial.user_attrs.get(_JOB, trial.number))


def _by_job(study: "optuna.Study") -> "dict[int, optuna.trial.FrozenTrial]":
    """Each job's last trial, by the job's number."""
    found = {_job(trial): trial for trial in study.get_trials(deepcopy=False)}
    return dict(sorted(found.items()))


def _open_study(plan: Search) -> "optuna.Study":
    import optuna

    path = plan.folder / STUDY
    is_new = not path.exists()
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    study = optuna.create_study(study_name="sweep", storage=storage, direction=plan.direction, load_if_exists=True)
    free = ("run.dir=", "resume=", "resume_allow=")
    facts = {
        "objective": f"{plan.direction} {plan.objective}",
        "space": {key: repr(dimension) for key, dimension in plan.space.items()},
        "words": sorted(word for word in plan.words if not word.startswith(free)),
    }
    if is_new:
        study.set_user_attr("facts", facts)
    was = study.user_attrs.get("facts", {})
    ConfigError.raise_if(
        f"run.dir={plan.folder} holds a study with other {key}: was {was.get(key)!r}, is {facts[key]!r}; "
        "its trials do not compare with these: choose another run.dir"
        for key in facts
        if was.get(key) != facts[key]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Another seed at each start: the first draws would be those of the last start again. With several trials at
        # once, each counts as a bad one to the others, so that they do not crowd.
        study.sampler = optuna.samplers.TPESampler(
            seed=plan.seed + len(study.trials), n_startup_trials=plan.startup_trials, constant_liar=True
        )
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=plan.startup_trials)
    return study


def _distribution(dimension: Interval | Choice) -> Any:
    import optuna

    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    low, high, log, step = dimension.low, dimension.high, dimension.log, dimension.step
    if all(isinstance(value, int) for value in (low, high, step or 1)):
        return optuna.distributions.IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return optuna.distributions.FloatDistribution(low, high, log=log, step=step)


def _means(points: list[tuple[int, float]], every: int) -> list[tuple[int, float]]:
    """The mean of each whole block of `every` steps, at its last step."""
    blocks: dict[int, list[float]] = {}
    for step, value in points:
        blocks.setdefault((step - 1) // every, []).append(value)
    last = points[-1][0] if points else 0
    return [
        ((block + 1) * every, sum(values) / len(values))
        for block, values in blocks.items()
        if (block + 1) * every <= last
    ]


def _draw(study: "optuna.Study", plan: Search) -> None:
    """History and importance, as far as there are any, into study.png."""
    from matplotlib.figure import Figure
    from optuna.trial import TrialState

    from vlmft.sweeps.curves import draw

    last = _by_job(study)
    complete = {job: trial.value for job, trial in last.items() if trial.state == TrialState.COMPLETE}
    figure = Figure(figsize=(13, 5), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    values = [value for value in complete.values() if value is not None]
    better = max if plan.direction == "maximize" else min
    running = [better(values[: end + 1]) for end in range(len(values))]
    panels[0].plot(list(complete), values, "o", label="trial")
    panels[0].plot(list(complete), running, "-", drawstyle="steps-post", label="best so far")
    for state, mark in ((TrialState.PRUNED, "C7"), (TrialState.FAIL, "C3")):
        for number, job in enumerate(job for job, trial in last.items() if trial.state == state):
            text = {"label": state.name.lower()} if number == 0 else {}
            panels[0].axvline(job, color=mark, linestyle=":", **text)
    panels[0].set(xlabel="trial", ylabel=plan.objective, title="history")
    panels[0].legend(fontsize="small")
    importance = _importance(study)
    panels[1].barh(list(importance), list(importance.values()))
    panels[1].invert_yaxis()
    panels[1].set(xlabel="share of what decides whether a trial is among the best", title="importance")
    if not importance:
        panels[1].text(0.5, 0.5, "needs more trials that differ", ha="center", transform=panels[1].transAxes)
    path: Path = plan.folder / PICTURE
    try:
        path.write_bytes(draw(figure, "png"))
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def _importance(study: "optuna.Study") -> dict[str, float]:
    """Parameter -> its share, by PED-ANOVA (Watanabe et al., 2023); {} where too little is known."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except (ValueError, RuntimeError):
            return {}
