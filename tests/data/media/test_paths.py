import os
from pathlib import Path

import pytest

from tests.data.making import save_picture
from vlmft.data.media.paths import is_fetchable, is_url, resolve_frames, resolve_media
from vlmft.errors import DataError


def refused(media_dir: Path, reference: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        resolve_media(media_dir.resolve(), reference)


def test_a_path_inside_is_found(media):
    save_picture(media / "deep" / "d.png")
    assert resolve_media(media, "deep/d.png") == media / "deep" / "d.png"
    assert resolve_media(media, "./deep/../a.png") == media / "a.png"
    assert resolve_media(media, str(media / "a.png")) == media / "a.png"


def test_a_symlink_that_stays_inside_is_followed(media):
    (media / "link.png").symlink_to("a.png")
    assert resolve_media(media, "link.png") == media / "a.png"


@pytest.mark.parametrize("exists", [True, False])
def test_what_leaves_the_folder_is_refused(media, exists):
    if exists:
        save_picture(media.parent / "out.png")
    refused(media, "../out.png", r"^\.\./out\.png leads by \.\. out of media_dir .*; copy the file")
    refused(media, "deep/../../out.png", r"leads by \.\. out of")
    refused(
        media, str(media.parent / "out.png"), "is an absolute path out of media_dir .*; write it relative to media_dir"
    )


def test_a_sibling_whose_name_begins_alike_is_outside(media):
    save_picture(media.parent / "media_secret" / "a.png")
    refused(media, "../media_secret/a.png", r"leads by \.\. out of")
    refused(media, f"{media}_secret/a.png", "is an absolute path out of")


def test_symlinks_that_leave_are_refused(media):
    outside = save_picture(media.parent / "elsewhere" / "o.png")
    (media / "file.png").symlink_to(outside)
    (media / "folder").symlink_to(outside.parent)
    (media / "chain.png").symlink_to(media / "file.png")
    (media / "nowhere.png").symlink_to(outside.parent / "not-there.png")
    for reference in ("file.png", "folder/o.png", "chain.png", "nowhere.png"):
        refused(media, reference, "is or passes a symlink that leads out of media_dir")


def test_the_media_folder_may_be_a_symlink_itself(media):
    (media.parent / "link").symlink_to(media)
    assert resolve_media((media.parent / "link").resolve(), "a.png") == media / "a.png"


@pytest.mark.parametrize(
    "url",
    [
        "http://x.org/a.png",
        "HTTPS://x.org/a.png",
        "s3://bucket/a.png",
        "file:///etc/passwd",
        "file:a.png",
        "data:image/png;base64,aaaa",
    ],
)
def test_urls_are_refused(media, url):
    assert is_url(url)
    hint = ", or set allow_urls: true" if is_fetchable(url) else ""
    refused(media, url, f"is a URL; media are read from files: save it below {media}{hint}$")


def test_only_http_may_be_allowed():
    assert [is_fetchable(url) for url in ("http://x/a", "HTTPS://x/a", "ftp://x/a", "http:/x", "xhttp://a")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_long_url_is_shortened(media):
    with pytest.raises(DataError) as caught:
        resolve_media(media, "data:image/png;base64," + "A" * 5000)
    assert len(str(caught.value)) < 300


def test_a_colon_in_a_name_is_no_url(media):
    save_picture(media / "a:b.png")
    assert resolve_media(media, "a:b.png") == media / "a:b.png"


def test_missing_files(media):
    refused(media, "d.png", rf"^d\.png does not exist in media_dir {media}; mend the path or media_dir$")
    refused(media, "deep\\d.png", "does not exist .*; write / between folders; mend")
    refused(media, "a.png/d.png", "cannot be read: Not a directory")
    refused(media, "x" * 300, "cannot be read: File name too long")
    refused(media, "a\0.png", r"^'a\\x00\.png' holds a NUL character; write the path of a file below")


def test_a_symlink_loop_is_refused(media):
    (media / "loop").symlink_to("loop")
    refused(media, "loop", "loop")


def test_what_is_no_file_is_refused(media):
    (media / "deep").mkdir()
    os.mkfifo(media / "pipe.png")
    refused(media, "deep", "is a folder; expected a file")
    refused(media, "pipe.png", "is a special file; expected a file")


def test_a_folder_of_frames_comes_in_the_order_of_its_numbers(media):
    for name in ("f10.png", "f2.png", "f02.png", ".DS_Store", "e9.png"):
        save_picture(media / "walk" / name) if name.endswith("png") else (media / "walk" / name).write_text("x")
    found = resolve_frames(media, "walk")
    assert [path.name for path in found] == ["e9.png", "f02.png", "f2.png", "f10.png"]
    assert found[0] == media / "walk" / "e9.png"
    assert resolve_frames(media, "walk/") == found
    assert resolve_frames(media, "a.png") is None


def test_frames_stay_inside_as_well(media):
    (media / "empty").mkdir()
    outside = save_picture(media.parent / "elsewhere" / "o.png")
    (media / "walk").mkdir()
    (media / "walk" / "1.png").symlink_to(outside)
    for reference, match in (
        ("empty", "empty is an empty folder; expected a video file, or a folder of its frames"),
        ("walk", "walk/1.png is or passes a symlink that leads out of media_dir"),
        ("../elsewhere", r"leads by \.\. out of media_dir"),
        (f"{media}-evil", "is an absolute path out of media_dir"),
        ("none", "none does not exist in media_dir"),
    ):
        with pytest.raises(DataError, match=match):
            resolve_frames(media, reference)
