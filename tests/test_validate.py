"""`vlmft.validate`: problems listed, figures shown and kept, and the verdict."""

import faulthandler
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.checking.support import write_rows
from tests.data.making import qa, save_picture
from tests.data.media.making_video import save_video
from vlmft.checking import examine, report
from vlmft.config.app import run_app
from vlmft.validate import ValidateConfig, validate

Typed = Callable[..., tuple[int, str, str]]
TWO = "num_workers=2"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user root with a picture; commands are typed in an empty folder beside it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("VLMFT_PATH", str(tmp_path / "my"))
    save_picture(tmp_path / "my/media/a.png", (56, 56))
    write_rows(tmp_path / "my", [qa()])
    return tmp_path / "my"


@pytest.fixture
def typed(root: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """`python -m vlmft.validate *words`, by default with out=out, in this process: code, stdout, stderr."""

    def type_(*words: str) -> tuple[int, str, str]:
        out = () if any(word.startswith("out=") for word in words) else ("out=out",)
        code = run_app("validate", ValidateConfig, validate, argv=(*words, *out))
        return code, *capsys.readouterr()

    return type_


def summary(folder: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())
    return found


def problems(folder: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "problems.jsonl").read_text().splitlines()]


def test_good_data(typed: Typed, root: Path) -> None:
    save_video(root / "media/b.mp4")
    write_rows(root, [qa("<image>\nA?", image="a.png"), qa("<video>\nA?", video="b.mp4"), qa("A?"), qa("A?", "No.")])
    code, out, err = typed("dataset=mine", TWO)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "a run would start, and not stop for its data"
    assert "│ mine  │       4 │ 100.0% │    2 │     1 │      - │     1 │     - │        1 │   - │" in out
    assert "repeated 1 samples: mine/3 = mine/2" in out
    assert "steps    0.25 a pass; 16 samples a step = 1 ranks x 16; 1 steps x 16 = 16 samples = 4.00 passes" in out
    assert problems() == []
    found = summary()
    assert (found["exit_code"], found["reasons"], found["samples"], found["problems"]) == (0, [], 4, {})
    mine = found["entries"]["mine"]
    assert mine["mix"] == {"text": 2, "image": 1, "images": 0, "video": 1, "mixed": 0}
    assert mine["tokens"]["samples"] == 4 and 0 < mine["tokens"]["vision_share"] < 1
    assert found["total"]["tokens"] == mine["tokens"]
    assert found["repeated"] == [["mine/3", "mine/2"]]
    assert found["steps"] == {"samples_a_pass": 4, "a_pass": 0.25, "run": 1}
    assert found["limits"] == {"batching.max_tokens": {"is": 8192, "over": 0, "fits_all": mine["tokens"]["most"]}}


@pytest.fixture
def bad(root: Path) -> Path:
    """Thirty good samples, six bad ones among them."""
    (root / "media/text.png").write_text("no picture")
    rows = [qa(f"Q{number}?") for number in range(30)]
    rows[3:3] = [qa("Q?", "", id="empty"), qa("<image>\nA?", image="gone.png", id="gone")]
    rows[20:20] = [qa("<image>\nA?", image="text.png", id="text"), qa("<|im_end|>?", id="control")]
    rows += [qa("A?", "word " * 300, id="long"), qa("A?", "word " * 200, id="long too")]
    return write_rows(root, rows).data_path


WORDS = ("dataset=mine", "batching.max_tokens=150", TWO)


def test_bad_samples_are_listed_in_the_order_of_the_file(typed: Typed, bad: Path) -> None:
    code, out, err = typed(*WORDS)
    assert code == 2
    listed = problems()
    assert [(problem["id"], problem["kind"], problem["line"]) for problem in listed] == [
        ("mine/empty", "row", 4),
        ("mine/gone", "media", 5),
        ("mine/text", "media", 21),
        ("mine/control", "text", 22),
        ("mine/long", "length", 35),
        ("mine/long too", "length", 36),
    ]
    assert {problem["file"] for problem in listed} == {str(bad)}
    assert out.splitlines()[:6] == [problem["message"] for problem in listed]
    path = Path("out").absolute() / "problems.jsonl"
    assert f"problems {path} (2 media, 2 length, 1 row, 1 text)" in out
    assert err == (
        f"error: 6 of 36 training samples cannot be used, max_bad_samples=0; mend what {path} lists, or leave them out "
        "with max_bad_samples=6\n"
    )
    found = summary()
    assert (found["exit_code"], found["reasons"]) == (2, [err.removeprefix("error: ").rstrip()])
    assert found["problems"] == {"row": 1, "media": 2, "text": 1, "length": 2}
    tokens = found["entries"]["mine"]["tokens"]
    assert (tokens["samples"], tokens["too_long"]) == (32, 2)
    limit = found["limits"]["batching.max_tokens"]
    assert (limit["is"], limit["over"], limit["fits_all"]) == (150, 2, tokens["most"])
    assert f"limits   2 samples exceed batching.max_tokens=150; {tokens['most']} would take all of them" in out
    assert typed(*WORDS, f"batching.max_tokens={tokens['most']}", "max_bad_samples=4")[0] == 0


@pytest.mark.parametrize(("allowed", "code"), [(5, 2), (6, 0)])
def test_as_many_bad_samples_as_are_allowed_stop_no_run(typed: Typed, bad: Path, allowed: int, code: int) -> None:
    assert typed(*WORDS, f"max_bad_samples={allowed}")[0] == code
    assert len(problems()) == 6 and summary()["exit_code"] == code


@pytest.mark.parametrize(
    ("show", "shown", "more"), [("2", 2, "... and 4 more"), ("0", 0, "... and 6 more"), ("null", 6, "")]
)
def test_the_screen_shows_the_first(typed: Typed, bad: Path, show: str, shown: int, more: str) -> None:
    _, out, _ = typed(*WORDS, f"show={show}")
    lines = out.splitlines()
    assert lines[:shown] == [problem["message"] for problem in problems()[:shown]]
    assert lines[shown] == (more or "samples")


def test_held_out_samples_have_to_be_good_however_many_may_be_bad(typed: Typed, root: Path) -> None:
    write_rows(root, [qa("A?", "")], "eval")
    code, out, err = typed("dataset=mine", "eval_dataset=eval", "max_bad_samples=9", TWO)
    assert code == 2
    assert err.startswith("error: 1 held-out samples cannot be used; mend what ")
    assert [(problem["id"], problem["held_out"]) for problem in problems()] == [("eval/0", True)]
    assert "│ eval, held out │       1 │" in out
    assert summary()["held_out"]["eval"]["bad"] == 1


def test_an_overlap(typed: Typed, root: Path) -> None:
    write_rows(root, [qa()], "eval")
    code, out, err = typed("dataset=mine", "eval_dataset=eval", "tokens=false", TWO)
    assert code == 2
    assert out.startswith("1 training samples are also held out (training = held out): mine/0 = eval/0; remove them")
    assert err.startswith("error: held-out samples are also trained on; mend what ")
    assert problems()[0]["kind"] == "overlap"


def test_entries_side_by_side(typed: Typed, root: Path) -> None:
    write_rows(root, [qa(f"Q{number}?") for number in range(3)], "other")
    code, out, _ = typed("dataset=mine*3+other", "tokens=false", TWO)
    assert code == 0
    assert [line.split("│")[1:4] for line in out.splitlines() if "%" in line] == [
        [" mine  ", "       1 ", "  50.0% "],
        [" other ", "       3 ", "  50.0% "],
        [" all   ", "       4 ", " 100.0% "],
    ]
    assert summary()["total"]["tokens"] is None and summary()["tokens"] is False


def test_an_earlier_scans_files_are_replaced_and_nothing_else(typed: Typed, bad: Path, root: Path) -> None:
    assert typed(*WORDS)[0] == 2
    Path("out/notes.txt").write_text("mine")
    write_rows(root, [qa()], "good")
    assert typed("dataset=good", "tokens=false", TWO)[0] == 0
    assert problems() == [] and summary()["samples"] == 1
    assert Path("out/notes.txt").read_text() == "mine"


def test_pixels_are_decoded_where_it_is_asked_for(typed: Typed, root: Path) -> None:
    whole = save_picture(root / "media/cut.png", (64, 64)).read_bytes()
    (root / "media/cut.png").write_bytes(whole[: len(whole) // 2])
    write_rows(root, [qa("<image>\nA?", image="cut.png"), qa("<image>\nA?", image="a.png")])
    for tokens in ("true", "false"):
        assert typed("dataset=mine", f"tokens={tokens}", TWO)[0] == 0
        code, out, _ = typed("dataset=mine", f"tokens={tokens}", "decode=true", TWO)
        assert code == 2 and "cut.png cannot be decoded: " in out.splitlines()[0]


def test_a_decoder_that_crashes_and_one_that_hangs(typed: Typed, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def image_size(picture: Any) -> tuple[int, int]:
        faulthandler.disable()
        if picture.path.name == "crash.png":
            os.kill(os.getpid(), signal.SIGSEGV)
        if picture.path.name == "hang.png":
            time.sleep(60)
        return 56, 56

    monkeypatch.setattr(examine, "image_size", image_size)
    for name in ("crash.png", "hang.png"):
        save_picture(root / "media" / name)
    pictures = ["a.png", "crash.png", "a.png", "hang.png", "a.png"]
    write_rows(root, [*(qa("<image>\nA?", image=name) for name in pictures), qa("A?", "")])
    code, out, _ = typed("dataset=mine", "tokens=false", "sample_timeout_s=1", TWO)
    assert code == 2
    assert [(problem["id"], problem["kind"], problem["line"]) for problem in problems()] == [
        ("mine/1", "crash", 2),
        ("mine/3", "timeout", 4),
        ("mine/5", "row", 6),
    ]
    assert out.splitlines()[:2] == [
        "mine/1: Segmentation fault (signal 11) ended the loader process that was reading it; replace its files, which "
        "crash their decoder",
        "mine/3: was not read and decoded within 1 s; look at its files, or raise sample_timeout_s where the storage "
        "is slow",
    ]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["dataset=mien"], "dataset=mien: mien: unknown dataset; did you mean mine?"),
        (["show=-1"], "show: Input should be greater than or equal to 0 (found -1)"),
        (["num_workers=0"], "num_workers: Input should be greater than or equal to 1 (found 0)"),
        (["optim.lr=-1"], "optim.lr: Input should be greater than 0 (found -1)"),
        (["strategy.ranks=3"], "global_batch_size: 16 samples a step cannot be shared evenly by 3 ranks"),
        (["model=qwen25vl", "model.path=./weights"], "model.path: there is no folder ./weights"),
        (["batching=packed", "model=tiny_gemma3"], "batching=packed: TinyGemma3 takes no packs: its pictures' tokens"),
        (["holdout=0.5"], "holdout=0.5 holds out "),
        (["model.image.min_pixels=999999999"], "model.image: "),
    ],
)
def test_what_training_would_refuse(typed: Typed, words: list[str], error: str) -> None:
    code, out, err = typed("dataset=mine", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {error}") and len(err.splitlines()) == 1
    assert list(Path.cwd().iterdir()) == []


def test_a_folder_that_cannot_be_written(typed: Typed, root: Path) -> None:
    Path("file").touch()
    code, _, err = typed("dataset=mine", "out=file", "tokens=false")
    assert (code, err) == (5, f"error: out={Path.cwd()}/file: cannot be written: File exists\n")


def test_a_sweep_gives_each_job_a_folder(typed: Typed, root: Path) -> None:
    write_rows(root, [qa("A?", "")], "bad")
    assert typed("-m", "dataset=mine,bad", "tokens=false", TWO)[0] == 2
    assert [summary(f"out/{number}")["exit_code"] for number in (0, 1)] == [0, 2]


def test_the_command_loads_no_model_where_it_counts_no_tokens(root: Path) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
        "sys.argv[1:] = ['dataset=mine', 'tokens=false', 'out=out']\n"
        "from vlmft.validate import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.split()
    assert "PIL" in loaded and not {"torch", "transformers", "tokenizers"} & set(loaded)


def test_a_terminal_shows_how_far_it_is(typed: Typed, bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False, soft_wrap=True)
    monkeypatch.setattr(report, "console", lambda: screen)
    assert typed(*WORDS)[0] == 2
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "examining" in shown and "36/36" in shown
    assert all(problem["message"] in shown for problem in problems())
