"""The JSON Schema of a structured caption: what a model is asked for, what breaks it, and the one way to write it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmft.config.hints import did_you_mean
from vlmft.data.sources.parsed import shown
from vlmft.errors import DataError

NO_CAPTION = ("id", "image", "video")
"""Keys of a row, and properties of a schema that describes whole rows, that belong to no caption."""

_TYPES = {"string": "text", "integer": "whole number", "boolean": "true or false", "array": "list"}
_MAPPINGS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "prefixItems")
_DEEPEST = 6  # columns of indentation
_OPENING = ("additionalProperties", "patternProperties", "unevaluatedProperties", "allOf")


@dataclass(frozen=True)
class CaptionSchema:
    """A schema of captions, as JSON: it travels to other processes, and compares by what it says."""

    text: str

    def problems(self, caption: dict[str, Any]) -> list[str]:
        """Everything that breaks the schema, each with its field, what was found, and what was expected."""
        errors = _validator(self.text).iter_errors(caption)
        return list(dict.fromkeys(problem for error in errors for problem in self._said(error)))

    def answer(self, caption: dict[str, Any]) -> str:
        """The caption as the JSON that a model is to write: keys in the schema's order, with those of the author last.

        A list whose schema says `uniqueItems` and names its items is a set, and takes the schema's order; any other
        keeps its author's.
        """
        try:
            return json.dumps(self._ordered(caption, self._root), ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise DataError("it holds NaN or Infinity, which is no number in JSON; write null, or a number") from None

    def fields(self) -> str:
        """A line for each field: its name, what may stand there, its description; inner ones to a depth of four."""
        return "\n".join(self._lines(self._root, ""))

    @property
    def _root(self) -> dict[str, Any]:
        return _loaded(self.text)

    def _resolved(self, part: Any) -> dict[str, Any]:
        """What a part of the schema says, its reference followed and its null left out."""
        seen: set[str] = set()
        while isinstance(part, dict):
            reference = part.get("$ref")
            if isinstance(reference, str) and reference not in seen:
                seen.add(reference)
                named, left_out = _at(self._root, reference), "$ref"
            else:
                options = [option for option in part.get("anyOf") or () if option != {"type": "null"}]
                if len(options) != 1:
                    return part
                named, left_out = options[0], "anyOf"
            own = {key: value for key, value in part.items() if key != left_out}
            part = {**(named if isinstance(named, dict) else {}), **own}
        return {}

    def _ordered(self, value: Any, part: Any) -> Any:
        part = self._resolved(part)
        if isinstance(value, dict):
            properties = part.get("properties", {})
            named = [name for name in properties if name in value]
            rest = [name for name in value if name not in properties]
            return {name: self._ordered(value[name], properties.get(name)) for name in (*named, *rest)}
        if isinstance(value, list):
            items = self._resolved(part.get("items"))
            if part.get("uniqueItems") is True and isinstance(options := items.get("enum"), list):
                return sorted(value, key=options.index)
            return [self._ordered(item, items) for item in value]
        return value

    def _lines(self, part: dict[str, Any], indent: str) -> Iterator[str]:
        if len(indent) > _DEEPEST:  # a schema may hold itself
            return
        required = part.get("required")
        for name, value in part.get("properties", {}).items():
            field = self._resolved(value)
            optional = " (may be left out)" if required is not None and name not in required else ""
            said = f"; {field['description']}" if field.get("description") else ""
            yield f"{indent}- {name}{optional}: {self._kind(value)}{said}"
            inner = self._resolved(field.get("items")) if field.get("type") == "array" else field
            yield from self._lines(inner, f"{indent}  ")

    def _kind(self, part: Any) -> str:
        """What may stand in a field, in words."""
        null = isinstance(part, dict) and {"type": "null"} in (part.get("anyOf") or ())
        said = self._resolved(part)
        if "const" in said:
            return f"always {json.dumps(said['const'], ensure_ascii=False)}"
        if isinstance(said.get("enum"), list):
            return _or_null(f"one of {_options(said['enum'])}", null)
        types = said.get("type", "value")
        names = [types] if isinstance(types, str) else list(types)
        if "array" in names and isinstance(options := self._resolved(said.get("items")).get("enum"), list):
            return _or_null(f"list of any of {_options(options)}", null or "null" in names)
        return _or_null(" or ".join(_TYPES.get(name, name) for name in names) + _range(said), null)

    def _said(self, error: Any) -> Iterator[str]:
        path = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in error.absolute_path).lstrip(".")
        where = f"its '{path}'" if path else "it"
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        if error.validator == "required":
            for name in error.validator_value:
                if name not in error.instance:
                    yield f"{'it' if not path else where} has no '{name}'; expected {self._kind(known.get(name))}"
        elif error.validator == "additionalProperties" and error.validator_value is False:
            patterns = error.schema.get("patternProperties")
            for name in () if patterns else error.instance:
                if name not in known:
                    hint = did_you_mean(name, known) or "; remove it, or add it to the schema"
                    yield f"{where} has the key '{name}', which the schema does not name{hint}"
            if patterns:
                yield f"{where}: {error.message}; mend it, or the schema"
        elif error.validator in ("enum", "type", "anyOf"):
            hint = did_you_mean(error.instance, _texts(error.schema)) if isinstance(error.instance, str) else ""
            yield f"{where} is {shown(error.instance)}; expected {self._kind(error.schema)}{hint}"
        else:
            yield f"{where} is {shown(error.instance)}: {error.message[:200]}; mend it, or the schema"


def read_schema(path: Path) -> CaptionSchema:
    """Read the schema of a file.

    It describes an object by its `properties`. Those of `NO_CAPTION` are left out. An object may hold other keys only
    where its schema says so (`additionalProperties`, `patternProperties`): by JSON Schema's own rule every misspelt key
    would be one more field.

    Raises:
        DataError: the file cannot be read, is no JSON Schema, describes no object, or refers to other documents.
    """
    from jsonschema import SchemaError  # type: ignore[import-untyped]

    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"schema_path {path} cannot be read: {error.strerror}; {_FORM}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"schema_path {path} is not valid JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("properties"), dict):
        raise DataError(f"schema_path {path} describes no object; {_FORM}")
    try:
        _dialect(value).check_schema(value)
    except SchemaError as error:
        where = "/".join(map(str, error.path)) or "the whole"
        raise DataError(f"schema_path {path} is no JSON Schema: {where}: {error.message}") from None
    for reference in sorted(set(_references(value))):
        if not reference.startswith("#"):
            raise DataError(f"schema_path {path} refers to {reference}; write what it says under $defs")
        if _at(value, reference) is None:
            raise DataError(f"schema_path {path} refers to {reference}, which it does not hold; mend the $ref")
    properties = {name: part for name, part in value["properties"].items() if name not in NO_CAPTION}
    if not properties:
        raise DataError(f"schema_path {path} asks for nothing beside {', '.join(NO_CAPTION)}; {_FORM}")
    caption = _closed(value | {"properties": properties})
    if "required" in value:
        caption["required"] = [name for name in value["required"] if name not in NO_CAPTION]
    return CaptionSchema(json.dumps(caption))


_FORM = 'expected {"type": "object", "properties": {"caption": {"type": "string"}, ...}, "required": ["caption", ...]}'


@lru_cache(maxsize=32)
def _loaded(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value


@lru_cache(maxsize=32)
def _validator(text: str) -> Any:
    from referencing import Registry

    schema = _loaded(text)
    # An empty registry: without one, jsonschema asks the network for what a $ref names.
    return _dialect(schema)(schema, registry=Registry())


def _dialect(schema: dict[str, Any]) -> Any:
    """The validator of the version that a schema names, or of the newest."""
    from jsonschema import Draft202012Validator, validators

    return validators.validator_for(schema, default=Draft202012Validator)


def _closed(part: Any) -> Any:
    """The schema with every object closed that does not say whether it is open."""
    if not isinstance(part, dict):
        return part
    closed = dict(part)
    for key in _MAPPINGS:
        if isinstance(part.get(key), dict):
            closed[key] = {name: _closed(inner) for name, inner in part[key].items()}
    for key in _LISTS:
        if isinstance(part.get(key), list):
            closed[key] = [_closed(inner) for inner in part[key]]
    for key in ("items", "additionalProperties"):
        if key in part:
            closed[key] = _closed(part[key])
    if "properties" in part and not any(key in part for key in _OPENING):
        closed["additionalProperties"] = False
    return closed


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _references(inner)


def _at(root: dict[str, Any], reference: str) -> Any:
    """What `#/a/b` names in the schema; None where there is nothing."""
    found: Any = root
    for name in reference.removeprefix("#").split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _options(values: list[Any]) -> str:
    return ", ".join(json.dumps(value, ensure_ascii=False) for value in values)


def _texts(part: Any) -> list[str]:
    return [value for value in (part.get("enum") or () if isinstance(part, dict) else ()) if isinstance(value, str)]


def _range(part: dict[str, Any]) -> str:
    least, most = part.get("minimum"), part.get("maximum")
    return (f" from {least}" if least is not None else "") + (f" up to {most}" if most is not None else "")


def _or_null(said: str, null: bool) -> str:
    return f"{said} or null" if null else said
