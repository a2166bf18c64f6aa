"""`vlmft.report`: runs read from their folders, on the screen and as a page."""

import base64
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.sweeps.making import write_lines, write_run
from tests.sweeps.test_finish import rows_of
from vlmft.config.app import run_app
from vlmft.report import ReportConfig, report
from vlmft.sweeps.runs import write_jobs

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """`python -m vlmft.report *words`, in this process and an empty folder: code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLMFT_PATH", raising=False)

    def type_(*words: str) -> tuple[int, str, str]:
        code = run_app("report", ReportConfig, report, argv=words)
        return code, *capsys.readouterr()

    return type_


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three jobs: quick, good in the end, refused."""
    write_run(tmp_path / "s/0", [3.0, 0.5, 0.5, 0.5], 0.7)
    write_run(tmp_path / "s/1", [3.0, 2.0, 1.0, 0.4], 0.9)
    jobs = {n: {"overrides": ["seed=0", f"optim.lr={n}"], "exit_code": 0, "reason": ""} for n in range(2)}
    jobs[2] = {"overrides": ["seed=0", "optim.lr=<b>x</b>"], "exit_code": 2, "reason": "optim.lr: no & <number>"}
    write_jobs(tmp_path / "s", jobs)
    return tmp_path / "s"


def test_a_sweeps_folder_is_shown_again(typed: Typed, sweep: Path) -> None:
    code, out, err = typed("dir=s")
    assert (code, err) == (0, "")
    assert [row[:4] for row in rows_of(out)] == [
        ["0", "optim.lr=0", "done", "0.500"],
        ["1", "optim.lr=1", "done", "0.400"],
        ["2", "optim.lr=<b>x</b>", "failed: optim.lr: no & <number>", "-"],
    ]
    assert "fastest: 0 (optim.lr=0): 2 steps to a mean loss of 0.5, " in out
    assert "ends best: 1 (optim.lr=1): exact_match 0.900 [0.800, 1.000], " in out
    assert [row[5] for row in rows_of(typed("dir=s", "loss_below=1")[1])] == ["2", "3", "-"]


def test_runs_are_picked_by_hand(typed: Typed, sweep: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "other/1", [1.0], overrides=["seed=7", "run.dir=other/1"])
    code, out, _ = typed("dir=[s/1,other/1]", "csv=all/figures.csv")
    assert code == 0
    assert [row[:2] for row in rows_of(out)] == [["s/1", ""], ["other/1", "seed=7"]]
    assert [line.split(",")[0] for line in Path("all/figures.csv").read_text().splitlines()] == [
        "job",
        "s/1",
        "other/1",
    ]
    monkeypatched = typed("dir=[s,other/1]")[1]
    assert [row[0] for row in rows_of(monkeypatched)] == ["s/0", "s/1", "s/2", "other/1"]
    assert [row[0] for row in rows_of(typed("dir=other/1")[1])] == ["1"]


def test_a_jobs_number_is_its_folder(typed: Typed, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep)
    assert [row[0] for row in rows_of(typed("dir=[0,1]")[1])] == ["0", "1"]


class Page(HTMLParser):
    """What a page refers to, and what it marks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.marked: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.last = (tag, dict(attrs).get("class"))
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "mark":
            self.marked.append(data)
        if self.cells:
            self.cells[-1] += data


def test_the_page_needs_nothing_else(typed: Typed, sweep: Path) -> None:
    code, _, err = typed("dir=s", "html=out/report.html")
    assert (code, err) == (0, "")
    text = Path("out/report.html").read_text()
    page = Page(text)
    (picture,) = page.references
    drawn = base64.b64decode(picture.removeprefix("data:image/svg+xml;base64,"))
    svg = ElementTree.fromstring(drawn)
    assert svg.tag.endswith("svg") and b"optim.lr=1" in drawn
    links = [value for element in svg.iter() for name, value in element.attrib.items() if name.endswith("href")]
    assert [link for link in links if not link.startswith("#")] == []
    assert "script" not in page.tags and "link" not in page.tags and not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_the_page_says_what_the_table_says_and_highlights_what_differs(typed: Typed, sweep: Path) -> None:
    typed("dir=s", "html=report.html")
    text = Path("report.html").read_text()
    page = Page(text)
    cells = "|".join(page.cells)
    assert "0|0|done|0.500|0.100 -> 0.700 [0.600, 0.800]" in cells and "2|<b>x</b>|failed: optim.lr: no & <" in cells
    assert '<td class="differs"><code>&lt;b&gt;x&lt;/b&gt;</code></td>' in text and "<b>" not in text
    assert [word for word in page.marked if word.startswith("optim.lr")] and "seed=0" not in page.marked
    assert "<pre>optim.lr: no &amp; &lt;number&gt;</pre>" in text
    assert text.count('<tr class="best">') == 2 and text.count('<tr class="failed">') == 1


def test_the_same_runs_give_the_same_page(typed: Typed, sweep: Path) -> None:
    typed("dir=s", "html=a.html")
    typed("dir=s", "html=b.html")
    assert Path("a.html").read_bytes() == Path("b.html").read_bytes()


@pytest.mark.parametrize(
    ("words", "errors"),
    [
        ([], ["dir: name a sweep's folder or runs: dir=runs/sweep, dir=[runs/a,runs/b]"]),
        (["dir=none"], ["dir: {}/none: there is no such folder"]),
        (
            ["dir=[none,empty]"],
            [
                "dir: {}/none: there is no such folder",
                "dir: {}/empty: holds neither a run (config.yaml) nor a sweep's jobs (0/config.yaml, ...)",
            ],
        ),
        (
            ["dir=damaged"],
            [
                "dir: {}/damaged/metrics.jsonl:1: is damaged: should be a JSON object with a step (Expecting property "
                "name enclosed in double quotes: line 2 column 1 (char 2)); found b'{\\n'. Mend or remove the line"
            ],
        ),
        (["dir=s", "loss_below=0"], ["loss_below: Input should be greater than 0 (found 0)"]),
        (["dri=s"], ["dri: unknown key; did you mean dir?"]),
    ],
)
def test_bad_input(typed: Typed, sweep: Path, tmp_path: Path, words: list[str], errors: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    write_lines(write_run(tmp_path / "damaged") / "metrics.jsonl", "{\n")
    code, out, err = typed(*words)
    wanted = [f"error: {line.replace('{}', str(tmp_path)) if '/' in line else line}" for line in errors]
    assert (code, out, err.splitlines()) == (2, "", wanted)


def test_a_page_that_cannot_be_written(typed: Typed, sweep: Path) -> None:
    code, _, err = typed("dir=s", "html=s")
    assert (code, err) == (5, "error: s: cannot be written: Is a directory\n")


def test_the_command_loads_no_torch(sweep: Path) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
        f"sys.argv[1:] = ['dir={sweep}', 'html={sweep}/report.html']\n"
        "from vlmft.report import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.split()
    assert "matplotlib" in loaded and not {"torch", "transformers", "matplotlib.pyplot"} & set(loaded)
