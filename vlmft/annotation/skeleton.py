"""Rows whose answers are placeholders, for people to fill in."""

import json
from collections.abc import Iterator
from typing import Any

from vlmft.annotation.media import MediaFile
from vlmft.annotation.rows import is_list, read_rows, write_whole
from vlmft.annotation.task import Task, keep_schema
from vlmft.annotation.templates import Template
from vlmft.data.placeholders import PLACEHOLDER, placeholder
from vlmft.errors import ConfigError


def write_skeleton(task: Task) -> None:
    """Write `task.out`, or add to it the media that it does not name; what stands in it stays as it is, byte for byte.

    Raises:
        ConfigError: it exists and `append` is not said.
        DataError: it exists and cannot be read.
        StorageError: it cannot be written.
    """
    from vlmft.screen import console

    exists = task.out.exists()
    if exists and not task.append:
        raise ConfigError(
            f"out={task.out}: exists, and nothing is overwritten; append=true adds the media that it does not name "
            "yet, or choose another name"
        )
    rows = [row for _, row in read_rows(task.out)] if exists else []
    keep_schema(task)
    new = list(_rows(task, task.missing(rows), len(rows)))
    if new:
        text = task.out.read_bytes().decode() if exists else ""
        text = _with_items(text, new) if is_list(task.out) else _with_lines(text, new)
        write_whole(task.out, text.encode())
    said = [f"written  {task.out}: {len(new)} rows to fill in, each marked {PLACEHOLDER}: ...]"]
    said += [f"left     {len(rows)} rows that were there"] if exists else []
    console().print("\n".join([*said, f"paths    start from {task.base}"]), markup=False)


def _rows(task: Task, files: list[MediaFile], before: int) -> Iterator[dict[str, Any]]:
    for number, file in enumerate(files, start=before):
        if task.schema is not None:
            yield {file.kind: file.reference, **_caption(json.loads(task.schema.text))}
        else:
            yield _conversation(file, task.templates[number % len(task.templates)])


def _conversation(file: MediaFile, template: Template) -> dict[str, Any]:
    return {
        "id": file.reference,
        file.kind: file.reference,
        "conversations": [
            {"from": "human", "value": f"<{file.kind}>\n{template.question}"},
            {"from": "gpt", "value": placeholder(template.answer)},
        ],
    }


def _caption(part: dict[str, Any]) -> dict[str, Any]:
    fields = part.get("properties", {}).items()
    return {name: _value(name, inner if isinstance(inner, dict) else {}) for name, inner in fields}


def _value(name: str, part: dict[str, Any], choose: str = "one of") -> Any:
    """What stands in a field that is to be filled in: its description, and what it may be."""
    if "properties" in part:
        return _caption(part)
    said = part.get("description", "")
    if isinstance(items := part.get("items"), dict):
        return [_value(name, items if "description" in items or not said else {**items, "description": said}, "any of")]
    if isinstance(part.get("enum"), list):
        options = ", ".join(item if isinstance(item, str) else json.dumps(item) for item in part["enum"])
        return placeholder(f"{said}: {choose} {options}" if said else f"{choose} {options}")
    return placeholder(said or name)


def _with_lines(text: str, rows: list[dict[str, Any]]) -> str:
    end = "" if not text or text.endswith("\n") else "\n"
    return text + end + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _with_items(text: str, rows: list[dict[str, Any]]) -> str:
    """`text`, a JSON list that has been read already, with `rows` at its end."""
    items = ",\n".join(json.dumps(row, ensure_ascii=False, indent=2) for row in rows)
    before = text.rstrip().removesuffix("]").rstrip() or "["
    return f"{before}{'' if before.endswith('[') else ','}\n{items}\n]\n"
