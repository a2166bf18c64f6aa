"""The embedded default, `python -m vlmft.train` with no words: what it shows, what it leaves, and that it is real."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

import vlmft
from tests.e2e.conftest import Ended, losses, read_lines, run_here, typed_in
from tests.e2e.record_losses import RECORDED
from vlmft.config.app import load_config
from vlmft.data import LLaVADataset
from vlmft.data.run_data import open_run_data
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.errors import PreemptedError
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.generate import Evaluator
from vlmft.train import TrainConfig
from vlmft.training.trainer import StepTrainer
from vlmft.types import Sample


@pytest.fixture(scope="module")
def config(default_run: Ended) -> TrainConfig:
    return load_config(default_run.run / "config.yaml", TrainConfig)


@pytest.fixture(scope="module")
def tuned(default_run: Ended) -> tuple[Any, Any]:
    return vlmft.load(default_run.run)


@pytest.fixture(scope="module")
def data_file(config: TrainConfig) -> Path:
    return config.dataset["shapes"].open("shapes").data_file


def answers(tuned: tuple[Any, Any], config: TrainConfig, samples: list[Sample]) -> list[Answer]:
    model, processor = tuned
    parts = (Encoder(config.model, processor), Collator(config.model, processor))
    return Evaluator(config.evaluation, *parts, samples, config.metric).answer(model)  # type: ignore[arg-type]


def test_the_tuned_model_is_measurably_better(default_run: Ended) -> None:
    assert default_run.code == 0, default_run.err
    assert default_run.err == ""
    result = default_run.result
    assert (result["state"], result["exit_code"], result["reason"], result["steps"]) == ("done", 0, "done", 375)
    scores = result["eval"]
    assert scores["n"] >= 100
    assert scores["base"]["exact_match"] <= 0.4
    assert scores["tuned"]["exact_match"] >= 0.9
    assert scores["p_value"] < 0.01
    assert scores["intervals"]["base"]["exact_match"][1] < scores["intervals"]["tuned"]["exact_match"][0]
    for name in ("base", "tuned"):
        rows = [json.loads(line) for line in (default_run.run / "predictions" / f"{name}.jsonl").open()]
        right = [row["scores"]["exact_match"] for row in rows]
        assert sum(right) / len(right) == pytest.approx(scores[name]["exact_match"])
        assert len({row["id"] for row in rows}) == scores["n"]


def test_says_so_in_a_table(default_run: Ended) -> None:
    out, run, scores = default_run.out, default_run.run, default_run.result["eval"]
    for said in (
        f"run      {run}",
        "16 samples a step = 1 ranks x 16; 375 steps x 16 = 6000 samples = 1.00 passes over 6000",
        "vision_tower │ full",
        "step 375/375  loss ",
        "supervised tokens/s",
        "p (McNemar)",
        f"{scores['tuned']['exact_match']:.3f} [",
        f"tuned model  {run / 'final'}",
        f"answers      {run / 'predictions'}",
    ):
        assert said in out
    row = next(line for line in out.splitlines() if "exact_match" in line)
    assert [cell.strip() for cell in row.split("│")][4:] == [f"{scores['p_value']:.2g}", f"{scores['n']}", ""]


def test_first_losses_are_the_recorded_ones(default_run: Ended) -> None:
    """Recorded with record_losses.py in this folder, which says how to do it anew."""
    recorded = json.loads(RECORDED.read_text())
    assert len(recorded) == 20
    assert losses(default_run.run)[:20] == pytest.approx(recorded, rel=1e-3)


class TestTheMask:
    @pytest.fixture
    def first_losses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[float]]:
        """The first three losses of the default, trained in this process."""
        real = StepTrainer.report

        def report(self: StepTrainer, values: dict[str, float]) -> None:
            real(self, values)
            if self.state.global_step == 3:
                raise PreemptedError("seen enough")

        monkeypatch.setattr(StepTrainer, "report", report)

        def train(name: str) -> list[float]:
            assert run_here(f"run.dir={tmp_path / name}", "evaluation=none", "trainer.num_workers=0", "check_s=0") == 75
            return losses(tmp_path / name)

        return train

    def test_shifted_by_one_token_breaks_the_recorded_losses(
        self, first_losses: Callable[[str], list[float]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recorded = json.loads(RECORDED.read_text())[:3]
        assert first_losses("plain") == pytest.approx(recorded, rel=1e-3)
        real = Encoder.encode

        def encode(self: Encoder, sample: Sample, key: int | None = None) -> Encoded:
            encoded = real(self, sample, key)
            encoded.supervised = encoded.supervised.roll(1)
            return encoded

        monkeypatch.setattr(Encoder, "encode", encode)
        shifted = first_losses("shifted")
        assert all(loss != pytest.approx(was, rel=1e-3) for loss, was in zip(shifted, recorded, strict=True))


def test_another_process_gets_the_same_answers(default_run: Ended, tuned: tuple[Any, Any], config: TrainConfig) -> None:
    """This is not the process that trained: it has `final` and the data alone."""
    data = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed)
    found = answers(tuned, config, data.held_out_samples(500))
    rows = [json.loads(line) for line in (default_run.run / "predictions" / "tuned.jsonl").open()]
    assert found == [Answer(**row) for row in rows]


def test_blanked_pictures_are_not_answered(
    tmp_path: Path, tuned: tuple[Any, Any], config: TrainConfig, data_file: Path
) -> None:
    """What it learned is to look: without anything to see it does no better than a guess."""
    shutil.copy(data_file.with_name("eval.json"), tmp_path)
    (tmp_path / "images").mkdir()
    source = LLaVADataset(data_path=data_file.with_name("eval.json")).open("shapes")
    for picture in {image.path for row in range(len(source)) for image in source[row].images}:
        with PIL.Image.open(picture) as seen:
            PIL.Image.new("RGB", seen.size, (128, 128, 128)).save(tmp_path / "images" / picture.name)
    blank = LLaVADataset(data_path=tmp_path / "eval.json").open("shapes")
    found = answers(tuned, config, [blank[row] for row in range(len(blank))])
    accuracy = sum(answer.scores["exact_match"] for answer in found) / len(found)
    assert len(found) >= 100
    assert accuracy <= 0.4
    assert any(answer.prediction in ("red", "green", "blue", "yellow", "purple", "black") for answer in found)


def test_no_held_out_picture_is_a_training_one(data_file: Path) -> None:
    pixels: dict[str, list[bytes]] = {}
    for file in ("dataset.json", "eval.json"):
        source = LLaVADataset(data_path=data_file.with_name(file)).open("shapes")
        paths = [image.path for row in range(len(source)) for image in source[row].images]
        assert len(set(paths)) == len(paths)
        pixels[file] = [PIL.Image.open(path).tobytes() for path in paths]
    assert len(pixels["dataset.json"]) > 6000 and len(pixels["eval.json"]) > 300
    assert set(pixels["dataset.json"]).isdisjoint(pixels["eval.json"])


def test_the_folder_holds_the_run(default_run: Ended) -> None:
    run = default_run.run
    assert (run / "config.yaml").read_text().count("shapes") >= 1
    made = json.loads((run / "environment.json").read_text())
    assert made["packages"]["torch"] == torch.__version__.partition("+")[0]
    lines = [line for line in read_lines(run) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 376))
    assert lines[-1]["loss"] < 0.3 < 5 < lines[0]["loss"]
    assert lines[10]["learning_rate"] < lines[11]["learning_rate"] == pytest.approx(3e-3)  # 0.03 of the steps warm up
    assert read_lines(run)[-1]["eval/exact_match"] == default_run.result["eval"]["tuned"]["exact_match"]
    assert list((run / "tb").glob("events.out.tfevents.*"))
    assert (run / "final" / "trained.safetensors").stat().st_size > 1_000_000
    assert not [path for path in run.rglob("*") if path.suffix in (".bin", ".pkl", ".pt", ".pth")]


def files_of(run: Path) -> dict[Path, int]:
    """Every file with the time it was written at, but for the locks of those who look at the folder."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_the_same_again_in_its_folder_does_nothing(default_run: Ended, tmp_path: Path) -> None:
    before = files_of(default_run.run)
    again = typed_in(tmp_path, f"run.dir={default_run.run}")
    assert again.code == 0, again.err
    assert f"run      {default_run.run} is finished already; nothing was changed" in again.out
    assert files_of(default_run.run) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("seed=1", "optim.lr=1e-3"), ["  optim.lr: was 0.003, is 0.001", "  seed: was 0, is 1"]),
        (("resume=none",), ["run.dir={run} holds a run already; choose another run.dir, or continue it (resume=auto)"]),
    ],
)
def test_another_run_in_its_folder_is_refused_and_touches_nothing(
    default_run: Ended, tmp_path: Path, words: tuple[str, ...], said: list[str]
) -> None:
    before = files_of(default_run.run)
    again = typed_in(tmp_path, f"run.dir={default_run.run}", *words)
    assert again.code == 2
    for text in said:
        assert text.format(run=default_run.run) in again.errors
    assert "run.dir" in again.errors[-1]
    assert files_of(default_run.run) == before
