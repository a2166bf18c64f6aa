"""The page that a run begins with."""

import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.e2e.conftest import losses, read_result, run_here
from tests.support import compose
from vlmft.data.run_data import open_run_data
from vlmft.models import ModelSpec

SHAPES = ("dataset.shapes.train_samples=40", "dataset.shapes.eval_samples=8")
SHORT = ("trainer.num_workers=0", "global_batch_size=4", "trainer.max_steps=2", "evaluation=none")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_shows_its_first_samples(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_here("run.dir=run", *SHAPES, *SHORT, "preview=3", "trainer.num_workers=1") == 0
    mixture = open_run_data(compose(*SHAPES).dataset, {}, 0.0, 0).mixture
    ids = [mixture.sample_id(mixture.at(position)) for position in range(3)]
    text = (folder / "run" / "preview.html").read_text()
    assert [text.count(f">{name}</h2>") for name in ids] == [1, 1, 1] and text.count("<h2") == 3
    assert f"samples 1 to 3 of the training stream of {folder}/run" in text
    out, err = capfd.readouterr()
    assert f"\npreview  {folder}/run/preview.html\n" in out and err == ""

    events = EventAccumulator(str(folder / "run" / "tb"))
    events.Reload()
    shown = [tag for tag in events.Tags()["images"] if tag.startswith("preview/")]
    assert sorted(shown) == ["preview/1 picture 1", "preview/2 picture 1", "preview/3 picture 1"]
    texts = [events.Tensors(f"preview/{n}/text_summary")[0].tensor_proto.string_val[0].decode() for n in (1, 2, 3)]
    assert [name in text for name, text in zip(ids, texts, strict=True)] == [True] * 3


def test_a_page_changes_no_number_and_may_be_left_out(folder: Path) -> None:
    for preview in (0, 4):
        assert run_here(f"run.dir=run{preview}", *SHAPES, *SHORT, "logger=none", f"preview={preview}") == 0
    assert losses(folder / "run0") == losses(folder / "run4")
    assert [(folder / f"run{n}" / "preview.html").exists() for n in (0, 4)] == [False, True]
    assert not (folder / "run4" / "tb").exists()


def test_a_run_goes_on_with_another_number_of_samples_shown(folder: Path) -> None:
    assert run_here("run.dir=run", *SHAPES, *SHORT, "trainer.save_every=1", "preview=1") == 0
    (folder / "run" / "result.json").write_text('{"state": "failed"}')
    assert run_here("run.dir=run", *SHAPES, *SHORT, "trainer.save_every=1", "preview=2") == 0
    assert read_result(folder / "run")["state"] == "done"


def test_a_bad_sample_is_shown_and_ends_nothing_by_itself(folder: Path, mine: Path) -> None:
    (mine.parent / "0.png").write_bytes(b"no picture")
    words = ("dataset=mine", "global_batch_size=6", "check_s=0", "preview=6", "max_bad_samples=2")
    assert run_here("run.dir=run", *SHORT, *words) == 0
    assert (folder / "run" / "preview.html").read_text().count("0.png is no picture in a known format") == 2


def test_a_page_that_cannot_be_written_ends_the_run_before_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def load(*args: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(ModelSpec, "load_model", load)
    (folder / "run" / "preview.html").mkdir(parents=True)
    assert run_here("run.dir=run", *SHAPES, *SHORT) == 5
    assert f"error: {folder}/run/preview.html: cannot be written: {os.strerror(21)}" in capfd.readouterr().err


def test_the_number_has_bounds(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_here("preview=101", "run.dir=run") == 2
    assert "error: preview: Input should be less than or equal to 100 (found 101)" in capfd.readouterr().err
