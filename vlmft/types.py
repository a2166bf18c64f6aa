"""The plain data that travels between the layers. No tensors: any layer, and any process, may hold it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Image:
    """A picture on disk, not yet decoded. `path` is absolute and known to lie inside its media folder."""

    path: Path


Part = str | Image
"""A piece of a message's content: text, or a picture at the place where its author put it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The message's text alone, without its media."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation with its media, as a source reads it.

    `id` is `<entry>/<id>`, or `<entry>/<row>` where the file gives none; it names the sample in every
    message and seeds every random choice made for it. `place` is where the sample stands
    (`<file>:<line>, row <row>`), for messages alone.
    """

    id: str
    messages: tuple[Message, ...]
    place: str = field(default="", compare=False)

    @property
    def images(self) -> tuple[Image, ...]:
        """Every picture of the conversation, in reading order."""
        return tuple(part for m in self.messages for part in m.parts if isinstance(part, Image))
