"""`vlmft.preview`: what it takes, what it writes, and what it refuses. tests/e2e types it and opens its page."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from tests.support import PROJECT, compose
from vlmft.config.app import run_app
from vlmft.data.run_data import open_run_data
from vlmft.preview import PreviewConfig, preview, table
from vlmft.previewing.samples import ShownSample
from vlmft.previewing.visits import Visit
from vlmft.train import TrainConfig

Typed = Callable[..., tuple[int, str, str]]
FEW = ("dataset.shapes.train_samples=12", "dataset.shapes.eval_samples=4")


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """`python -m vlmft.preview *words`, in this process and an empty folder: code, stdout, stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def type_(*words: str) -> tuple[int, str, str]:
        code = run_app("preview", PreviewConfig, preview, argv=words)
        return code, *capsys.readouterr()

    return type_


def rows(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]


def test_the_first_samples_of_the_stream_are_written_as_a_page(typed: Typed) -> None:
    code, out, err = typed("n=3", *FEW)
    assert (code, err) == (0, "")
    data = open_run_data(compose(*FEW).dataset, {}, 0.0, 0)
    ids = [data.mixture.sample_id(data.mixture.at(i)) for i in range(3)]
    assert [row[0] for row in rows(out)] == [*ids, "all"]
    figures = [[int(cell) for cell in row[1:]] for row in rows(out)]
    assert [sum(column) for column in zip(*figures[:-1], strict=True)] == figures[-1]
    assert figures[-1][0] == 3 and figures[-1][2] == 12
    page = Path("preview.html").absolute()
    assert out.splitlines()[-1] == f"preview  {page}"
    text = page.read_text()
    assert [text.index(f">{name}</h2>") for name in ids] == sorted(text.index(f">{name}</h2>") for name in ids)
    assert "samples 1 to 3 of the training stream" in text and "<dd>shapes</dd>" in text


def test_the_same_words_give_the_same_page_in_its_place(typed: Typed) -> None:
    typed("n=2", *FEW)
    first = Path("preview.html").read_bytes()
    assert typed("n=2", *FEW)[0] == 0
    assert Path("preview.html").read_bytes() == first
    assert typed("n=2", "seed=1", *FEW)[0] == 0
    assert Path("preview.html").read_bytes() != first


def test_held_out_samples_and_those_of_an_id(typed: Typed) -> None:
    code, out, _ = typed("eval=true", "n=9", "start=1", "out=new/held.html", *FEW)
    assert code == 0
    assert [row[0] for row in rows(out)] == [f"shapes/eval-{n:05}" for n in (1, 2, 3)] + ["all"]
    assert [row[4] for row in rows(out)] == ["0"] * 4
    text = Path("new/held.html").read_text()
    assert "samples 2 to 4 of 4 that are held out, as prompts" in text and ">expected</span>" in text
    code, out, _ = typed("ids=[shapes/train-00007,shapes/train-00001]", *FEW)
    assert [row[0] for row in rows(out)] == ["shapes/train-00007", "shapes/train-00001", "all"]
    assert "samples picked by id, each as a training run meets it first" in Path("preview.html").read_text()


def test_an_expression_stands_on_the_page(typed: Typed, mine: Path) -> None:
    assert typed("dataset=mine*2+shapes", "n=1", *FEW)[0] == 0
    text = Path("preview.html").read_text()
    assert "<dd>mine*2+shapes</dd>" in text and "<dd>mine x 2: 50 %, shapes: 50 %</dd>" in text


def test_bad_samples_are_counted_and_end_nothing(typed: Typed, mine: Path) -> None:
    (mine.parent / "0.png").write_bytes(b"no picture")
    code, out, err = typed("dataset=mine", "n=6")
    assert (code, err) == (0, "")
    assert sorted(row[0] for row in rows(out) if row[1] == "cannot be encoded") == ["mine/one", "mine/system"]
    assert "2 of 6 cannot be encoded; the page says why" in out
    assert Path("preview.html").read_text().count("0.png is no picture in a known format") == 2


def test_a_long_list_is_cut_on_the_screen_alone() -> None:
    samples = [ShownSample(Visit(n, f"mine/{n}", "mine", 0, "bad" if n % 2 else "")) for n in range(25)]
    screen = Console(width=100)
    with screen.capture() as captured:
        screen.print(table(samples))
    assert [row[0] for row in rows(captured.get())] == [*(f"mine/{n}" for n in range(20)), "and 5 more", "all"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["n=0"], "n: there would be nothing to see; give 1 to 500, and start= to see others (found 0)"),
        (["n=501"], "n: no browser shows a page of so many well; give 1 to 500, and start= to see others (found 501)"),
        (["start=-1"], "start: Input should be greater than or equal to 0 (found -1)"),
        (["nn=3"], "nn: unknown key; did you mean n?"),
        (["dataset=shape"], "dataset=shape: shape: unknown dataset; did you mean shapes?"),
        (["ids=7", *FEW], "ids: there is no sample '7' in a pass over the training stream (an id is <entry>/<id>, or "),
        (["eval=true", "start=4", *FEW], "start=4: only 4 samples are held out; lower it"),
        (["model=qwen25vl", "model.path=/no/such"], "model.path: there is no folder /no/such"),
        (["out=notes"], "out={work}/notes: exists and is no page by vlmft.preview, so it stays; choose another name"),
    ],
)
def test_bad_input(typed: Typed, words: list[str], error: str) -> None:
    Path("notes").write_text("precious")
    code, out, err = typed(*words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: {error.replace('{work}', str(Path.cwd()))}")
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("notes", "precious")]


def test_a_page_that_cannot_be_written(typed: Typed) -> None:
    Path("file").touch()
    code, _, err = typed("n=1", "out=file/page.html", *FEW)
    assert (code, err) == (5, f"error: {Path.cwd()}/file/page.html: cannot be written: File exists\n")


def test_each_value_stands_in_its_yaml() -> None:
    shown = yaml.safe_load((PROJECT / "conf/preview.yaml").read_text())
    chosen = {next(iter(item)) for item in shown["defaults"] if isinstance(item, dict)}
    assert set(shown) - {"defaults", "hydra"} | chosen == set(PreviewConfig.model_fields)
    assert all(field.is_required() for field in PreviewConfig.model_fields.values())


def test_what_it_shares_with_a_run_has_the_same_values() -> None:
    """Else it would show another stream than the run with the same words has."""
    train, here = (yaml.safe_load((PROJECT / f"conf/{name}.yaml").read_text()) for name in ("train", "preview"))
    shared = (set(here) & set(train)) - {"defaults", "hydra"}
    assert shared == {"seed", "holdout", "mixing_temperature", "sample_timeout_s", "precision"}
    assert {key: here[key] for key in shared} == {key: train[key] for key in shared}
    groups = [
        dict(item for d in file["defaults"] if isinstance(d, dict) for item in d.items()) for file in (train, here)
    ]
    assert groups[1].items() <= groups[0].items()
    for name in shared | groups[1].keys():
        assert PreviewConfig.model_fields[name].annotation == TrainConfig.model_fields[name].annotation
