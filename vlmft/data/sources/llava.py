"""LLaVA files: a JSON list, or JSON Lines, of conversations with pictures and videos beside them."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from vlmft.data.sources.files import JsonDataset

if TYPE_CHECKING:
    from vlmft.data.sources.parsed import Parser


class LLaVADataset(JsonDataset):
    """Samples in LLaVA's format, as VILA and Qwen2-VL-Finetune read it.

    A row is `{"id", "image" and/or "video", "conversations": [{"from", "value"}, ...]}`. `image` is a path or a list of
    paths; `video` is a path, a folder of frames, a list of videos, or a list of picture files, which are the frames of
    one video. `<image>` and `<video>` tags stand where the media belong; without any, all come before the first
    question.
    """

    is_video: Annotated[
        bool, Field(description="Its media are videos; an <image> tag then stands for one, as in LLaVA-Video.")
    ] = False

    def parser(self) -> "Parser":
        """See `JsonDataset.parser`."""
        from vlmft.data.sources.conversation import parse_conversation

        return partial(parse_conversation, is_video=self.is_video, frames_fps=self.frames_fps)
