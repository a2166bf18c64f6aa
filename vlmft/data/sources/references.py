"""How a row of any format names a picture or a video: a path, an address, a data: URI, bytes, or frames."""

import base64
import binascii
import re
from pathlib import PurePosixPath
from typing import Any

from vlmft.data.sources.parsed import NAMES, Kind, Reference, check_characters, shown
from vlmft.errors import DataError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".jp2")
"""How the names of picture files end."""

_FRAME_SUFFIXES = tuple(suffix for suffix in PICTURE_SUFFIXES if suffix != ".gif")  # that one may be a video itself

_DATA_URI = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)


def read_references(found: Any, kind: Kind, where: str, frames_fps: float | None = None) -> list[Reference]:
    """Read what a row says under one key: nothing, a medium, or a list of media.

    A medium is a path below the media folder (of a video also a folder of frames), an address, a data: URI, its bytes,
    or `{"bytes": ..., "path": ...}` as Hugging Face datasets write it. A list under a video's key is one video where
    all of it are picture files, and several videos else; each of these may be such a list itself.

    Args:
        where: names the key in messages: "its 'image'".
        frames_fps: how many frames make a second, where a video is given as frames.

    Raises:
        DataError: it is none of these.
    """
    if found is None:
        return []
    if not isinstance(found, list | tuple):
        return [read_reference(found, kind, where, frames_fps)]
    if kind == "video" and found and all(_is_frame(item) for item in found):
        return [_frames(found, where, frames_fps)]
    return [read_reference(item, kind, where, frames_fps) for item in found]


def read_reference(found: Any, kind: Kind, where: str, frames_fps: float | None = None) -> Reference:
    """Read a single medium; a video may be a list of frames. As `read_references`."""
    if kind == "video" and isinstance(found, list | tuple):
        return _frames(found, where, frames_fps)
    if kind == "video" and _is_frame(found):
        raise DataError(
            f"{where} holds {shown(found)}, a picture; write the frames of each video as a list of their own: "
            "[[first, second, ...], ...]"
        )
    return Reference(kind, _medium(found, kind, where), frames_fps if kind == "video" else None)


def is_data_uri(text: str) -> bool:
    """Whether a text is no path, but the medium itself, written as data:<type>;base64,<characters>."""
    return text[:5].lower() == "data:"


def _medium(found: Any, kind: Kind, where: str) -> str | bytes:
    value = found
    if isinstance(found, dict) and ("bytes" in found or "path" in found):
        value = found.get("path") if found.get("bytes") is None else found["bytes"]
    if isinstance(value, bytes | bytearray | memoryview):
        if not len(value):
            raise DataError(f"{where} holds a {NAMES[kind]} of no bytes; give the file's content, or its path")
        return bytes(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where} holds {shown(found)}; expected a path, or a list of paths")
    check_characters(value, where)
    return _decoded(value, kind, where) if is_data_uri(value) else value


def _frames(found: Any, where: str, frames_fps: float | None) -> Reference:
    if not found:
        raise DataError(f"{where} holds an empty list of frames; expected at least one")
    frames = [_medium(frame, "image", where) for frame in found]
    paths = tuple(frame for frame in frames if isinstance(frame, str))
    if len(paths) < len(frames):
        raise DataError(f"{where} holds the bytes of frames; save them as files, or as one video, and name their paths")
    return Reference("video", paths, frames_fps)


def _is_frame(found: Any) -> bool:
    """Whether it is a picture file, as its name says."""
    path = found.get("path") if isinstance(found, dict) else found
    if not isinstance(path, str) or is_data_uri(path):
        return False
    return PurePosixPath(path.partition("?")[0]).suffix.lower() in _FRAME_SUFFIXES


def _decoded(uri: str, kind: Kind, where: str) -> bytes:
    header = _DATA_URI.match(uri)
    if header is None or ";base64" not in header[2].lower():
        raise DataError(f"{where} holds {shown(uri)}; expected data:{kind}/...;base64,...")
    if not header[1].lower().startswith((f"{kind}/", "application/octet-stream")):
        raise DataError(f"{where} holds a data: URI of the type {header[1]!r}; expected {kind}/...")
    try:
        content = base64.b64decode(uri[header.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where} holds a data: URI that is not base64: {error}; encode the file anew") from None
    if not content:
        raise DataError(f"{where} holds a data: URI of no bytes; encode the file anew")
    return content
