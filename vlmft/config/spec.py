"""The base of every spec: a light, typed description of one choice, made from a `_target_` entry.

A spec is the object that does the work, too: its methods import what they need when they are called,
so that composing and checking a run imports no torch.
"""

from pathlib import PurePath
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from vlmft.config.hints import did_you_mean
from vlmft.config.targets import resolve_target
from vlmft.errors import ConfigError

TARGET = "_target_"


class Spec(BaseModel):
    """A checked choice. Unknown keys, wrong types and values out of range are refused, all at once.

    A subclass declared with `abstract=True` stands for a family: where a field has that type, the
    entry's `_target_` says which member it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
    is_abstract: ClassVar[bool] = False

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.is_abstract = abstract

    @model_validator(mode="wrap")
    @classmethod
    def _by_target(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        data = dict(data)
        target = data.pop(TARGET, None)
        if target is not None:
            named = resolve_target(target, cls)
            if named is not cls:
                return named.model_validate(data)
        if cls.is_abstract:
            raise ValueError(f"needs a {TARGET} that names a {cls.__name__}")
        try:
            return handler(data)
        except ValidationError as error:
            raise _with_near_keys(error, cls) from None

    def to_config(self) -> dict[str, Any]:
        """The plain mapping, `_target_` included, from which `validate` builds an equal spec."""
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        return {TARGET: target} | {name: _plain(getattr(self, name)) for name in type(self).model_fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_config()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def of_a_relative(cls: type[Spec], key: str) -> str:
    """What to say where `key` is none of `cls`'s but of others in its family (a Full policy given a rank), or ""."""
    family = next((base for base in reversed(cls.__mro__) if issubclass(base, Spec) and base.is_abstract), None)
    members = dict.fromkeys(_members(family)) if family else ()  # a class may have two bases in the family
    owners = [other.__name__ for other in members if key in other.model_fields]
    if not owners:
        return ""
    have = "has" if len(owners) == 1 else "have"
    return f": {' and '.join(owners)} {have} it, and this is {cls.__name__}; choose another, or leave it out"


def _members(family: type[Spec]) -> list[type[Spec]]:
    below = [member for child in family.__subclasses__() for member in _members(child)]
    return below if family.is_abstract else [family, *below]


def _with_near_keys(error: ValidationError, cls: type[Spec]) -> ValidationError:
    """Rewrite the unknown keys among `error`, each naming the known key it resembles."""
    details: list[InitErrorDetails] = []
    for line in error.errors(include_url=False):
        kind, message = line["type"], line["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden" and len(line["loc"]) == 1:
            key = str(line["loc"][0])
            known = f"; known here: {', '.join(cls.model_fields)}"
            hint = of_a_relative(cls, key) or did_you_mean(key, cls.model_fields) or known
            kind, message = "unknown_key", f"unknown key{hint}"
        rewritten = PydanticCustomError(kind, "{message}", {"message": message})
        details.append(InitErrorDetails(type=rewritten, loc=line["loc"], input=line["input"]))
    return ValidationError.from_exception_data(error.title, details)


S = TypeVar("S", bound=Spec)


def validate(schema: type[S], values: dict[str, Any]) -> S:
    """Build `schema` from plain values, or raise one `ConfigError` that lists every problem with its path."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*(_describe(line) for line in error.errors(include_url=False))) from None


def _describe(line: Any) -> str:
    path = ".".join(str(part) for part in line["loc"])
    message = line["msg"].removeprefix("Value error, ")
    if line["type"] in ("missing", "unknown_key") or isinstance(line["input"], dict | list):
        return f"{path}: {message}"
    return f"{path}: {message} (found {line['input']!r})"
