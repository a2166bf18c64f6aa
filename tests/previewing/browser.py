"""A real browser without a window, as Debian packages it, in which pages are looked at."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--headless",
    "--no-sandbox",  # which a container has no rights for; the pages are our own
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium with a profile of its own. A machine without one fails what needs it: nothing is skipped."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    assert found, (
        "pages are tested in Chromium, which is not here: apt-get install chromium, or CHROMIUM=/path/to/its/executable"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_QUIET))
        yield browser
        browser.close()


class Opened:
    """A page in a tab of its own, and everything that it did beside showing itself."""

    def __init__(self, browser: Browser, path: Path, width: int = 1100, dark: bool = False) -> None:
        self.url = path.as_uri()
        self.noise: list[str] = []
        """What a page that needs nothing and runs nothing never gives."""
        self.requests: list[str] = []
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.page.on("console", lambda message: self.noise.append(message.text))
        self.page.on("pageerror", lambda error: self.noise.append(str(error)))
        self.page.on("dialog", lambda dialog: self.noise.append(dialog.message) or dialog.dismiss())
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(self.url)

    def assert_it_needs_and_runs_nothing(self) -> None:
        """It asked for itself alone, every picture is there at its size, and no script spoke."""
        self.page.wait_for_timeout(100)
        assert self.requests == [self.url]
        assert self.noise == []
        assert len(self.pictures()) == self.page.locator("img").count()

    def pictures(self) -> list[tuple[int, int]]:
        """Width and height in its file of each picture that was loaded and has the size that the page says."""
        found = self.page.locator("img").evaluate_all(
            "images => images.map(i => [i.complete, i.naturalWidth, i.naturalHeight, ...['width', 'height'].map("
            "side => Number(i.getAttribute(side)))])"
        )
        return [(w, h) for complete, w, h, width, height in found if complete and w > 0 and (w, h) == (width, height)]
