"""What a rank does, run inside this process; tests/e2e runs the same as a user does."""

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import literally
from vlmft import settling, worker
from vlmft.config.app import run_app
from vlmft.data import LLaVADataset
from vlmft.data.run_data import open_run_data
from vlmft.errors import ConfigError, DataError, OutOfMemoryError, PreemptedError, StorageError
from vlmft.evaluation.answers import Answer, read_answers
from vlmft.evaluation.generate import Evaluator
from vlmft.models import ModelSpec
from vlmft.run_folder import RunFolder
from vlmft.tasks import base
from vlmft.train import TrainConfig, train
from vlmft.training.trainer import StepTrainer

SHAPES = ("dataset.shapes.train_samples=40", "dataset.shapes.eval_samples=8")
FEW_TOKENS = "evaluation.max_new_tokens=4"
SHORT = ("trainer.num_workers=0", "global_batch_size=4", "trainer.max_steps=2")


@dataclass
class Ran:
    """One run: its folder, its exit code, and what it printed."""

    folder: RunFolder
    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        return self.folder.read_result()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.folder.metrics.read_text().splitlines()]


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `python -m vlmft.train *words` as a launcher's only rank: what a rank does is done in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}

    def go(*words: str, folder: str = "run") -> Ran:
        code = run_app("train", TrainConfig, train, argv=[f"run.dir={tmp_path / folder}", *SHORT, *words])
        out, err = capfd.readouterr()
        return Ran(RunFolder(tmp_path / folder), code, out, err)

    yield go
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is a fault of the program here."""

    def load(*args: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(ModelSpec, "load_model", load)


class TestWholeRun:
    def test_leaves_every_file_that_the_folder_promises(self, run: Run) -> None:
        words = ("evaluation.every_steps=1", "trainer.max_steps=3", "metric=exact_match+length")
        ran = run(*SHAPES, FEW_TOKENS, *words, "metric.length.least=40", "metric.length.unit=characters")
        assert ran.code == 0, ran.err
        found = sorted(str(path.relative_to(ran.folder.path)) for path in ran.folder.path.rglob("*") if path.is_file())
        expected = [
            ".driver.lock",
            ".rank.lock",
            "config.yaml",
            "environment.json",
            "final/chat_template.jinja",
            "final/processor_config.json",
            "final/tokenizer.json",
            "final/tokenizer_config.json",
            "final/trained.safetensors",
            "final/vlmft.json",
            "fingerprint.json",
            "metrics.jsonl",
            "predictions/base.jsonl",
            "predictions/step-00000001.jsonl",
            "predictions/step-00000002.jsonl",
            "predictions/tuned.jsonl",
            "preview.html",
            "result.json",
        ]
        assert [name for name in found if not name.startswith(("tb/", "checkpoints/"))] == expected
        assert any(name.startswith("tb/events.out.tfevents.") for name in found)

        result = ran.result
        assert (result["state"], result["exit_code"], result["reason"], result["steps"]) == ("done", 0, "done", 3)
        assert result["pid"] == os.getpid() and result["seconds"] > 0 and result["started"] < result["ended"]
        assert result["train"]["loss"] == [line["loss"] for line in ran.lines if "loss" in line][-1]
        assert f"batching grouped: {result['batching']['because']}" in " ".join(ran.out.split())
        assert set(result["eval"]) == {"base", "tuned", "intervals", "n", "p_value", "tests"}
        assert result["eval"]["n"] == 8
        for name in ("base", "tuned"):
            answers = read_answers(ran.folder.predictions / f"{name}.jsonl")
            lengths = [min(1, len(answer.prediction.strip()) / 40) for answer in answers]
            assert result["eval"][name]["length"] == pytest.approx(sum(lengths) / 8) and any(
                0 < length < 1 for length in lengths
            )
            assert list(answers[0].scores) == ["exact_match", "length"]

        device = json.loads(ran.folder.environment.read_text())["device"]
        assert device["ranks"] == 1 and device["type"] in ("cpu", "cuda")

        provenance = json.loads((ran.folder.final / "vlmft.json").read_text())
        assert provenance["config"] == ran.folder.config.read_text()
        assert provenance["datasets"]["shapes"]["rows"] == 40
        assert provenance["packages"]["torch"] == torch.__version__.partition("+")[0]

    def test_a_resumed_run_cuts_as_it_began(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """`batching=auto` would come to packs now; the checkpoint says grouped."""
        words = ("trainer.save_every=1", "evaluation=none", "preview=0", "resume_allow=[trainer.max_steps]")
        assert run(*SHAPES, *words).result["batching"]["chosen"] == "grouped"
        monkeypatch.setattr(settling, "PAYS_FROM", 0.0)
        again = run(*SHAPES, *words, "trainer.max_steps=4")
        assert again.code == 0, again.err
        assert again.result["batching"] == {
            "chosen": "grouped",
            "because": "as it was when the checkpoint was saved",
        }
        assert "resumed  " in again.out and "vlmft_packed" not in again.out
        other = run(*SHAPES, *words, folder="other")
        assert other.result["batching"]["chosen"] == "packed" and "llm vlmft_packed" in other.out

    def test_is_judged_by_several_metrics(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of 8 samples the base gets none right, in no more than a word; the tuned model 6, in two words each."""
        said = iter([lambda wanted, i: "no", lambda wanted, i: f"<answer>{wanted if i < 6 else '-'}</answer> so"])

        def answer(self: Evaluator, model: Any) -> list[Answer]:
            say = next(said)
            texts = [say(sample.messages[-1].text, i) for i, sample in enumerate(self.samples)]
            return [self.scored(*pair) for pair in zip(self.samples, texts, strict=True)]

        monkeypatch.setattr(Evaluator, "answer", answer)
        words = ("metric=length+correctness+format", "metric.length.least=4", "metric.length.most=null")
        ran = run(*SHAPES, *words)
        assert ran.code == 0, ran.err
        found = ran.result["eval"]
        assert found["base"] == {"length": 0.25, "correctness": 0.0, "format": 0.0}
        assert found["tuned"] == {"length": 0.5, "correctness": 0.75, "format": 0.0}
        assert found["tests"] == {
            "length": {"name": "permutation", "p_value": pytest.approx(2 / 2**8)},  # all of 8 better
            "correctness": {"name": "McNemar", "p_value": pytest.approx(2 / 2**6)},  # 6 better, none worse
            "format": {"name": "McNemar", "p_value": 1.0},
        }
        assert found["p_value"] == found["tests"]["length"]["p_value"]
        assert found["intervals"]["tuned"]["length"] == [0.5, 0.5]
        low, high = found["intervals"]["tuned"]["correctness"]  # Wilson's for 6 of 8
        assert (low, high) == (pytest.approx(0.4093, abs=1e-4), pytest.approx(0.9285, abs=1e-4))
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ran.out.splitlines() if line[:1] == "│"]
        assert rows[-3:] == [
            ["length", "0.250 [0.250, 0.250]", "0.500 [0.500, 0.500]", "0.0078 (permutation)", "8"],
            ["correctness", "0.000 [0.000, 0.324]", "0.750 [0.409, 0.929]", "0.031 (McNemar)", "8"],
            ["format", "0.000 [0.000, 0.324]", "0.000 [0.000, 0.324]", "1 (McNemar)", "8"],
        ]
        assert {key: value for key, value in ran.lines[-1].items() if key.startswith("eval/")} == {
            f"eval/{name}": value for name, value in found["tuned"].items()
        }

    def test_ends_with_the_best_where_it_is_told_to(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = iter([0.2, 0.7, 0.3])  # after the steps 2, 4 and 5
        monkeypatch.setattr(Evaluator, "scores", lambda self, answers: {"exact_match": next(scores)})
        words = ("evaluation.every_steps=2", "evaluation.best_by=exact_match", "trainer.max_steps=5")
        ran = run(*SHAPES, FEW_TOKENS, *words)
        assert ran.code == 0, ran.err
        assert ran.result["best"] == {"metric": "exact_match", "step": 4, "score": 0.7}
        assert "best     step 4, exact_match 0.700" in ran.out
        best = load_file(ran.folder.checkpoint(4) / "trained.safetensors")
        final = load_file(ran.folder.final / "trained.safetensors")
        assert best.keys() == final.keys() and all(torch.equal(best[name], final[name]) for name in best)
        judged = [(line["step"], line["eval/exact_match"]) for line in ran.lines if "eval/exact_match" in line]
        assert judged == [(2, 0.2), (4, 0.7), (5, 0.3)]

    @pytest.mark.parametrize(
        ("words", "error"),
        [
            (
                ("evaluation.best_by=exact_match",),
                "evaluation: best_by=exact_match needs every_steps: the steps after which the model is scored",
            ),
            (
                ("evaluation.best_by=f1", "evaluation.every_steps=2"),
                "evaluation.best_by: 'f1' is not among this run's metrics: exact_match",
            ),
            (
                ("metric=exact_match+iou+json",),
                "error: metric iou, sample shapes/eval-00000: its reference 'red' has no box; expected",
            ),
            (
                ("metric=length+iou", "metric.length.most=0", "+metric.iou.treshold=1"),
                "error: metric.iou.treshold: unknown key; did you mean threshold?",
            ),
        ],
    )
    def test_what_the_model_cannot_be_judged_by_is_refused(
        self, run: Run, no_weights: None, words: tuple[str, ...], error: str
    ) -> None:
        ran = run(*SHAPES, *words)
        assert ran.code == 2
        assert error in ran.err

    def test_writes_a_line_a_step_and_one_an_evaluation(self, run: Run) -> None:
        ran = run(*SHAPES, FEW_TOKENS, "evaluation.every_steps=2", "trainer.max_steps=4", "evaluation.base=false")
        kinds = [(line["step"], "loss" in line, "eval/exact_match" in line) for line in ran.lines]
        assert kinds == [
            (1, True, False),
            (2, True, False),
            (2, False, True),
            (3, True, False),
            (4, True, False),
            (4, False, True),
        ]
        times = [line["time"] for line in ran.lines]
        assert times == sorted(times)
        counted = ran.result["samples"]["shapes"] / 4 / ran.lines[3]["samples_per_s"]
        assert 0 < counted <= times[3] - times[2] + 0.01  # the evaluation before it is not this step's time
        assert set(ran.lines[0]) >= {
            "step",
            "time",
            "loss",
            "grad_norm",
            "learning_rate",
            "samples_per_s",
            "tokens_per_s",
            "vision_tokens_per_s",
            "supervised_tokens_per_s",
            "data_wait",
            "useful_tflops",
            "mfu",
            "peak_memory_bytes",
            "padding",
            "micro_batches",
            "bad_samples",
            "pass",
        }
        assert not (ran.folder.predictions / "base.jsonl").exists()
        assert "base" not in ran.result["eval"]

    def test_says_what_share_of_the_stream_each_entry_was(self, run: Run) -> None:
        weights = ("dataset=shapes+digits", "dataset.shapes.weight=3", "dataset.digits.weight=1")
        ran = run(*SHAPES, *weights, "evaluation=none", "global_batch_size=8", "trainer.max_steps=4")
        assert ran.code == 0, ran.err
        assert "data     shapes (75.0%) + digits x 12 (25.0%); held out:" in ran.out
        assert ran.result["samples"] == {"shapes": 24, "digits": 8}
        assert [(line["share/shapes"], line["share/digits"]) for line in ran.lines] == [(0.75, 0.25)] * 4

    def test_tensorboard_gets_the_same_figures(self, run: Run) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        ran = run(*SHAPES, FEW_TOKENS, "trainer.max_steps=3", "evaluation.base=false")
        events = EventAccumulator(str(ran.folder.tb))
        events.Reload()
        losses = {event.step: event.value for event in events.Scalars("train/loss")}
        assert losses == pytest.approx({line["step"]: line["loss"] for line in ran.lines if "loss" in line})
        (score,) = [name for name in events.Tags()["scalars"] if name.endswith("exact_match")]
        assert events.Scalars(score)[0].value == pytest.approx(ran.result["eval"]["tuned"]["exact_match"])

    def test_logger_none_leaves_metrics_alone(self, run: Run) -> None:
        ran = run(*SHAPES, "logger=none", "evaluation=none")
        assert ran.code == 0
        assert not ran.folder.tb.exists() and not ran.folder.predictions.exists()
        assert len(ran.lines) == 2 and "eval" not in ran.result
        assert f"tuned model  {ran.folder.final}" in ran.out

    def test_is_the_same_twice(self, run: Run) -> None:
        """Adapters start at random and drop out: the seed alone decides."""
        words = (*SHAPES, "recipe=lora_llm", "recipe.llm.dropout=0.2", "evaluation=none", "optim.warmup=0")
        runs = [run(*words, f"seed={seed}", folder=name) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
        saved = [(ran.folder.final / "adapter_model.safetensors").read_bytes() for ran in runs]
        assert saved[0] == saved[1] != saved[2]
        losses = [[line["loss"] for line in ran.lines] for ran in runs]
        assert losses[0] == losses[1] != losses[2]


class TestRefusedBeforeWeights:
    @pytest.mark.usefixtures("no_weights")
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("optim.schedule=cosin",), "optim.schedule: there is no 'cosin'; known: "),
            (("logger.report_to=[tensorbord]",), "logger.report_to: tensorbord: tensorbord is not supported"),
            (("precision=fp16", "strategy.device=cpu"), "precision: fp16 needs a GPU"),
            (("model=qwen25vl", "model.path=/no/such/folder"), "model.path: there is no folder /no/such/folder"),
            (("batching.max_tokens=20",), "tokens, 4 of them vision tokens, exceed batching.max_tokens=20; raise it"),
        ],
    )
    def test_what_cannot_be_carried_out(self, run: Run, words: tuple[str, ...], message: str) -> None:
        ran = run(*SHAPES, *words)
        assert ran.code == 2
        assert "Traceback" not in ran.err
        assert f"error: {ran.result['reason'].splitlines()[0]}" in ran.err
        assert message in ran.result["reason"]
        assert (ran.result["state"], ran.result["exit_code"]) == ("failed", 2)
        assert not ran.folder.final.exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    @pytest.mark.usefixtures("no_weights")
    def test_a_gpu_that_is_not_there(self, run: Run) -> None:
        ran = run(*SHAPES, "strategy.device=cuda")
        assert (ran.code, ran.result["reason"]) == (
            2,
            "strategy.device: cuda was asked for, torch finds no CUDA device here",
        )

    def test_the_mended_command_may_take_the_folder(self, run: Run) -> None:
        """Nothing has been trained there, so there is nothing that it would not continue."""
        assert run(*SHAPES, "evaluation=none", "optim.schedule=cosin").code == 2
        mended = run(*SHAPES, "evaluation=none")
        assert mended.code == 0, mended.err
        assert mended.result["state"] == "done" and len(mended.lines) == 2

    @pytest.mark.usefixtures("no_weights")
    def test_every_sample_that_is_too_long_is_named(self, run: Run, mine: Path) -> None:
        ran = run("dataset=mine", "batching.max_tokens=40")
        named = {line.split()[1] for line in ran.err.splitlines() if line.startswith("error: mine/")}
        assert {"mine/two", "mine/turns", "mine/later"} <= named
        assert ran.code == 2


class TestBadSamples:
    def test_found_late_read_as_found_early(self, run: Run, mine: Path) -> None:
        (mine.parent / "0.png").write_bytes(b"no picture")
        ran = run("dataset=mine", "global_batch_size=6", "check_s=0")
        late = [line for line in ran.err.splitlines() if line.startswith("error: mine/")]
        with pytest.raises(DataError) as early:
            open_run_data({"mine": LLaVADataset(data_path=mine)}, {}, 0.0, 0).check(10, 0)
        assert ran.code == early.value.exit_code == 2
        assert sorted(late) == [f"error: {problem}" for problem in early.value.problems]
        assert [line.split()[1] for line in sorted(late)] == ["mine/one", "mine/system"]
        assert f"mine/one ({mine}:1, row 0): {mine.parent}/0.png is no picture in a known format" in late[0] + late[1]

    def test_that_are_allowed_are_counted_and_listed(self, run: Run, mine: Path) -> None:
        (mine.parent / "0.png").write_bytes(b"no picture")
        ran = run("dataset=mine", "global_batch_size=6", "check_s=0", "max_bad_samples=2")
        assert ran.code == 0, ran.err
        assert ran.result["train"]["bad_samples"] == 2
        listed = [line for line in ran.lines if "bad_sample" in line]
        assert sorted(line["bad_sample"] for line in listed) == ["mine/one", "mine/system"]
        assert all("0.png is no picture" in line["reason"] for line in listed)

    def test_held_out_are_errors_of_the_same_kind(self, run: Run, mine: Path) -> None:
        (mine.parent / "1.png").write_bytes(b"no picture")
        words = ("eval_dataset=mine", "check_s=0", "max_bad_samples=9", "dataset.shapes.train_samples=8")
        ran = run(*words, "trainer.num_workers=1")
        assert ran.code == 2
        assert ran.result["reason"].startswith(f"mine/two ({mine}:1, row 1): {mine.parent}/1.png is no picture")


class TestEndings:
    def test_a_loss_that_is_no_number(self, run: Run) -> None:
        ran = run(*SHAPES, "optim.lr=1e30", "optim.warmup=0", "evaluation=none", "trainer.max_steps=4")
        assert (ran.code, ran.result["state"], ran.result["exit_code"]) == (3, "failed", 3)
        assert ran.result["reason"].startswith("the loss of step 2 is nan; the weights were not updated.")
        assert "error: the loss of step 2 is nan" in ran.err and "Traceback" not in ran.err
        assert [line["step"] for line in ran.lines] == [1]
        assert not ran.folder.final.exists()

    def test_a_fault_of_the_program(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def train(self: Any) -> None:
            raise RuntimeError("the moon is full")

        monkeypatch.setattr(StepTrainer, "train", train)
        ran = run(*SHAPES, "evaluation=none")
        assert (ran.code, ran.result["state"]) == (1, "failed")
        assert ran.result["reason"] == "RuntimeError: the moon is full"
        assert "Traceback" in ran.err and "the moon is full" in ran.err

    @pytest.mark.parametrize(
        ("number", "code", "state"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "stopped")]
    )
    def test_a_signal_before_training(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int, state: str
    ) -> None:
        monkeypatch.setattr(base, "probe_loss", lambda *_: os.kill(os.getpid(), number))
        ran = run(*SHAPES)
        assert (ran.code, ran.result["state"], ran.result["exit_code"]) == (code, state, code)
        assert ran.result["reason"] == f"{number.name} received; stopped at once"

    def test_a_signal_in_the_last_step_is_not_forgotten(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Evaluation may take longer than the machine has: the saved model is enough."""
        asked: list[str] = []

        def answer(self: Evaluator, model: Any) -> Any:
            asked.append("answers")
            return []

        monkeypatch.setattr(Evaluator, "answer", answer)
        real = StepTrainer.report

        def report(self: StepTrainer, values: dict[str, float]) -> None:
            if self.state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            real(self, values)

        monkeypatch.setattr(StepTrainer, "report", report)
        ran = run(*SHAPES, "evaluation.base=false")
        assert (ran.code, ran.result["state"]) == (75, "preempted")
        assert asked == []

    def test_a_signal_in_training_waits_for_the_step(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        real = StepTrainer.report

        def report(self: StepTrainer, values: dict[str, float]) -> None:
            if self.state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            real(self, values)

        monkeypatch.setattr(StepTrainer, "report", report)
        ran = run(*SHAPES, "evaluation=none", "trainer.max_steps=5")
        assert ran.code == 75
        assert ran.result["reason"].startswith("SIGTERM received; stopped after step 1")
        assert [line["step"] for line in ran.lines if "loss" in line] == [1]


class TestClassify:
    def test_memory(self) -> None:
        found = worker.classify(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
        assert isinstance(found, OutOfMemoryError) and found.exit_code == 4
        message, advice, by_itself = found.problems
        assert message == "CUDA out of memory. Tried to allocate 2.00 GiB."
        assert advice.startswith("change, in order of effect: batching.max_tokens (lower), ")
        assert by_itself.startswith("on a single rank, trainer.oom_retries=3 lowers")

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_storage(self, number: int) -> None:
        found = worker.classify(OSError(number, os.strerror(number), "/runs/x/final/trained.safetensors"))
        assert isinstance(found, StorageError) and found.exit_code == 5
        expected = f"/runs/x/final/trained.safetensors cannot be written: {os.strerror(number)}"
        assert str(found) == expected

    @pytest.mark.parametrize(
        ("error", "code"), [(KeyboardInterrupt(), 130), (PreemptedError("left"), 75), (ConfigError("bad"), 2)]
    )
    def test_what_is_known(self, error: BaseException, code: int) -> None:
        found = worker.classify(error)
        assert found is not None and found.exit_code == code

    @pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EACCES, "denied"), MemoryError()])
    def test_a_fault_of_the_program(self, error: BaseException) -> None:
        assert worker.classify(error) is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=literally(f"{tmp_path} is not a run folder")):
        RunFolder.open(tmp_path)
