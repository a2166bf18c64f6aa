"""The folder of a sweep. `run.dir` names it, and each job's `run.dir` is a numbered folder below."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from vlmft.config.portable import resolve_key
from vlmft.errors import ConfigError


@dataclass(frozen=True)
class JobRecord:
    """How one job of a sweep ended."""

    number: int
    overrides: tuple[str, ...]
    run_dir: Path
    exit_code: int
    reason: str = ""
    """What its errors said, where they were raised in this process."""


class SweepFolder:
    """Answers `${vlmft.sweep_dir:}`, by which conf/_hydra.yaml tells Hydra where a sweep lives.

    Hydra asks once with the config that all jobs share and again with each job's. `run.dir` may depend on the
    clock and on what is swept, so the first answer is kept.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._missing: list[Path] = []

    def register(self) -> None:
        """Make this sweep the one that configs ask."""
        OmegaConf.register_new_resolver("vlmft.sweep_dir", self._answer, replace=True)

    def remove_if_unused(self) -> None:
        """Remove what Hydra made for a sweep that ended before its first job, such as one with a misspelt option."""
        for folder in self._missing:
            try:
                (folder / "multirun.yaml").unlink(missing_ok=True)
                folder.rmdir()
            except OSError:  # never made, or in use by somebody else
                continue

    def _answer(self, *, _root_: DictConfig) -> str:
        if self.folder is None:
            self.folder = _sweep_folder(_root_)
            self._missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        return str(self.folder)


def given_overrides(hydra: Any) -> tuple[str, ...]:
    """Return the overrides as typed; merely looking at one in `hydra` would resolve it (`token=${oc.env:TOKEN}`)."""
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return tuple(overrides)


def folder_given(overrides: Sequence[str]) -> Override | None:
    """Return the override by which the user chose `run.dir`, if there is one."""
    given = [override for override in overrides if "run.dir" in override]
    parsed = OverridesParser.create().parse_overrides(given) if given else []
    return next((override for override in parsed if override.key_or_group == "run.dir"), None)


def run_folder(cfg: DictConfig) -> Path | None:
    """Return `run.dir`, absolute; None where the config has none. Raises `ConfigError` where it is no path."""
    if "run" not in cfg or not OmegaConf.is_dict(cfg._get_node("run")):
        return None  # merge's `run` is a folder that is read, report has none
    value: Any = resolve_key(cfg, "run", "dir")
    if value is None and "dir" not in (cfg.get("run") or {}):
        return None
    if not isinstance(value, str | int) or value == "":
        raise ConfigError(f"run.dir: should be the path of a folder; found {value!r}")
    return Path(str(value)).expanduser().absolute()


def _sweep_folder(cfg: DictConfig) -> Path:
    given = folder_given(given_overrides(cfg.hydra))
    if given is not None and given.is_sweep_override():
        raise ConfigError(
            "run.dir: names the folder of the whole sweep, with a folder for each job in it; give one value"
        )
    # Hydra publishes its settings (`${hydra:...}`) to each job, but not yet to the sweep itself.
    published = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        folder = run_folder(cfg)
    finally:
        HydraConfig.instance().cfg = published
        OmegaConf.set_readonly(cfg.hydra, False)
    return folder or Path(datetime.now().strftime("multirun/%Y-%m-%d/%H-%M-%S")).absolute()
