"""A row of a LLaVA file. Everything here raises plain `DataError`; the source adds the sample's id and place."""

from typing import Any

from vlmft.data.sources.parsed import Parsed, check_object, check_order
from vlmft.data.sources.placing import place_media
from vlmft.data.sources.turns import media_of, turns_of
from vlmft.errors import DataError


def parse_conversation(row: Any, is_video: bool = False, frames_fps: float | None = None) -> Parsed:
    """Read a LLaVA row: 'conversations', with 'image' and 'video', each a medium or a list.

    Args:
        is_video: the entry holds videos: an `<image>` tag stands for one, as in LLaVA-Video's files.
        frames_fps: how many frames make a second, where a video is given as frames.

    Raises:
        DataError: the row breaks a rule of the format.
    """
    row = check_object(row, "'conversations'")
    media = media_of(row, frames_fps, plural=False)
    drafts = turns_of(row, "conversations", is_video=is_video, frames_fps=frames_fps)
    check_order([draft.role for draft in drafts])
    if is_video and media["image"]:
        raise DataError("it has the key 'image', but its entry says is_video: true; call it 'video'")
    return place_media(drafts, media)
