"""HTML pages that are one file: no script, no font, no picture from elsewhere. Other people's text fills them."""

import os
from base64 import b64encode
from html import escape
from pathlib import Path

from vlmft.errors import ConfigError, StorageError

# A page that tried to reach anything would be stopped by the browser.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_HEAD_BYTES = 2048  # of a page, in which its maker is named


def document(title: str, style: str, body: str, maker: str) -> str:
    """A whole page. `title` is any text; `style` and `body` are CSS and HTML; `maker` names what writes such pages."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{_maker(maker)}'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{style}</style></head><body>\n{body}</body></html>\n"
    )


def data_uri(data: bytes, kind: str) -> str:
    """A file as an address; `kind` is its media type, such as image/png."""
    return f"data:{kind};base64,{b64encode(data).decode()}"


def refuse_other_files(path: Path, maker: str, key: str) -> None:
    """Raise `ConfigError`, which names `key`, where there is something at `path` that is no page by `maker`."""
    if not path.exists():
        return
    if not path.is_file():
        raise ConfigError(f"{key}={path}: is no file; choose another name")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise ConfigError(f"{key}={path}: exists and cannot be read ({error.strerror}); choose another name") from error
    if _maker(maker).encode() not in head:
        raise ConfigError(f"{key}={path}: exists and is no page by {maker}, so it stays; choose another name")


def write_page(path: Path, text: str) -> None:
    """Write a page beside its place, then rename it: no reader ever meets half of one.

    Raises:
        StorageError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def _maker(name: str) -> str:
    return f'<meta name="generator" content="{escape(name)}">'
