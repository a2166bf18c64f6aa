"""Messages files: conversations as OpenAI, ShareGPT and LLaMA-Factory write them."""

from functools import partial
from typing import Any

from vlmft.data.sources.files import JsonDataset
from vlmft.data.sources.parsed import Parsed, Parser, check_object
from vlmft.data.sources.turns import conversation, turns_of
from vlmft.errors import DataError


class MessagesDataset(JsonDataset):
    """Samples whose row is `{"id", "messages": [{"role", "content"}, ...]}`.

    `content` is a text, or a list of parts: `{"type": "text", "text"}`, `{"type": "image", "image"}`,
    `{"type": "image_url", "image_url": {"url"}}`, `{"type": "video", "video"}` and `{"type": "video_url", ...}`, where
    the medium is a path, an address or a data: URI (a video also a list of frames). A part without its medium, like
    an `<image>` or `<video>` tag in a text, takes the next one of the row's list `images` or `videos`.

    ShareGPT's names (`conversations`, `from`, `value`) and LLaMA-Factory's key `system` are read as well. Calls of
    tools are refused.
    """

    def parser(self) -> Parser:
        """See `JsonDataset.parser`."""
        return partial(parse_messages, frames_fps=self.frames_fps)


def parse_messages(row: Any, frames_fps: float | None = None) -> Parsed:
    """Read a row as `MessagesDataset` describes it.

    Args:
        frames_fps: how many frames make a second, where a video is given as frames.

    Raises:
        DataError: the row breaks a rule of the format.
    """
    row = check_object(row, "'messages'")
    for key, what in (("tools", "calls of tools are not trained"), ("audios", "sound is not read")):
        if row.get(key):
            raise DataError(f"it has '{key}': {what}; leave the sample out")
    drafts = turns_of(row, "messages", "conversations", frames_fps=frames_fps)
    return conversation(row, drafts, frames_fps)
