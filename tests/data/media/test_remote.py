"""Addresses, against a server on this machine."""

import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from tests.data.making import qa
from vlmft.data import LLaVADataset
from vlmft.data.check import check
from vlmft.data.media import remote
from vlmft.data.media.image import open_image
from vlmft.data.media.remote import fetch
from vlmft.data.problems import SampleError
from vlmft.errors import DataError


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "png")
    return buffer.getvalue()


class Site(ThreadingHTTPServer):
    """Counts what it is asked for; `hold` keeps /slow waiting until the test is over."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[str] = []
        self.hold = threading.Event()

    def at(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Answers(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:  # noqa: N802 (the name that http.server calls)
        self.server.asked.append(self.path)
        name = self.path.partition("?")[0]
        if name == "/slow.png":
            self.server.hold.wait(10)
        if name.startswith("/to"):
            target = {"/to-file": "file:///etc/passwd", "/to-picture": "/a.png", "/to-itself": "/to-itself"}[name]
            self.answer(302, b"", Location=target)
        elif name in ("/a.png", "/slow.png", "/", "/.png"):
            self.answer(200, png())
        elif name == "/page.png":
            self.answer(200, b"<html>Log in first</html>")
        elif name == "/nothing.png":
            self.answer(200, b"")
        elif name == "/cut.png":
            self.answer(200, png()[:20], **{"Content-Length": "500"})
        elif name == "/drip.png":
            self.drip()
        else:
            self.answer(404, b"no such file")

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.hold.wait(0.02):
            try:
                self.wfile.write(b"x")
            except OSError:
                return

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    remote._client.cache_clear()
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.hold.set()
        server.shutdown()
        thread.join()


def test_a_medium_is_asked_for_once_and_kept(site, tmp_path):
    file = fetch(site.at("/a.png"))
    assert file.read_bytes() == png()
    assert file.name == "a.png"
    assert file.is_relative_to(tmp_path / "cache" / "vlmft" / "media")
    assert fetch(site.at("/a.png")) == file
    assert site.asked == ["/a.png"]
    assert fetch(site.at("/a.png?version=2")) != file
    assert len(site.asked) == 2


@pytest.mark.parametrize(("path", "name"), [("/", "medium"), ("/.png", "png"), ("/a.png?b=/c.jpg", "a.png")])
def test_a_file_is_called_as_its_address_ends(site, path, name):
    assert fetch(site.at(path)).name == name


def test_a_redirect_is_followed(site):
    assert fetch(site.at("/to-picture")).read_bytes() == png()
    assert site.asked == ["/to-picture", "/a.png"]


def refused(url: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=match):
        fetch(url)
    assert not [*(tmp_path / "cache").rglob("*.*")], "what failed leaves nothing behind"


def test_what_a_server_refuses_is_named_without_secrets(site, tmp_path):
    url = site.at("/none.png?token=s3cret").replace("http://", "http://me:pass@")
    refused(url, rf"^{site.at('/none.png')} answers 404 Not Found; mend the address, or save the file below", tmp_path)


def test_a_redirect_leads_to_http_alone(site, tmp_path):
    refused(site.at("/to-file"), "/to-file cannot be fetched: .*'file://'", tmp_path)
    refused(site.at("/to-itself"), "/to-itself cannot be fetched: .*[Rr]edirects", tmp_path)


def test_what_is_too_large_is_left(site, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "MAX_BYTES", len(png()) - 1)
    expected = rf"/a\.png gives more than {len(png()) - 1} bytes; save it below media_dir instead"
    refused(site.at("/a.png"), expected, tmp_path)
    monkeypatch.setattr(remote, "MAX_BYTES", len(png()))
    assert fetch(site.at("/a.png")).read_bytes() == png()


def test_a_server_that_says_nothing_is_left(site, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.1)
    start = time.monotonic()
    refused(site.at("/slow.png"), r"/slow\.png gives nothing for 0\.1 s; mend the address", tmp_path)
    assert time.monotonic() - start < 9


def test_a_server_that_drips_is_left(site, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "TOTAL_S", 0.1)
    refused(site.at("/drip.png"), r"/drip\.png has given \d+ bytes in 0\.1 s; save it below media_dir", tmp_path)


def test_half_an_answer_is_none(site, tmp_path):
    refused(site.at("/cut.png"), r"/cut\.png cannot be fetched: peer closed connection", tmp_path)
    refused(site.at("/nothing.png"), r"/nothing\.png gives no bytes; mend the address", tmp_path)


def test_an_address_that_nobody_answers(tmp_path):
    refused("http://127.0.0.1:1/a.png", r"^http://127\.0\.0\.1:1/a\.png cannot be fetched: .*refused", tmp_path)
    refused("http://a\x7f.org/a.png", "cannot be fetched: Invalid", tmp_path)
    refused("http://[::1/a.png", r"^http://\[::1/a\.png is no address: Invalid IPv6 URL; mend", tmp_path)


class TestEntry:
    def entry(self, folder: Path, *rows: dict, **keys: object) -> LLaVADataset:
        (folder / "rows.json").write_text(json.dumps(rows))
        return LLaVADataset(data_path=folder / "rows.json", **keys)

    def test_addresses_are_off_unless_allowed(self, site, tmp_path):
        source = self.entry(tmp_path, qa(image=site.at("/a.png"))).open("mine")
        with pytest.raises(
            SampleError, match=rf"/a\.png is a URL; .*: save it below {tmp_path}, or set allow_urls: true$"
        ):
            source[0]
        assert site.asked == []

    def test_pictures_videos_and_frames(self, site, tmp_path):
        page = site.at("/a.png")
        rows = [qa(image=page), qa(video=site.at("/")), qa(video=[page, page])]
        source = self.entry(tmp_path, *rows, allow_urls=True).open("mine")
        source.check_row(0)
        assert site.asked == [], "looking at the rows asks for nothing"
        assert open_image(source[0].images[0].path).size == (8, 6)
        assert source[1].videos[0].path.read_bytes() == png()
        assert source[2].videos[0].frames == (source[0].images[0].path,) * 2
        assert site.asked == ["/a.png", "/"]

    def test_a_page_instead_of_a_picture_is_found_by_the_check(self, site, tmp_path):
        rows = [qa(image=site.at("/page.png")), qa(image=site.at("/none.png"))]
        source = self.entry(tmp_path, *rows, allow_urls=True).open("mine")
        page, none = check([(source, range(2))], 10).problems
        assert "/page.png is no picture in a known format" in page
        assert page.startswith(f"mine/0 ({tmp_path}/rows.json:1, row 0): ")
        assert "/none.png answers 404 Not Found" in none

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "s3://bucket/a.png", "ftp://a.org/a.png"])
    def test_http_alone_is_allowed(self, tmp_path, url):
        source = self.entry(tmp_path, qa(image=url), allow_urls=True).open("mine")
        with pytest.raises(SampleError, match=rf"{url} is a URL; media are read from files: save it below {tmp_path}$"):
            source[0]
