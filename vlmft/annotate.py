"""Make training data: `python -m vlmft.annotate media_dir=/data/pics out=/data/pics/dataset.json templates=t.yaml`.

Conversations or structured captions that people fill in, or captions that a larger model gives (`annotator=openai`).
"""

import sys
from pathlib import Path
from typing import NoReturn

from pydantic import Field

from vlmft.annotation import Annotator
from vlmft.config.app import Composition, run_app
from vlmft.config.spec import Spec
from vlmft.errors import ConfigError, DataError


class AnnotateConfig(Spec):
    """Every choice; conf/annotate.yaml holds the values."""

    annotator: Annotator
    media_dir: Path = Field(description="folder of the pictures and videos, searched with its subfolders")
    out: Path = Field(description="the file to write")
    templates: Path | None = Field(description="YAML file of question templates, for conversations")
    # An attribute of the name `schema` would hide one of pydantic's.
    schema_path: Path | None = Field(alias="schema", description="JSON Schema of a caption, for structured captions")
    append: bool = Field(description="with placeholders: add the media that an existing `out` does not name yet")


def main() -> NoReturn:
    """The command."""
    sys.exit(run_app("annotate", AnnotateConfig, annotate))


def annotate(config: AnnotateConfig, composition: Composition) -> int:
    """Give each medium its row; return the exit code."""
    from vlmft.annotation.media import find_media
    from vlmft.annotation.task import Task
    from vlmft.annotation.templates import read_templates
    from vlmft.data.sources.caption_schema import read_schema
    from vlmft.screen import console

    captions = config.templates is None
    problems = config.annotator.check(not captions, config.schema_path is not None)
    if config.out.suffix.lower() not in ((".jsonl",) if captions else (".json", ".jsonl")):
        wanted = "captions should go to a .jsonl file" if captions else "expected a name that ends in .json or .jsonl"
        problems.append(f"out={config.out}: {wanted}")
    if not config.media_dir.expanduser().is_dir():
        problems.append(f"media_dir={config.media_dir}: is no folder; give the one that the media lie in")
    ConfigError.raise_if(problems)

    schema_path = config.schema_path and config.schema_path.expanduser()
    try:
        schema = read_schema(schema_path) if schema_path else None
    except DataError as error:  # it calls the file by the key of a dataset's entry
        raise ConfigError(*(f"schema: {said.removeprefix('schema_path ')}" for said in error.problems)) from None
    templates = read_templates(config.templates.expanduser()) if config.templates else []
    media_dir, out = config.media_dir.expanduser().resolve(), config.out.expanduser().absolute()
    out = out.parent.resolve() / out.name
    base = out.parent if media_dir.is_relative_to(out.parent) else media_dir
    found = find_media(media_dir, base)
    if not found.files:
        raise DataError(f"media_dir={media_dir}: holds no picture and no video, by the endings of its files' names")
    console().print(f"found    {found.summary} in {media_dir}", markup=False)
    config.annotator.annotate(Task(out, base, found.files, schema, schema_path, templates, config.append))
    return 0


if __name__ == "__main__":
    main()
