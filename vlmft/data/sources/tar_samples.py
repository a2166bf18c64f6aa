"""What the files of one sample in a tar are together: a row of a format, with bytes where it would name media."""

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from vlmft.data.sources.parsed import NAMES, Kind, counted
from vlmft.data.sources.references import PICTURE_SUFFIXES
from vlmft.errors import DataError

_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv")
_TEXTS = ("json", "txt", "cls")
_NAMING = ("image", "images", "image_url", "video", "videos", "video_url", "url")
"""Keys under which a row's format names media."""


def ending_of(suffix: str) -> str:
    """`jpg` of `0.JPG`: what says what a member holds."""
    return suffix.rpartition(".")[2].lower()


def kind_of(ending: str) -> Kind | None:
    """Whether a member is a picture or a video, by its ending; None: it is neither."""
    if f".{ending}" in PICTURE_SUFFIXES:
        return "image"
    return "video" if f".{ending}" in _VIDEO_SUFFIXES else None


def is_known(ending: str) -> bool:
    """Whether a sample can have such a member."""
    return ending in _TEXTS or kind_of(ending) is not None


def sample_row(stem: str, members: Mapping[str, bytes], prompt: str | None) -> dict[str, Any]:
    """Put the members of a sample together.

    The row is the `.json`. Where it names a member by the name of its file, the member's bytes take its place; where it
    names none, they go under `image` or `video`, in the order of the numbers in their names. A `.cls` is the `label`.

    Args:
        stem: what the names of the sample's files have in common, without their folder.
        members: content by suffix: `json`, `jpg`, `0.jpg`.
        prompt: the question that the `.txt` answers; None: the `.txt` is the row's `text`.

    Raises:
        DataError: a text is no UTF-8 or no JSON, or the media are not those that the row names.
    """
    texts = _texts(members)
    row = _json(texts["json"]) if "json" in texts else {}
    if "cls" in texts:
        label = texts["cls"].strip()
        row.setdefault("label", int(label) if label.isdecimal() else label)
    if prompt is not None:
        if "txt" not in texts:
            raise DataError("it has no .txt to answer the entry's prompt; add it, or set no prompt")
        turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": texts["txt"]}]
        row.setdefault("conversations", turns)
    elif "txt" in texts:
        row.setdefault("text", texts["txt"])
    media = {f"{stem}.{suffix}": data for suffix, data in members.items() if ending_of(suffix) not in _TEXTS}
    return _with_media(row, media) if media else row


def _texts(members: Mapping[str, bytes]) -> dict[str, str]:
    """The sample's texts by ending."""
    texts: dict[str, str] = {}
    for suffix, data in members.items():
        ending = ending_of(suffix)
        if ending not in _TEXTS:
            continue
        if ending in texts:
            raise DataError(f"it has two members that end in .{ending}; leave one of them out")
        try:
            texts[ending] = data.decode("utf-8-sig").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"its .{suffix} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return texts


def _json(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"its .json is not valid JSON: {error}; mend it") from None
    if not isinstance(row, dict):
        raise DataError(f"its .json holds a {type(row).__name__}; expected an object")
    return row


def _with_media(row: dict[str, Any], media: Mapping[str, bytes]) -> dict[str, Any]:
    named: set[str] = set()
    row = {key: _filled(value, key, media, named) for key, value in row.items()}
    rest = sorted(media.keys() - named, key=_natural)
    if named and rest:
        raise DataError(f"the tar holds {', '.join(rest)}, which its .json does not name beside {min(named)}")
    for kind, noun in NAMES.items():
        mine = [media[name] for name in rest if kind_of(ending_of(name)) == kind]
        if not mine:
            continue
        key = f"{kind}s" if row.get(f"{kind}s") is not None else kind
        said = row.get(key)
        count = len(mine) if said is None else len(said) if isinstance(said, list) else 1
        if count != len(mine):
            raise DataError(
                f"its .json names {counted(count, noun)} under {key!r}, and the tar holds "
                f"{counted(len(mine), noun)} for it; name the members, or as many as there are"
            )
        row[key] = mine if isinstance(said, list) or len(mine) > 1 else mine[0]
    return row


def _filled(value: Any, key: str, media: Mapping[str, bytes], named: set[str]) -> Any:
    """A value that stands under `key`, with bytes in place of members' names, which go into `named`."""
    if isinstance(value, dict):
        return {own: _filled(item, own, media, named) for own, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, key, media, named) for item in value]
    if key in _NAMING and isinstance(value, str) and (name := PurePosixPath(value).name) in media:
        named.add(name)
        return media[name]
    return value


def _natural(name: str) -> list[str | int]:
    return [int(piece) if number % 2 else piece for number, piece in enumerate(re.split(r"(\d+)", name))]
