"""Whether a run may be continued: what it was, what it is now, and the difference between the two.

A resumed run equals an undisturbed one to the bit, as long as everything that its numbers depend on is the same. So
every choice, every data file and every library's version is part of a run's fingerprint; what only decides where and
how often something is shown or saved is not.
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlmft.errors import ConfigError
from vlmft.recipes.saved import hash_weights, saved_folder
from vlmft.run_folder import DONE, RunFolder
from vlmft.training import commit

if TYPE_CHECKING:
    from vlmft.data.run_data import RunData
    from vlmft.train import TrainConfig

# Keys, with all below them, that no number of the run depends on.
_FREE = (
    "_target_",  # __main__.TrainConfig or vlmft.train.TrainConfig: how the command was started
    "run",
    "resume",
    "resume_allow",
    "check_s",
    "preview",
    "logger",
    "max_bad_samples",
    "sample_timeout_s",
    "strategy.shutdown_timeout_s",
    "trainer.num_workers",
    "trainer.log_every",
    "trainer.oom_retries",
    "trainer.save_every",
    "trainer.keep",
    "trainer.save_completions",
    *(f"trainer.rollouts.{key}" for key in ("urls", "api_key_env", "weights_dir", "concurrency", "max_difference")),
    *(f"trainer.rollouts.{key}" for key in ("wait_s", "timeout_s", "sync_timeout_s")),
)
_LIBRARIES = ("accelerate", "numpy", "peft", "pillow", "tokenizers", "torch", "torchvision", "transformers", "vlmft")


def open_or_continue(
    config: "TrainConfig", config_text: str, path: Path, found: Mapping[str, Any]
) -> "tuple[RunFolder, bool]":
    """The run folder to work in, and whether there is anything left to do in it.

    Args:
        config_text: the config as config.yaml is to hold it.
        found: this run's fingerprint.

    Raises:
        ConfigError: the folder, or the checkpoint that `resume` names, belongs to another run; lists the differences.
    """
    folder = RunFolder(path)
    if not folder.config.exists():
        if config.resume not in ("auto", "none"):
            origin = commit.verify(Path(config.resume).expanduser())
            refuse_differences(origin.facts["fingerprint"], found, config.resume_allow, config.resume)
        # Before config.yaml, which makes it a run: killed between the two, it begins anew.
        path.mkdir(parents=True, exist_ok=True)
        folder.write_fingerprint(found)
        return RunFolder.create(path, config_text), True
    if config.resume not in ("auto", "none") and Path(config.resume).expanduser().resolve().is_relative_to(
        folder.checkpoints.resolve()
    ):
        raise ConfigError(
            f"resume={config.resume} is a checkpoint of this run, which goes on from its newest by itself "
            "(resume=auto); to begin from an earlier one, choose another run.dir"
        )
    if config.resume == "none":
        raise ConfigError(f"run.dir={path} holds a run already; choose another run.dir, or continue it (resume=auto)")
    # A run that was refused before its first step may be started again with other words.
    nothing_done = not folder.metrics.exists() and not folder.checkpoints.exists()
    was = found if nothing_done else folder.read_fingerprint()
    let_through = refuse_differences(was, found, config.resume_allow, str(path))
    if folder.read_result().get("state") == DONE and not let_through:
        return folder, False
    folder.replace_config(config_text)
    folder.write_fingerprint(found)
    folder.write_result(allowed_differences=let_through)
    return folder, True


def fingerprint(config: "TrainConfig", data: "RunData", ranks: int, config_text: str = "") -> dict[str, Any]:
    """Everything that the numbers of a run depend on, flat: dotted key -> value.

    What refers to the environment in `config_text`, the config as config.yaml is to hold it, may be a secret: its hash
    stands for it.
    """
    # What is left of references there are those to the environment.
    hidden = [key for key, value in _flat("", yaml.safe_load(config_text)) if "${" in str(value)]
    found: dict[str, Any] = {
        key: _hash(value) if _is_below(key, hidden) else value
        for key, value in _flat("", config.to_config())
        if not _is_free(key)
    }
    found |= {f"data.{name}.{key}": v for name, file in data.fingerprints().items() for key, v in file.items()}
    found |= {f"held_out.{name}.{key}": v for name, f in data.held_out_fingerprints().items() for key, v in f.items()}
    found |= {f"library.{name}": importlib.metadata.version(name) for name in _LIBRARIES}
    if config.model.adapter is not None:
        found |= {f"adapter.{name}": v for name, v in hash_weights(saved_folder(config.model.adapter)).items()}
    found["library.python"] = platform.python_version()
    found["ranks"] = ranks
    return found


def refuse_differences(was: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str], where: str) -> list[str]:
    """Compare two fingerprints; return the differences that `allowed` (keys, with all below them) lets through.

    Raises:
        ConfigError: lists every other difference, and what to do.
    """
    allowed = tuple(allowed)
    let_through: list[str] = []
    refused: list[str] = []
    for key in sorted(was.keys() | now.keys()):
        before, after = was.get(key, "nothing"), now.get(key, "nothing")
        if before != after:
            line = f"{key}: was {before!r}, is {after!r}"
            (let_through if _is_below(key, allowed) else refused).append(line)
    if refused:
        keys = ",".join(line.partition(":")[0] for line in refused)
        raise ConfigError(
            f"{where}: this is not the run that began there, so it cannot be continued exactly:",
            *(f"  {line}" for line in refused),
            f"  start a new one with another run.dir, or continue it all the same with 'resume_allow=[{keys}]'",
        )
    return let_through


def _hash(value: Any) -> str:
    return "sha256 " + hashlib.sha256(repr(value).encode()).hexdigest()


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        yield prefix, value


def _is_free(key: str) -> bool:
    return _is_below(key, _FREE)


def _is_below(key: str, parents: Iterable[str]) -> bool:
    return any(key == parent or key.startswith(parent + ".") for parent in parents)
