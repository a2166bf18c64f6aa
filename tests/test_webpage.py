"""Pages as files: their frame, and what they may be written over."""

import os
from pathlib import Path

import pytest

from vlmft.errors import ConfigError, StorageError
from vlmft.webpage import data_uri, document, refuse_other_files, write_page

PAGE = document("<b>a & b</b>", "p { margin: 0 }", "<p>hello</p>", "vlmft.preview")


def test_a_page_is_whole_and_forbids_itself_everything() -> None:
    assert PAGE.startswith('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">')
    assert "<title>&lt;b&gt;a &amp; b&lt;/b&gt;</title><style>p { margin: 0 }</style>" in PAGE
    assert "default-src 'none'" in PAGE and "<p>hello</p></body></html>" in PAGE
    assert data_uri(b"\x00\xff", "image/png") == "data:image/png;base64,AP8="


def test_a_page_is_written_over_its_own_kind_alone(tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    refuse_other_files(page, "vlmft.preview", "out")
    write_page(page, PAGE)
    refuse_other_files(page, "vlmft.preview", "out")
    write_page(page, PAGE + "<!-- again -->")
    assert page.read_text() == PAGE + "<!-- again -->"
    assert list(page.parent.iterdir()) == [page]
    for other in (PAGE.replace("vlmft.preview", "vlmft.report"), "precious", ""):
        page.write_text(other)
        with pytest.raises(
            ConfigError, match=r"^out=.*/page\.html: exists and is no page by vlmft\.preview, so it stays"
        ):
            refuse_other_files(page, "vlmft.preview", "out")


def test_a_page_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"exists and cannot be read \(Permission denied\); choose another name$"):
        refuse_other_files(page, "vlmft.preview", "out")


def test_what_is_no_file_is_not_even_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait forever
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match=f"^out={path}: is no file; choose another name$"):
            refuse_other_files(path, "vlmft.preview", "out")


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"/file/page\.html: cannot be written: File exists$"):
        write_page(tmp_path / "file" / "page.html", PAGE)
