"""The page as a text: whole, escaped, and in need of nothing. tests/e2e/test_preview.py opens it in a browser."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import vlmft.previewing
from tests.previewing.making import BAD, EVIL_FILE, EVIL_ID, EVIL_TEXT, SUPERVISED, page_of, shown, write_samples
from vlmft.previewing.album import Album

ALL = (*SUPERVISED, *BAD)
OURS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "article", "section", "div", "p"),
    *("dl", "dt", "dd", "ul", "ol", "li", "figure", "figcaption", "img", "svg", "rect", "circle", "text"),
    *("b", "i", "br", "code", "span", "mark"),
}


class Page(HTMLParser):
    """What a parser makes of the page."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.marked: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.attributes |= values.keys()
        self.addresses += [values[name] or "" for name in ("src", "href", "srcset", "action") if name in values]
        self.alts += [values["alt"] or ""] if "alt" in values else []
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "mark":
            self.marked.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("rect", "circle")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "mark" in self._open:
            self.marked[-1] += data


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_samples(tmp_path_factory.mktemp("page"))
    album = Album()
    return page_of(shown(path, *ALL, album=album), album, path)


def test_nothing_that_data_says_is_markup(text: str) -> None:
    page = Page(text)
    assert page.tags <= OURS
    assert not [name for name in page.attributes if name.startswith("on")]
    for said in (EVIL_ID, EVIL_FILE, EVIL_TEXT.replace("\u2028", "<U+2028>"), "some <samples>", "What <i>is</i> it?"):
        assert said in page.text
    assert any(EVIL_ID in alt for alt in page.alts)


def test_trained_tokens_are_marked_and_no_others(text: str) -> None:
    _, *marked = Page(text).marked  # the first is the legend's
    assert "".join(marked) == "".join("".join(runs) for runs in SUPERVISED.values()).replace("\u2028", "<U+2028>")


def test_the_page_needs_nothing_else(text: str) -> None:
    page = Page(text)
    assert page.addresses and all(re.match(r"data:image/(png|jpeg);base64,", address) for address in page.addresses)
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"base64,[^\"]*", "", text).replace("</", ""))
    assert """content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none';""" in text
    assert (
        '<html lang="en">' in text
        and 'name="viewport"' in text
        and '<meta name="generator" content="vlmft.preview">' in text
    )


def test_the_head_says_what_was_chosen(text: str) -> None:
    said = Page(text).text
    for words in (
        "mine: 100 %",
        "7 in a pass, 0 held out",
        "TinyQwen25VL, ",
        "video.fps=2.0",
        "8192 tokens (batching.max_tokens)",
    ):
        assert words in said
    assert "so they are shown at" not in said


def test_counts_rules_and_errors_stand_with_each_sample(text: str) -> None:
    said = re.sub(r"\s+", " ", Page(text).text)
    assert "14 vision" in said and "dataset.mine.coordinates=pixels" in said
    assert "picture 1 112 x 56 → 112 x 56, 8 tokens" in said and "video 1 84 x 56 → 6 times 84 x 56, 18 tokens" in said
    assert said.count("is no picture in a known format") == 1 and "gone <script>.png does not exist" in said
    assert "[picture 1: 8 tokens]" in said and "[video 1: 18 tokens]" in said


def test_pictures_that_were_shrunk_are_said_to_be(tmp_path: Path) -> None:
    path = write_samples(tmp_path)
    album = Album(max_bytes=40_000)
    said = Page(page_of(shown(path, "video", album=album), album, path)).text
    assert "The pictures come to more than 0.04 MB, so they are shown at 50 % of their sides; the model sees" in said
    assert "6 times 84 x 56" in said


def test_half_a_character_does_not_end_the_page(tmp_path: Path) -> None:
    path = write_samples(tmp_path)
    path.write_text(path.read_text().replace("What <i>is</i> it?", "\\ud800"))
    album = Album()
    page_of(shown(path, "damaged", album=album), album, path).encode()


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, by WCAG 2.2."""

    def luminance(colour: str) -> float:
        digits = colour.removeprefix("#")
        full = digits if len(digits) == 6 else "".join(digit * 2 for digit in digits)
        channels = (int(full[i : i + 2], 16) / 255 for i in (0, 2, 4))
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_text_can_be_read_in_light_and_in_dark() -> None:
    css = (Path(vlmft.previewing.__file__).with_name("page.css")).read_text()
    light, dark = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", root)) for root in re.findall(r":root \{([^}]*)\}", css)
    )
    assert light.keys() == dark.keys() and contrast("#000", "#fff") == pytest.approx(21)
    texts = [("ink", "card"), ("ink", "page"), ("soft", "card"), ("ink", "trained"), ("control", "card")]
    texts += [("control", "trained"), ("vision-ink", "vision"), ("bad", "bad-page")]
    poor = {(a, b): contrast(c[a], c[b]) for c in (light, dark) for a, b in texts if contrast(c[a], c[b]) < 4.5}
    assert poor == {}
