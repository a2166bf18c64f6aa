"""The plain data that travels between the layers. No tensors: any layer, and any process, may hold it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlmft.config.media import MediaRules

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Image:
    """A picture, not yet decoded. `path` is absolute and known to lie inside its media folder."""

    path: Path
    data: bytes | None = field(default=None, repr=False)
    """The encoded picture where it is no file of its own (a tar's member, a parquet cell); `path` then names it."""


@dataclass(frozen=True, slots=True)
class Video:
    """A video, not yet decoded: a file, or its frames as picture files. `path` as for `Image`."""

    path: Path
    frames: tuple[Path, ...] = ()
    """The frames in order, where the video is no single file; `path` then is their folder, or names the list."""
    fps: float | None = None
    """Of `frames`: how many make a second; None where nobody says."""
    data: bytes | None = field(default=None, repr=False)
    """The encoded video where it is no file of its own; `path` then names it."""


Media = Image | Video
Part = str | Media
"""A piece of a message's content: text, or a picture or video at the place where its author put it."""


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
class Preference:
    """Two answers to a prompt, of which people prefer one."""

    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Rated:
    """One answer to a prompt, good or bad."""

    answer: str
    good: bool
    mismatched: str | None = None
    """The answer to another sample's prompt, where the trainer asks how likely that is behind this one."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What a generated answer is checked against."""

    text: str


@dataclass(frozen=True, slots=True)
class Labels:
    """Classes of a sample: one, or any number where the task is multi-label."""

    names: tuple[str, ...]
    multi: bool = False


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes that samples may have, in order: a class's number is its place."""

    names: tuple[str, ...]
    multi: bool = False
    """A sample has any number of them instead of one."""

    def numbers(self, labels: Labels) -> tuple[int, ...]:
        """The numbers of a sample's classes."""
        return tuple(self.names.index(name) for name in labels.names)


Target = Preference | Rated | Solution | Labels
"""What a sample asks for that is no answer to be learned word by word."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation with its media, as a source reads it.

    `id` is `<entry>/<id>`, or `<entry>/<row>` where the file gives none; it names the sample in every
    message and seeds every random choice made for it. `place` is where the sample stands
    (`<file>:<line>, row <row>`), for messages alone. With a `target`, the last message is the user's.
    """

    id: str
    messages: tuple[Message, ...]
    place: str = field(default="", compare=False)
    rules: MediaRules = field(default=MediaRules(), compare=False, repr=False)
    """What the sample's entry says of its media."""
    target: Target | None = None

    @property
    def media(self) -> tuple[Media, ...]:
        """Every picture and video of the conversation, in reading order."""
        return tuple(part for m in self.messages for part in m.parts if not isinstance(part, str))

    @property
    def images(self) -> tuple[Image, ...]:
        """Every picture of the conversation, in reading order."""
        return tuple(item for item in self.media if isinstance(item, Image))

    @property
    def videos(self) -> tuple[Video, ...]:
        """Every video of the conversation, in reading order."""
        return tuple(item for item in self.media if isinstance(item, Video))


@dataclass(frozen=True, slots=True)
class Clip:
    """The chosen frames of a video, before any pixel is read.

    `timestamps` (seconds from the video's start, one a frame) never decrease; `duration_s` is the whole video's length.
    """

    height: int
    width: int
    timestamps: Sequence[float]
    duration_s: float = 0.0

    @property
    def num_frames(self) -> int:
        """How many frames the model is to see."""
        return len(self.timestamps)
