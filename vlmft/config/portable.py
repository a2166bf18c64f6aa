"""Resolving a composed config twice over: to plain values, and to text that holds no environment variable's value.

The text is what a run folder keeps and what the ranks read. Everything in it is resolved, so that no rank
asks the clock or Hydra again, except what depends on the environment: that stays as written, because
`${oc.env:WANDB_API_KEY}` may be shown to anybody and its value to nobody.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from omegaconf import Container, DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar_parser import parse
from omegaconf.resolvers import oc

from vlmft.errors import ConfigError

_IDENTITY = "vlmft.identity"  # a resolver that returns its argument, to find out what an argument is


@dataclass(frozen=True)
class Resolved:
    """A config in both forms."""

    values: dict[str, Any]
    """Plain values, those of environment variables among them."""
    text: str
    """YAML without any value of an environment variable."""
    hidden: dict[str, str] = field(repr=False)
    """`repr` of each value that came from the environment -> `repr` of what stands in the text for it."""

    def redact(self, message: str) -> str:
        """Return `message` with values found in the environment replaced by their references."""
        for value, reference in self.hidden.items():
            message = message.replace(f"(found {value})", f"(found {reference})")
        return message


def resolve(cfg: DictConfig) -> Resolved:
    """Resolve `cfg`, which serves as scratch space but comes out unchanged.

    Raises:
        ConfigError: lists each value that is missing (`???`), refers to what does not exist, or needs an
            environment variable that is not set, with its key.
    """
    walk = _Walk()
    with _watched_environment(walk), flag_override(cfg, ["struct", "readonly"], False):
        values, portable = walk.container(cfg, "")
    ConfigError.raise_if(walk.problems)
    return Resolved(values, OmegaConf.to_yaml(OmegaConf.create(portable)), walk.hidden)


def resolve_key(cfg: DictConfig, section: str, key: str) -> Any:
    """Return the value of `section.key` alone; None if `cfg` has no such key.

    Raises:
        ConfigError: as `resolve`.
    """
    node = cfg.get(section)
    raw = OmegaConf.to_container(node) if isinstance(node, DictConfig) else None
    if not isinstance(raw, dict) or key not in raw:
        return None
    walk = _Walk()
    with _watched_environment(walk), flag_override(cfg, ["struct", "readonly"], False):
        value, _ = walk.item(node, key, raw[key], f"{section}.{key}")
    ConfigError.raise_if(walk.problems)
    return value


@dataclass
class _Value:
    """A resolved piece, and how it is written where it must be resolved again: `reference`, or None if it need not."""

    value: Any
    reference: str | None = None


class _Walk:
    def __init__(self) -> None:
        self.problems: list[str] = []
        self.hidden: dict[str, str] = {}
        self.environment_read = False
        self.variable_missing: str | None = None

    def container(self, node: Any, path: str) -> tuple[Any, Any]:
        """Return `node`'s plain values and its portable form."""
        raw = OmegaConf.to_container(node)
        if isinstance(raw, dict):
            pairs = {key: self.item(node, key, below, _join(path, key)) for key, below in raw.items()}
            return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}
        assert isinstance(raw, list)
        items = [self.item(node, index, below, f"{path}[{index}]") for index, below in enumerate(raw)]
        return [item[0] for item in items], [item[1] for item in items]

    def item(self, node: Any, key: Any, raw: Any, path: str) -> tuple[Any, Any]:
        if OmegaConf.is_missing(node, key):
            self.problems.append(f"{path}: a value is required ({path}=...)")
            return None, None
        if not OmegaConf.is_interpolation(node, key):
            if isinstance(raw, dict | list):
                return self.container(node[key], path)
            return node[key], raw  # `raw` still has its escapes
        self.variable_missing = None
        try:
            found = self._text(node, key, raw)
        except (OmegaConfBaseException, ValueError) as error:
            self.problems.append(f"{path}: {self._describe(error)}")
            return None, None
        finally:
            node[key] = raw
        if found.reference is None:
            return found.value, _escaped(found.value)
        self.hidden[repr(found.value)] = repr(found.reference)
        return found.value, found.reference

    def _text(self, node: Any, key: Any, raw: str) -> _Value:
        """Resolve a text piece by piece, so that only the pieces that depend on the environment stay references."""
        pieces = list(_pieces(raw))
        if len(pieces) == 1:
            return self._interpolation(node, key, raw)
        found = [self._interpolation(node, key, text) if live else _Value(text) for text, live in pieces]
        value = "".join(str(piece.value) for piece in found)
        if all(piece.reference is None for piece in found):
            return _Value(value)
        written = ""
        literal = ""
        for piece in found:
            if piece.reference is None:
                literal += str(piece.value)
            else:
                written += escape(literal, before_interpolation=True) + piece.reference
                literal = ""
        return _Value(value, written + escape(literal))

    def _interpolation(self, node: Any, key: Any, text: str) -> _Value:
        """Resolve the single interpolation `text` as if it stood at `key`, where relative references start from."""
        self.environment_read = False
        node[key] = text
        value = node[key]
        if isinstance(value, Container):
            value = OmegaConf.to_container(value, resolve=True)
        if not self.environment_read:
            return _Value(value)
        return _Value(value, self._frozen(node, key, text))

    def _frozen(self, node: Any, key: Any, text: str) -> str:
        """Return `text` with those arguments resolved that do not need the environment.

        An argument that needs it stays as written, even where it is a text with other references beside it.
        """
        for start, end in reversed(list(_arguments(text))):
            argument = text[start:end]
            if [live for _, live in _pieces(argument)] == [True]:
                found = self._interpolation(node, key, argument)
            else:
                found = self._interpolation(node, key, f"${{{_IDENTITY}:{argument}}}")
                found.reference = found.reference and argument
            text = text[:start] + (found.reference or _quoted(found.value)) + text[end:]
        return text

    def _describe(self, error: Exception) -> str:
        if self.variable_missing is not None:
            return f"the environment variable {self.variable_missing} is not set"
        if self.environment_read:  # the details may hold the variable's value
            return "what the environment gives cannot be used here"
        return str(error).splitlines()[0]


@contextmanager
def _watched_environment(walk: _Walk) -> Iterator[None]:
    def env(*arguments: Any) -> str | None:
        walk.environment_read = True
        try:
            return oc.env(*arguments)
        except KeyError:
            walk.variable_missing = str(arguments[0])
            raise

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    OmegaConf.register_new_resolver(_IDENTITY, lambda value: value, replace=True)
    try:
        yield
    finally:
        OmegaConf.clear_resolver(_IDENTITY)
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _pieces(raw: str) -> Iterator[tuple[str, bool]]:
    """Cut `raw` into literal text, unescaped, and interpolations (True)."""
    text = parse(raw).getChild(0)
    children = [(child.getText(), type(child).__name__ == "InterpolationContext") for child in text.getChildren()]
    for (piece, live), (_, next_live) in zip(children, [*children[1:], ("", False)], strict=True):
        if live:
            yield piece, True
        elif piece.endswith("${"):  # backslashes, of which the last escapes the brace, and the rest escape each other
            yield "\\" * ((len(piece) - 3) // 2) + "${", False
        elif next_live and piece.strip("\\") == "":
            yield piece[: len(piece) // 2], False
        else:
            yield piece, False


def _arguments(text: str) -> Iterator[tuple[int, int]]:
    """Give start and end in `text`, a call `${name:a,b}`, of each argument that holds an interpolation."""
    call = parse(text).getChild(0).getChild(0).getChild(0)
    if type(call).__name__ != "InterpolationResolverContext" or call.getChildCount() < 5:
        return
    start = len("".join(call.getChild(place).getText() for place in range(3)))
    for element in call.getChild(3).getChildren():
        end = start + len(element.getText())
        if "${" in text[start:end]:
            yield start, end
        start = end


def _escaped(value: Any) -> Any:
    """Return `value` such that reading it back gives it again, though it may look like an interpolation."""
    if isinstance(value, dict):
        return {key: _escaped(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_escaped(below) for below in value]
    return escape(value) if isinstance(value, str) else value


def escape(text: str, before_interpolation: bool = False) -> str:
    """Return `text` written such that OmegaConf reads it back as it is, `${` included."""
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    if before_interpolation:
        text += "\\" * (len(text) - len(text.rstrip("\\")))
    return text


def _quoted(value: Any) -> str:
    """Return `value` as an argument in an interpolation."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(_quoted(below) for below in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_quoted(below)}" for key, below in value.items()) + "}"
    if not isinstance(value, str):
        return str(value)
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", escape(value))
    return "'" + escaped + "\\" * (len(escaped) - len(escaped.rstrip("\\"))) + "'"


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
