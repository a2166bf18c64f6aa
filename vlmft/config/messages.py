"""Hydra's and OmegaConf's exceptions, said as vlmft says things: what was found, where, and what it may have meant."""

import re
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from vlmft.config.files import describe_yaml_error
from vlmft.config.hints import did_you_mean
from vlmft.errors import ConfigError, VlmftError


def explain(error: Exception) -> VlmftError | None:
    """Return the error to show for `error`, raised while composing; None if that is a fault of the program."""
    causes = _chain(error)
    for cause in causes:
        if isinstance(cause, VlmftError):
            return cause
    for cause in causes:
        if isinstance(cause, OverrideParseException):
            return ConfigError(f"{cause.override}: cannot be read: {_first_line(cause)}")
        if isinstance(cause, MissingConfigException):
            return ConfigError(_missing_option(cause))
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.key is not None:
            return ConfigError(_unknown_key(cause))
        if isinstance(cause, yaml.YAMLError):
            return ConfigError(describe_yaml_error(cause))
        if several := re.match(r"Ambiguous value for argument '(.*?)=(.*)'", str(cause)):
            key, values = several.groups()
            return ConfigError(
                f"{key}={values}: several values are a sweep and need -m; a list is written {key}=[{values}]"
            )
    if isinstance(error, HydraException | OmegaConfBaseException | ValueError | OSError):
        texts = [text for cause in causes if (text := _one_line(cause))]
        return ConfigError(texts[0] if texts else type(error).__name__)
    return None


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in found:
        found.append(link)
        # OmegaConf suppresses the context of what it raises, and with it the reason.
        link = link.__cause__ or link.__context__
    return found


def _missing_option(error: MissingConfigException) -> str:
    # A slash means an option file; the primary config is where every word of the command line is looked up.
    parent = re.match(r"In '([^']*/[^']*)'", str(error))
    where = f" (chosen in {parent[1]})" if parent else ""
    if not error.missing_cfg_file:
        return _one_line(error)
    group, _, option = error.missing_cfg_file.rpartition("/")
    if not group:
        return f"there is no config named {option}{where}"
    options = list(error.options or [])
    known = f"; known: {', '.join(sorted(options))}" if options else ""
    return f"{group}: there is no option {option}{did_you_mean(option, options) or known}{where}"


def _unknown_key(error: Any) -> str:
    key, parent = str(error.key), error.parent_node
    known = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    hint = (
        _of_a_relative(parent, key)
        or did_you_mean(key, known)
        or (f"; known here: {', '.join(known)}" if known else "")
    )
    return f"{error.full_key or key}: unknown key{hint}"


def _of_a_relative(parent: Any, key: str) -> str:
    """The hint where the entry's `_target_` is one of several kinds, another of which has the key."""
    from vlmft.config.spec import TARGET, Spec, of_a_relative
    from vlmft.config.targets import resolve_target

    plain = OmegaConf.to_container(parent, resolve=False) if isinstance(parent, DictConfig) else None
    target = plain.get(TARGET) if isinstance(plain, dict) else None
    if not isinstance(target, str):
        return ""
    try:
        return of_a_relative(resolve_target(target, Spec), key)
    except (ConfigError, ValueError):
        return ""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].strip()


def _one_line(error: BaseException) -> str:
    """Join the lines that say something: the search path and OmegaConf's notes on types are left out."""
    lines: list[str] = []
    for line in str(error).splitlines():
        if line.startswith(("Config search path", "Search path")):
            break
        if line.strip() and not line.strip().startswith(("object_type=", "reference_type=", "full_key:", "See https:")):
            lines.append(line.strip())
    return " ".join(lines)
