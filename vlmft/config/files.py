"""Reading one YAML file, with errors that say where in it."""

import math
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmft.errors import ConfigError

_MAX_VALUES = 10_000  # OmegaConf makes about 10,000 a second


def read_mapping(path: Path) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds, interpolations left as they are written; an empty file is `{}`.

    Raises:
        ConfigError: the file cannot be read, is no YAML or no mapping, or has a key twice.
    """
    try:
        _refuse_alias_bomb(path)
        # OmegaConf's loader, because it refuses a key that stands twice, which YAML's own lets the last one win.
        loaded = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ConfigError(describe_yaml_error(error, str(path))) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, LookupError, AttributeError, RecursionError) as error:  # `!!int x`, a thousand open brackets
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{path}: holds a value that cannot be read: {reason}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: should be a mapping (name: value); found a list")
    values = OmegaConf.to_container(loaded)
    assert isinstance(values, dict)
    return values


def _refuse_alias_bomb(path: Path) -> None:
    """Raise `ConfigError` where a file's aliases repeat its values too often: each repetition is a copy in OmegaConf.

    Ten lines of YAML can stand for a billion values, so these are counted before they are made.
    """
    text = path.read_text(encoding="utf-8")
    if "&" not in text:
        return
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and _size(root, {}) > _MAX_VALUES:
        raise ConfigError(
            f"{path}: its aliases (*name) repeat values more than {_MAX_VALUES} times, or without end; write them out"
        )


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the values below `node` with every alias written out; infinite where one holds itself."""
    found = known.get(id(node))
    if found is None:
        known[id(node)] = math.inf  # for whoever meets it again on the way down
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        found = 1 + (sum(_size(part, known) for part in below) if isinstance(below, list) else 0)
        known[id(node)] = found
    return found


def describe_yaml_error(error: yaml.YAMLError, path: str = "") -> str:
    """Return one line: file, line and column where PyYAML knows them, and what is wrong there."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None:
        return f"{path}: bad YAML: {problem}" if path else f"bad YAML: {problem}"
    return f"{path or mark.name}:{mark.line + 1}:{mark.column + 1}: bad YAML: {problem}"
