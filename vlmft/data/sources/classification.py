"""Pictures and videos with a class, or with several."""

from functools import cached_property, partial
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from vlmft.config.hints import did_you_mean
from vlmft.data.sources.files import JsonDataset
from vlmft.data.sources.parsed import Parsed, Parser, check_object, keys_of, shown
from vlmft.data.sources.placing import Draft, split_at_tags
from vlmft.data.sources.prompts import prompt_of
from vlmft.data.sources.turns import conversation, media_of
from vlmft.errors import DataError
from vlmft.types import Classes, Labels

FROM_DATA = "from_data"
_LISTED = 20  # classes named in one message


class ClassificationDataset(JsonDataset):
    """Samples whose row is `{"id", "image" and/or "video", "prompt", "label"}`.

    `label` is the class's name, or its number, counted from 0; with `multi_label: true` a list of those, maybe empty.
    """

    labels: Annotated[
        tuple[str, ...] | int | Literal["from_data"],
        Field(
            description="The classes' names in order, or how many classes there are, or from_data: the names that the "
            "labels in data_path give, sorted."
        ),
    ]
    multi_label: Annotated[bool, Field(description="A sample has any number of classes instead of one.")] = False
    prompt: Annotated[str, Field(min_length=1, description="What is asked where a row has no prompt of its own.")] = (
        "Which class does this belong to?"
    )

    @model_validator(mode="after")
    def _classes(self) -> Self:
        if self.labels != FROM_DATA and (problem := problem_with(self.class_names)):
            raise ValueError(f"labels: {problem}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in order; those that are only counted are called by their numbers.

        Raises:
            DataError: they are to be read from a file that cannot be used.
        """
        if isinstance(self.labels, int):
            return tuple(map(str, range(self.labels)))
        return self.labels if isinstance(self.labels, tuple) else self._found

    @cached_property
    def _found(self) -> tuple[str, ...]:
        """The names that the file's labels give; rows that give none are left to the parser, which says so."""
        from vlmft.data.sources.jsonrows import read_json_rows

        file = self.data_file(self.data_path)
        if not file.is_file():
            raise DataError(f"data_path {file} does not exist; give the path of a .json or .jsonl file")
        rows = read_json_rows(file, "")
        names: set[str] = set()
        for row in range(len(rows)):
            value = rows.value(row)
            label = value.get("label") if isinstance(value, dict) else None
            for name in label if isinstance(label, list) else [label]:
                if type(name) is int:
                    raise DataError(
                        f"{rows.place(row)}: its 'label' is the number {name}, and labels: {FROM_DATA} takes names "
                        "alone; give labels the names in order, or how many classes there are"
                    )
                if isinstance(name, str):
                    names.add(name)
        if problem := problem_with(tuple(names)):
            raise DataError(f"data_path {file}: labels: {FROM_DATA}: {problem}")
        return tuple(sorted(names))

    @property
    def classes(self) -> Classes:
        """See `DatasetSpec.classes`."""
        return Classes(self.class_names, self.multi_label)

    def parser(self) -> Parser:
        """See `JsonDataset.parser`."""
        return partial(
            parse_labelled,
            labels=self.class_names,
            multi_label=self.multi_label,
            prompt=self.prompt,
            frames_fps=self.frames_fps,
        )


def problem_with(labels: tuple[str, ...]) -> str:
    """What is wrong with a list of classes, or nothing."""
    if len(labels) < 2:
        return f"two classes or more are needed; found {len(labels)}"
    if twice := sorted({name for name in labels if labels.count(name) > 1}):
        return f"{', '.join(twice)} stands twice; name each class once"
    return "" if all(name.strip() for name in labels) else "a class has an empty name; give it one"


def parse_labelled(
    row: Any, labels: tuple[str, ...], multi_label: bool = False, prompt: str = "", frames_fps: float | None = None
) -> Parsed:
    """Read a row as `ClassificationDataset` describes it.

    Args:
        labels: the classes' names in order.
        multi_label: a row's label is a list.
        prompt: what is asked where the row has no prompt.
        frames_fps: how many frames make a second, where a video is given as frames.

    Raises:
        DataError: the row breaks a rule of the format, or its class is unknown.
    """
    row = check_object(row, "'image' or 'video', and 'label'")
    found = _labels(row, labels, multi_label)
    drafts = prompt_of(row, frames_fps) if row.get("prompt") is not None else [Draft("user", split_at_tags(prompt))]
    if row.get("prompt") is None and not any(media_of(row, frames_fps).values()):
        raise DataError(f"it has no 'image', 'video' or 'prompt' {keys_of(row)}; expected what is to be classified")
    parsed = conversation(row, drafts, frames_fps, ends_in_question=True)
    return Parsed(parsed.turns, parsed.media, Labels(found, multi_label))


def _labels(row: dict[str, Any], labels: tuple[str, ...], multi_label: bool) -> tuple[str, ...]:
    """The row's classes, in the order of `labels`."""
    if row.get("label") is None:
        raise DataError(f"it has no 'label' {keys_of(row)}; expected its class")
    found = row["label"]
    if not multi_label:
        if isinstance(found, list | tuple):
            raise DataError(f"its 'label' is {shown(found)}; expected one class, or multi_label: true in the entry")
        return (labels[_index(found, labels)],)
    if not isinstance(found, list | tuple):
        raise DataError(f"its 'label' is {shown(found)}; with multi_label: true, expected a list of classes")
    chosen = [_index(label, labels) for label in found]
    if len({*chosen}) < len(chosen):
        raise DataError(f"its 'label' {shown(found)} names a class twice; name each once")
    return tuple(labels[index] for index in sorted(chosen))


def _index(found: Any, labels: tuple[str, ...]) -> int:
    """Which class a label names. A number is a position, and may not be another class's name at the same time."""
    if type(found) is int and 0 <= found < len(labels):
        if str(found) in labels and labels[found] != str(found):
            raise DataError(
                f"its 'label' {found} may mean the class named {str(found)!r}, or {labels[found]!r}, number {found} "
                "from 0; write the class's name as text"
            )
        return found
    if isinstance(found, str) and found in labels:
        return labels.index(found)
    hint = did_you_mean(found, labels) if isinstance(found, str) else ""
    more = f" and {len(labels) - _LISTED} more" if len(labels) > _LISTED else ""
    raise DataError(
        f"its 'label' holds {shown(found)}; expected one of {', '.join(labels[:_LISTED])}{more}"
        f"{hint or '; mend it, or add the class to labels'}"
    )
