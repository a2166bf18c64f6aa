"""Who gives the answers; chosen by `annotator=`."""

import os
import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vlmft.annotation.task import Task
from vlmft.config.media import Decoder
from vlmft.config.spec import Spec
from vlmft.errors import ConfigError

_BASE_URL = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")
_OWN_FIELDS = ("model", "messages", "response_format", "stream", "n")


class Annotator(Spec, abstract=True):
    """Gives each medium a row."""

    def check(self, templates: bool, schema: bool) -> list[str]:
        """What contradicts this choice."""
        raise NotImplementedError

    def annotate(self, task: Task) -> None:
        """Write the rows. Raises `DataError` where a medium is left without one."""
        raise NotImplementedError


class Placeholders(Annotator):
    """Nobody: each answer is a placeholder, which training refuses until it is filled in."""

    def check(self, templates: bool, schema: bool) -> list[str]:
        """Either conversations from templates, or captions from a schema."""
        if templates == schema:
            return [
                "templates, schema: give one of the two: templates=templates.yaml writes conversations, "
                "schema=schema.json captions (annotator=openai asks a model for them)"
            ]
        return []

    def annotate(self, task: Task) -> None:
        """Write the rows to be filled in."""
        from vlmft.annotation.skeleton import write_skeleton

        write_skeleton(task)


class OpenAI(Annotator):
    """A model behind an endpoint that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, hosted ones)."""

    base_url: str = Field(description="what /chat/completions is put behind, such as http://localhost:8000/v1")
    model: str = Field(min_length=1, description="the model's name, as the server knows it")
    api_key_env: str | None = Field(description="name of the environment variable that holds the key; null: no key")
    prompt: str = Field(min_length=1, description="what is asked about each medium; the schema is put behind it")
    response_format: Literal["json_schema", "json_object", "none"] = Field(
        description="how the server is told to give JSON, where a schema is given; none: by the prompt alone"
    )
    options: dict[str, Any] = Field(description="further fields of each request, such as temperature and max_tokens")
    max_side: int = Field(ge=28, description="pixels of a picture's longer side, at most; larger ones are shrunk")
    num_frames: int = Field(ge=1, description="frames that stand for a video, spread evenly")
    decoder: Decoder = Field(description="pyav, decord or torchcodec")
    concurrency: int = Field(ge=1, description="requests at a time")
    timeout_s: float = Field(gt=0, allow_inf_nan=False, description="seconds for one request")
    attempts: int = Field(ge=1, description="times that a request is made which the server cannot answer just now")
    backoff_s: float = Field(gt=0, allow_inf_nan=False, description="seconds before the second attempt, then doubled")
    max_wait_s: float = Field(gt=0, allow_inf_nan=False, description="seconds between two attempts, at most")
    answers: int = Field(ge=1, description="answers asked for until one follows the schema")
    give_up_after: int = Field(ge=1, description="media in a row without an answer, after which no further is asked")

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        # Here, and not in the fields: their messages would show the value, and with it a key that stands in a URL.
        if not _BASE_URL.fullmatch(self.base_url):
            raise ValueError(
                "base_url should be http:// or https:// with a host and a path, without user, password or query "
                "(a key is given by api_key_env)"
            )
        taken = [name for name in _OWN_FIELDS if name in self.options]
        if taken:
            raise ValueError(f"options may not hold {', '.join(taken)}: the command fills it in")
        return self

    def check(self, templates: bool, schema: bool) -> list[str]:
        """A model is asked for captions alone."""
        return ["templates: a model is asked for captions; leave it out, or choose annotator=none"] if templates else []

    def annotate(self, task: Task) -> None:
        """Ask for what is missing."""
        from vlmft.annotation.asking import ask

        ask(self, task)

    def read_key(self) -> str | None:
        """The key, from the environment.

        Raises:
            ConfigError: the variable is not set, or its value cannot be sent.
        """
        if self.api_key_env is None:
            return None
        # The name is not shown: whoever writes the key itself there must not find it in a log.
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                "annotator.api_key_env: the variable that it names is not set in the environment; give the name of the "
                "variable that holds the key, never the key itself"
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("annotator.api_key_env: the variable holds characters that cannot stand in a key")
        return key
