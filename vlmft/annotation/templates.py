"""Question templates: what is asked about each picture or video, and the form of the answer that a person fills in."""

from pathlib import Path

from pydantic import Field

from vlmft.config.files import read_mapping
from vlmft.config.spec import Spec, validate
from vlmft.errors import ConfigError

_TAGS = ("<image>", "<video>")


class Template(Spec):
    """One question."""

    question: str = Field(min_length=1, description="what is asked; the picture or video is put before it")
    answer: str = Field(min_length=1, description="what is to be filled in, such as: I can see {objects}.")


def read_templates(path: Path) -> list[Template]:
    """Read a YAML file of `name: {question: "...", answer: "..."}`, in the file's order.

    Raises:
        ConfigError: lists what is wrong with the file or a template.
    """
    templates, problems = [], []
    for name, values in read_mapping(path).items():
        try:
            if not isinstance(values, dict):
                raise ConfigError(f"should be a mapping (question: ..., answer: ...); found {values!r}")
            template = validate(Template, values)
            tags = [tag for tag in _TAGS if tag in template.question + template.answer]
            ConfigError.raise_if(f"holds {tag}, which is put before the question by itself; remove it" for tag in tags)
            templates.append(template)
        except ConfigError as error:
            problems += [f"{path}: {name}: {problem}" for problem in error.problems]
    ConfigError.raise_if(problems)
    if not templates:
        raise ConfigError(f'{path}: holds no template; expected name: {{question: "...", answer: "..."}}')
    return templates
