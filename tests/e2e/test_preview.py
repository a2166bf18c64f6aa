"""`vlmft.preview` as a user types it, and its page as a browser shows it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.e2e.conftest import Ended, environment, typed_in
from tests.e2e.test_help import HEAVY
from tests.previewing.browser import Opened, chromium
from tests.previewing.making import BAD, EVIL_ID, SUPERVISED, page_of, shown, write_samples
from vlmft.previewing.album import Album


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of sample, and two that are bad."""
    path = write_samples(tmp_path_factory.mktemp("page"))
    album = Album()
    page = path.with_name("page.html")
    page.write_text(page_of(shown(path, *SUPERVISED, *BAD, album=album), album, path))
    return page


def test_the_page_shows_what_the_model_sees(browser: Browser, page: Path) -> None:
    opened = Opened(browser, page)
    opened.assert_it_needs_and_runs_nothing()
    assert opened.page.locator("article").count() == len(SUPERVISED) + len(BAD)
    for name, runs in SUPERVISED.items():
        heading = opened.page.locator("h2").get_by_text(f"mine/{name}", exact=True)
        article = opened.page.locator("article", has=heading)
        marked = article.locator(".tokens mark").evaluate_all("marks => marks.map(mark => mark.textContent).join('')")
        assert marked == "".join(runs).replace("\u2028", "<U+2028>")
    assert opened.page.locator(".error").count() == 2
    assert opened.pictures() == [(112, 56), (56, 84), *[(84, 56)] * 6, (112, 56), (56, 56)]


def test_nothing_of_the_data_runs(browser: Browser, page: Path) -> None:
    opened = Opened(browser, page)
    for element in (opened.page.get_by_text(f"mine/{EVIL_ID}", exact=True), opened.page.locator("article img").last):
        element.click()
        element.hover()
    opened.assert_it_needs_and_runs_nothing()
    assert opened.page.title() == "What the model sees"
    assert opened.page.locator("script").count() == 0


# Left, top, right, bottom of a shape on the screen, without the width of its line.
CORNERS = """shape => {
    const box = shape.getBBox(), to = shape.getScreenCTM();
    const x = [box.x, box.x + box.width].map(x => x * to.a + to.e);
    const y = [box.y, box.y + box.height].map(y => y * to.d + to.f);
    return [x[0], y[0], x[1], y[1]];
}"""


def test_boxes_lie_on_the_picture(browser: Browser, page: Path) -> None:
    """28, 14 to 56, 42 and the point 14, 7 of 112 x 56, however large the picture is drawn."""
    for width in (1100, 360):
        opened = Opened(browser, page, width)
        frame = opened.page.locator(".seen", has=opened.page.locator("svg"))
        picture, drawn = frame.locator("img").bounding_box(), frame.locator("svg").bounding_box()
        assert picture and drawn == picture
        x, y, scale, radius = picture["x"], picture["y"], picture["width"] / 112, 112 / 18 / 3
        around = (14 - radius, 7 - radius, 14 + radius, 7 + radius)
        for kind, wanted in (("rect", (28, 14, 56, 42)), ("circle", around)):
            found = frame.locator(kind).last.evaluate(CORNERS)
            assert found == pytest.approx([a * scale + (x, y)[i % 2] for i, a in enumerate(wanted)], abs=0.5)


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_the_night(browser: Browser, page: Path, dark: bool) -> None:
    opened = Opened(browser, page, width=360, dark=dark)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 360
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(15, 19, 23)" if dark else "rgb(245, 246, 248)")
    assert opened.page.locator("html").get_attribute("lang") == "en"
    alts = opened.page.locator("img").evaluate_all("images => images.map(image => image.alt)")
    assert alts[0] == "picture 1 of mine/several, 112 x 56 pixels, as the model sees it"
    assert len(set(alts)) == len(alts)


def test_a_typo_is_answered_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
        "sys.argv[1:] = ['out=notes.txt']\n"
        "from vlmft.preview import main\n"
        "main()\n"
    )
    (tmp_path / "notes.txt").write_text("precious")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert done.returncode == 2
    error, loaded = done.stderr.splitlines()
    assert error.startswith("error: out=") and error.endswith("so it stays; choose another name")
    assert set(HEAVY) & set(loaded.split()) == set()


@pytest.mark.slow
def test_typed_the_page_is_there(browser: Browser, tmp_path: Path) -> None:
    ended = typed_in(tmp_path, "dataset=shapes+digits*2", "n=8", "out=here/page.html", module="vlmft.preview")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == f"preview  {tmp_path}/here/page.html"
    opened = Opened(browser, tmp_path / "here" / "page.html")
    opened.assert_it_needs_and_runs_nothing()
    assert opened.page.locator("article").count() == len(opened.pictures()) == 8
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "page.html"]


@pytest.mark.slow
def test_the_default_run_begins_with_its_page(browser: Browser, default_run: Ended) -> None:
    opened = Opened(browser, default_run.run / "preview.html")
    opened.assert_it_needs_and_runs_nothing()
    assert opened.pictures() == [(56, 56)] * 4
    assert f"preview  {default_run.run}/preview.html" in default_run.out
