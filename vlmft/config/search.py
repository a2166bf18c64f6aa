"""`hydra/sweeper=optuna`: Hydra's words for intervals and choices become a space, in which trials are jobs of a pool.

How values are chosen in it is not known here: the command gives `run_app` a function for that.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from vlmft.config.hints import did_you_mean
from vlmft.config.pool import JobEnded, PoolJob, PoolLauncher, StopEarly
from vlmft.errors import ConfigError


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; whole ones where both ends are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Choice:
    """One of these, each as it is written on the command line."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """What is looked for; conf/hydra/sweeper/optuna.yaml says what each value means."""

    folder: Path
    """The sweep's."""
    words: tuple[str, ...]
    """What is the same in all trials."""
    space: Mapping[str, Interval | Choice]
    trials: int
    objective: str
    direction: Literal["maximize", "minimize"]
    seed: int
    startup_trials: int
    prune_by: str | None
    prune_every_steps: int


class RunTrials(Protocol):
    """Runs jobs: the next one is asked for when there is room. See `vlmft.config.pool.RunJobs`."""

    def __call__(self, jobs: Iterable[PoolJob], ended: JobEnded, stop_early: StopEarly) -> None:
        """Run them all."""


ComposeTrial = Callable[[int, tuple[str, ...]], list[PoolJob]]
"""Makes job `number` from the words of its trial; none where it is wrong, which is recorded."""

RunSearch = Callable[[Search, ComposeTrial, RunTrials], None]


class OptunaSweeper(Sweeper):
    """Hands the space to the search, and its trials to the pool."""

    search: ClassVar[RunSearch | None] = None

    def __init__(self, params: Mapping[str, Any], **settings: Any) -> None:
        self.params, self.settings = params, settings
        self.config: DictConfig
        self.loader: ConfigLoader

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher; without a pool, trials run one after the other with all that the machine has."""
        self.config, self.loader = config, hydra_context.config_loader
        chosen: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(chosen, PoolLauncher):
            chosen = PoolLauncher.single()
            chosen.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.pool: PoolLauncher = chosen

    def sweep(self, arguments: list[str]) -> None:
        """Search until all trials are told.

        Raises:
            ConfigError: lists what is wrong with the settings or the space.
        """
        search = type(self).search
        if search is None:
            raise ConfigError("hydra/sweeper=optuna: this command has nothing to search for")
        parser = OverridesParser.create(config_loader=self.loader)
        overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        last = {override.get_key_element(): override for override in overrides}
        words = [_word(o) for o in last.values() if not o.is_sweep_override()]
        space = {key: _dimension(o) for key, o in last.items() if o.is_sweep_override()}
        self._compose_all(words, space)
        folder = Path(str(self.config.hydra.sweep.dir))
        plan = _checked(self.settings, folder, tuple(words), space)
        folder.mkdir(parents=True, exist_ok=True)

        def compose(number: int, trial: tuple[str, ...]) -> list[PoolJob]:
            return self.pool.compose([[*words, *trial]], number)

        search(plan, compose, self.pool.run)

    def _compose_all(self, words: list[str], space: Mapping[str, Interval | Choice]) -> None:
        """Compose each value once, so that a misspelt one ends the search before its first trial."""
        first = {key: d.values[0] if isinstance(d, Choice) else str(d.low) for key, d in space.items()}
        others = [{key: value} for key, d in space.items() if isinstance(d, Choice) for value in d.values[1:]]
        for changed in [{}, *others]:
            trial = [f"{key}={value}" for key, value in (first | changed).items()]
            self.loader.load_sweep_config(self.config, [*words, *trial])


def register(search: RunSearch | None) -> None:
    """Make the sweeper known to Hydra, with what it searches by. See `vlmft.config.pool.register`."""
    OptunaSweeper.search = staticmethod(search) if search is not None else None
    plugins = Plugins.instance()
    plugins.register(OptunaSweeper)
    plugins.class_name_to_class[f"hydra_plugins.vlmft.{OptunaSweeper.__name__}"] = OptunaSweeper


def _word(override: Override) -> str:
    key = override.get_key_element()
    return key if override.is_delete() else f"{key}={override.get_value_element_as_str()}"


def _dimension(override: Override) -> Interval | Choice:
    sweep: Any = override.value()
    key = override.get_key_element()
    if not isinstance(sweep, IntervalSweep | RangeSweep):
        return Choice(tuple(override.sweep_string_iterator()))
    unknown = sorted(sweep.tags - {"log"})
    if unknown:
        raise ConfigError(f"{key}: the tag {unknown[0]} means nothing here; known: log")
    log = "log" in sweep.tags
    if isinstance(sweep, IntervalSweep):
        found = Interval(sweep.start or 0, sweep.end or 0, log)
    else:
        values = list(sweep.range())
        if not values:
            raise ConfigError(f"{key}={override.get_value_string()}: is an empty range")
        found = Interval(min(values), max(values), log, abs(sweep.step))
    if found.low > found.high or (log and found.low <= 0):
        rule = "from a low to a high number" + (", above 0 where it is logarithmic" if log else "")
        raise ConfigError(f"{key}={override.get_value_string()}: should go {rule}")
    if log and found.step is not None:
        raise ConfigError(f"{key}={override.get_value_string()}: a range has even steps; use tag(log,interval(...))")
    return found


def _checked(
    settings: Mapping[str, Any], folder: Path, words: tuple[str, ...], space: Mapping[str, Interval | Choice]
) -> Search:
    problems = []
    known = tuple(Search.__dataclass_fields__)[3:]
    for key in settings.keys() - set(known):
        problems.append(f"hydra.sweeper.{key}: unknown key{did_you_mean(key, known)}")
    lowest = {"trials": 1, "seed": 0, "startup_trials": 0, "prune_every_steps": 1}
    for name, low in lowest.items():
        if type(settings.get(name)) is not int or settings[name] < low:
            found = settings.get(name)
            problems.append(f"hydra.sweeper.{name}: should be a whole number of at least {low}; found {found!r}")
    if settings.get("direction") not in ("maximize", "minimize"):
        found = settings.get("direction")
        problems.append(f"hydra.sweeper.direction: should be maximize or minimize; found {found!r}")
    if not isinstance(settings.get("objective"), str):
        problems.append("hydra.sweeper.objective: should name a field of result.json, such as train.loss")
    if not space:
        problems.append("hydra/sweeper=optuna: nothing to choose; give values such as optim.lr=interval(1e-5,1e-3)")
    ConfigError.raise_if(problems)
    return Search(folder, words, dict(space), **settings)
