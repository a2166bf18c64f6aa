"""N steps are k steps and a resume, to the bit: weights, optimiser, losses, and every line of figures."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, set_seed

from tests.models.families import FAMILIES, Family
from tests.support import CLOCKED, literally
from tests.training.conftest import Bench
from vlmft.errors import PreemptedError, StorageError
from vlmft.training import commit
from vlmft.training.checkpoint import Best, Checkpoints
from vlmft.training.stop import StopRequest

MakeBench = Callable[..., Bench]

# Six samples in passes of three steps.
SMALL = ("global_batch_size=2", "trainer.num_workers=0", "trainer.max_steps=6", "optim.warmup=0.34")


class KilledError(Exception):
    """Stands for SIGKILL: nothing in the product knows it."""


class At(TrainerCallback):
    """Does something once a step has ended and its figures are logged."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action()


def kill() -> None:
    raise KilledError


@dataclass
class Life:
    """One process of a run: what it trained and said."""

    bench: Bench
    stop: StopRequest

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [{key: value for key, value in line.items() if key not in CLOCKED} for line in self.bench.lines]

    @property
    def optimizer(self) -> Any:
        return self.bench.trainer.optimizer.state_dict()


@pytest.fixture
def begin(bench: MakeBench, tmp_path: Path) -> Callable[..., Life]:
    """Make a trainer that saves every `every` steps, and begins at the newest checkpoint in `folder`."""

    def make(*words: str, every: int | None = None, keep: int = 2, folder: str = "checkpoints") -> Life:
        start, _ = commit.newest(tmp_path / folder)
        set_seed(0)
        stop = StopRequest(deferred=True)
        made = bench(*SMALL, *words, stop=stop)
        if start:
            made.trainer.parts.loader.start = start.step
            set_seed(12345)  # what a new process draws is not what the old one would have drawn
        made.trainer.add_callback(Checkpoints(made.trainer, tmp_path / folder, every, keep, {}, start))
        return Life(made, stop)

    return make


Begin = Callable[..., Life]


def train(life: Life) -> Life:
    life.bench.trainer.train()
    return life


def terminated_at(life: Life, step: int) -> Life:
    """Train until SIGTERM, which comes during step `step` + 1 and is answered before it."""

    def ask() -> None:
        life.stop.reason = "SIGTERM received"

    life.bench.trainer.add_callback(At(step, ask))
    with pytest.raises(PreemptedError, match=f"^SIGTERM received; stopped after step {step}$"):
        life.bench.trainer.train()
    return life


def killed_at(life: Life, step: int) -> Life:
    life.bench.trainer.add_callback(At(step, kill))
    with pytest.raises(KilledError):
        life.bench.trainer.train()
    return life


def assert_equal(one: Any, other: Any, where: str = "state") -> None:
    """Equal to the bit, at every depth."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}.{number}")
    else:
        assert one == other, where


def assert_same_run(whole: Life, *lives: Life) -> None:
    """The lives, one after the other, are the undisturbed run; a later one says again what an earlier said too much."""
    assert lives[-1].bench.weights() == whole.bench.weights()
    assert_equal(lives[-1].optimizer, whole.optimizer)
    lines: dict[int, dict[str, Any]] = {}
    for life in lives:
        lines |= {line["step"]: line for line in life.lines}
    assert list(lines.values()) == whole.lines
    assert whole.lines[-1]["step"] == whole.bench.trainer.state.global_step


DROPOUT = ("recipe=lora_llm", "recipe.llm.dropout=0.1")


class TestResume:
    @pytest.mark.parametrize(
        "words",
        [
            ("recipe=fft", "optim=adamw"),
            (*DROPOUT, "optim=adamw"),
            ("recipe=fft", "optim=muon"),
            (*DROPOUT, "optim=adamw_8bit"),
            (*DROPOUT, "optim=adafactor"),
            pytest.param(("recipe=fft", "optim=adamw_8bit"), marks=pytest.mark.slow),
            pytest.param(("recipe=fft", "optim=adafactor"), marks=pytest.mark.slow),
        ],
        ids=lambda words: "-".join(word.partition("=")[2] for word in words),
    )
    def test_after_a_signal(self, begin: Begin, words: tuple[str, ...]) -> None:
        whole = train(begin(*words, folder="undisturbed"))
        stopped = terminated_at(begin(*words), 4)
        assert_same_run(whole, stopped, train(begin(*words)))

    @pytest.mark.slow
    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_of_every_family(self, begin: Begin, data_file: Path, family: Family) -> None:
        rows = json.loads(data_file.read_text())
        for row in rows:  # without the system turn, which some templates refuse beside a picture
            row["conversations"] = [turn for turn in row["conversations"] if turn["from"] != "system"]
        if family.prefix:  # those of one question about pictures
            rows = [row | {"id": f"{row['id']}-{i}"} for i in range(3) for row in rows[:2]]
        data_file.write_text(json.dumps(rows))
        words = (f"model=tiny_{family.name}", "recipe=fft_vt_lora_llm", "batching.max_tokens=4096")
        whole = train(begin(*words, folder="undisturbed"))
        stopped = terminated_at(begin(*words), 4)
        assert_same_run(whole, stopped, train(begin(*words)))

    def test_after_a_kill(self, begin: Begin) -> None:
        """Saved at 2 and 4, killed after 5: step 5 is trained once more, and its figures are the same."""
        whole = train(begin(*DROPOUT, folder="undisturbed"))
        first = killed_at(begin(*DROPOUT, every=2), 5)
        second = begin(*DROPOUT, every=2)
        assert second.bench.trainer.parts.loader.start == 4
        train(second)
        assert [line["step"] for line in second.lines] == [5, 6]
        assert first.lines[4] == second.lines[0]
        assert_same_run(whole, first, second)

    @pytest.mark.parametrize("every", [1, 2])
    def test_figures_are_logged_before_the_step_is_saved(self, begin: Begin, every: int) -> None:
        """Killed right after a checkpoint: the line of its step is there, and is in no later line."""
        whole = train(begin("trainer.log_every=2", folder="undisturbed"))
        first = killed_at(begin("trainer.log_every=2", every=every), 2)
        assert [line["step"] for line in first.lines] == [2]
        assert_same_run(whole, first, train(begin("trainer.log_every=2")))

    @pytest.mark.parametrize("step", [2, 4, 5])
    def test_between_two_lines_of_figures(self, begin: Begin, step: int) -> None:
        """A line is the mean since the last one; what was counted before the stop counts."""
        whole = train(begin("trainer.log_every=3", folder="undisturbed"))
        assert [line["step"] for line in whole.lines] == [3, 6]
        stopped = terminated_at(begin("trainer.log_every=3"), step)
        assert_same_run(whole, stopped, train(begin("trainer.log_every=3")))

    def test_at_the_end_of_a_pass(self, begin: Begin) -> None:
        whole = train(begin(folder="undisturbed"))
        stopped = terminated_at(begin(), 3)
        assert stopped.lines[-1]["pass"] == 1
        assert_same_run(whole, stopped, train(begin()))

    @pytest.mark.parametrize("batching", ["grouped", "packed"])
    def test_with_several_micro_batches_a_step(self, begin: Begin, batching: str) -> None:
        words = (*DROPOUT, "global_batch_size=6", f"batching={batching}", "batching.max_tokens=110")
        words += ("trainer.max_steps=4",)
        whole = train(begin(*words, folder="undisturbed"))
        assert min(line["micro_batches"] for line in whole.lines) > 1
        stopped = terminated_at(begin(*words), 2)
        assert_same_run(whole, stopped, train(begin(*words)))

    def test_with_loader_processes_or_without(self, begin: Begin) -> None:
        """Who encodes is no part of a run's numbers: begun with two, gone on with none, and with two again."""
        whole = train(begin(*DROPOUT, folder="undisturbed"))
        two = (*DROPOUT, "trainer.num_workers=2")
        first, second = terminated_at(begin(*two), 2), terminated_at(begin(*DROPOUT), 4)
        assert_same_run(whole, first, second, train(begin(*two)))

    @pytest.mark.slow
    def test_stopped_again_and_again(self, begin: Begin) -> None:
        whole = train(begin(*DROPOUT, folder="undisturbed"))
        lives = [terminated_at(begin(*DROPOUT, keep=1), step) for step in range(1, 6)]
        assert_same_run(whole, *lives, train(begin(*DROPOUT)))

    @pytest.mark.slow
    @pytest.mark.parametrize("recipe", ["fft_llm", "projector", "lora_vt_llm", "ln_vt_lora_llm"])
    def test_other_recipes(self, begin: Begin, recipe: str) -> None:
        words = (f"recipe={recipe}", "precision=bf16")
        whole = train(begin(*words, folder="undisturbed"))
        stopped = terminated_at(begin(*words), 4)
        assert_same_run(whole, stopped, train(begin(*words)))

    def test_with_a_loss_scaler(self, begin: Begin) -> None:
        """fp16's. torch's own scaler works on the CPU as well, where nothing else asks for it."""

        def scaled(folder: str = "checkpoints") -> tuple[Life, torch.amp.GradScaler]:
            life = begin(folder=folder)
            scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
            life.bench.trainer.accelerator.scaler = scaler
            return life, scaler

        whole, expected = scaled("whole")
        train(whole)
        first, _ = scaled()
        terminated_at(first, 3)
        second, scaler = scaled()
        assert_same_run(whole, first, train(second))
        assert scaler.state_dict() == expected.state_dict()
        assert scaler.get_scale() == 64 * 2**3  # grown after 2, 4 and 6 steps: not from the start again

    def test_finer_micro_batches_are_remembered(self, begin: Begin) -> None:
        first = begin()
        first.bench.trainer.oom_retries = 1
        terminated_at(first, 2)
        assert train(begin()).bench.trainer.oom_retries == 1

    def test_left_out_samples_are_remembered(self, begin: Begin, data_file: Path) -> None:
        (data_file.parent / "0.png").write_bytes(b"no picture")  # of the samples `one` and `system`
        words = ("max_bad_samples=2", "global_batch_size=3")
        whole = train(begin(*words, folder="undisturbed"))
        stopped = terminated_at(begin(*words), 3)  # all six are met by then
        resumed = train(begin(*words))
        assert [line["bad_samples"] for line in resumed.lines] == [2, 2, 2]  # nothing is listed twice
        assert stopped.lines + resumed.lines == whole.lines
        assert resumed.bench.weights() == whole.bench.weights()


class TestDamaged:
    def test_the_older_is_taken_and_the_end_is_the_same(self, begin: Begin, tmp_path: Path) -> None:
        whole = train(begin(folder="undisturbed"))
        first = killed_at(begin(every=2), 5)
        weights = tmp_path / "checkpoints/step-00000004/trained.safetensors"
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
        second = begin(every=2, keep=1)
        assert second.bench.trainer.parts.loader.start == 2
        assert_same_run(whole, first, train(second))
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
        assert commit.verify(weights.parent).step == 4

    @pytest.mark.parametrize("file", ["manifest.json", "rank-00000.pt", "state.pt", "trained.safetensors"])
    def test_each_file_is_needed(self, begin: Begin, tmp_path: Path, file: str) -> None:
        terminated_at(begin(), 2)
        folder = tmp_path / "checkpoints/step-00000002"
        assert sorted(os.listdir(folder)) == ["manifest.json", "rank-00000.pt", "state.pt", "trained.safetensors"]
        (folder / file).unlink()
        found, rejected = commit.newest(tmp_path / "checkpoints")
        assert found is None and file in rejected[0]


class TestAnotherRunsCheckpoint:
    """What fingerprints keep out, unless `resume_allow` lets it through."""

    def test_of_other_trained_weights(self, begin: Begin) -> None:
        terminated_at(begin("recipe=fft"), 2)
        expected = (
            r"trained\.safetensors: does not fit this run's model: \d+ trained weights missing .*lora_A.*unexpected"
        )
        with pytest.raises(StorageError, match=expected):
            train(begin("recipe=lora_llm"))

    def test_of_another_shape(self, begin: Begin) -> None:
        terminated_at(begin("recipe=lora_llm"), 2)
        expected = r"does not fit this run's model: .*lora_[AB].* is \[.*\], expected \["
        with pytest.raises(StorageError, match=expected):
            train(begin("recipe=lora_llm", "recipe.llm.rank=3"))

    def test_of_another_optimiser(self, begin: Begin, tmp_path: Path) -> None:
        terminated_at(begin("optim=adamw"), 2)
        file = tmp_path / "checkpoints/step-00000002/state.pt"
        expected = f"{file}: its optimiser does not fit this run's; begin a new run instead"
        with pytest.raises(StorageError, match=f"^{literally(expected)}$"):
            train(begin("optim=adafactor"))

    def test_with_another_rate(self, begin: Begin) -> None:
        """A rate let through is used: torch's own restore would put the old one back, in silence."""
        words = ("optim.lr=1e-3", "optim.schedule=linear", "optim.weight_decay=0.01")
        stopped = terminated_at(begin(*words), 2)
        changed = train(begin("optim.lr=5e-4", *words[1:2], "optim.weight_decay=0.5"))
        whole = train(begin("optim.lr=5e-4", *words[1:2], folder="undisturbed"))
        rates = [line["learning_rate"] for line in changed.lines]
        assert rates == [line["learning_rate"] for line in whole.lines][2:]
        assert stopped.lines[-1]["learning_rate"] == 2 * whole.lines[1]["learning_rate"] > 0
        assert {group["weight_decay"] for group in changed.optimizer["param_groups"]} == {0.5, 0.0}

    def test_for_more_steps(self, begin: Begin) -> None:
        terminated_at(begin(), 4)
        longer = train(begin("trainer.max_steps=8"))
        assert [line["step"] for line in longer.lines] == [5, 6, 7, 8]

    def test_of_more_ranks(self, begin: Begin, tmp_path: Path) -> None:
        """Rank 0 of one goes on from rank 0 of two; here the file is missing as rank 1's is where there were fewer."""
        from vlmft.training import checkpoint

        terminated_at(begin(), 2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "rank", lambda: 1)
            life = begin()
            life.bench.trainer.add_callback(At(2, kill))
            with pytest.raises(KilledError):
                life.bench.trainer.train()
        assert life.bench.trainer.state.global_step == 2


class TestFiles:
    def test_hold_what_trains_and_no_pickle_runs(self, begin: Begin, tmp_path: Path) -> None:
        """Adapters are small: the frozen weights are in no checkpoint."""
        terminated_at(begin("recipe=lora_llm"), 2)
        terminated_at(begin("recipe=fft", folder="full"), 2)
        sizes = [
            (tmp_path / name / "step-00000002/trained.safetensors").stat().st_size for name in ("checkpoints", "full")
        ]
        assert sizes[0] < sizes[1] / 2
        for file in ("state.pt", "rank-00000.pt"):
            torch.load(tmp_path / "checkpoints/step-00000002" / file, weights_only=True)

    def test_a_pickle_in_disguise_is_not_executed(self, begin: Begin, tmp_path: Path) -> None:
        """Somebody who can write the folder can write the manifest as well: the hashes are no defence here."""
        terminated_at(begin(), 2)
        folder, canary = tmp_path / "checkpoints/step-00000002", tmp_path / "canary"

        class Canary:
            def __reduce__(self) -> Any:
                return (canary.touch, ())

        shutil.copytree(folder, commit.begin(folder), dirs_exist_ok=True)
        torch.save({"optimizer": Canary()}, commit.partial_folder(folder) / "state.pt")
        (commit.partial_folder(folder) / "manifest.json").unlink()
        commit.commit(folder, 2, {})
        with pytest.raises(StorageError, match=r"state\.pt: is no state that vlmft wrote: "):
            train(begin())
        assert not canary.exists()

    def test_nothing_is_saved_twice(self, begin: Begin, tmp_path: Path) -> None:
        """The signal comes at a step that was saved already."""
        terminated_at(begin(every=2), 2)
        before = (tmp_path / "checkpoints/step-00000002/manifest.json").stat().st_mtime_ns
        terminated_at(begin(every=2), 2)
        assert (tmp_path / "checkpoints/step-00000002/manifest.json").stat().st_mtime_ns == before

    def test_every_and_keep(self, begin: Begin, tmp_path: Path) -> None:
        train(begin(every=1, keep=3))
        found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert found == ["step-00000003", "step-00000004", "step-00000005"]

    def test_none_where_none_is_asked_for(self, begin: Begin, tmp_path: Path) -> None:
        train(begin())
        assert not (tmp_path / "checkpoints").exists()


def scored(life: Life, scores: dict[int, float]) -> Life:
    """Score the model after some steps, as an evaluation does."""
    trainer = life.bench.trainer

    class Ask(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_evaluate = state.global_step in scores

    def judge() -> None:
        assert trainer.checkpoints is not None
        trainer.checkpoints.consider("exact_match", scores[trainer.state.global_step])

    trainer.judge = judge
    trainer.add_callback(Ask())
    return life


def checkpoints(life: Life) -> Checkpoints:
    found = life.bench.trainer.checkpoints
    assert isinstance(found, Checkpoints)
    return found


SCORES = {1: 0.2, 2: 0.6, 3: 0.5, 4: 0.6, 5: 0.1, 6: 0.4}  # of two that are equal, the earlier is the best


class TestBest:
    def kept(self, tmp_path: Path) -> list[str]:
        return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    def test_its_weights_come_back_to_the_bit(self, begin: Begin, tmp_path: Path) -> None:
        life = scored(begin(), SCORES)
        weights: dict[int, bytes] = {}
        for step in (1, 2):
            life.bench.trainer.add_callback(At(step, lambda step=step: weights.update({step: life.bench.weights()})))  # type: ignore[misc]
        train(life)
        assert self.kept(tmp_path) == ["step-00000001", "step-00000002"]
        assert life.bench.weights() not in weights.values()
        assert checkpoints(life).restore_best() is None
        assert checkpoints(life).best == Best("exact_match", 2, 0.6)
        assert life.bench.weights() == weights[2]

    def test_stays_while_newer_ones_come_and_go(self, begin: Begin, tmp_path: Path) -> None:
        train(scored(begin(every=1, keep=1), SCORES))
        assert self.kept(tmp_path) == ["step-00000002", "step-00000005"]

    def test_of_the_last_step_is_kept_where_it_is_the_best(self, begin: Begin, tmp_path: Path) -> None:
        life = train(scored(begin(), SCORES | {6: 0.9}))
        after = life.bench.weights()
        assert self.kept(tmp_path) == ["step-00000002", "step-00000006"]
        assert checkpoints(life).restore_best() is None
        assert life.bench.weights() == after

    @pytest.mark.parametrize("step", [1, 2, 3, 5])
    def test_a_resumed_run_ends_with_the_same(self, begin: Begin, step: int) -> None:
        whole = train(scored(begin(*DROPOUT, folder="whole"), SCORES))
        first = terminated_at(scored(begin(*DROPOUT), SCORES), step)
        second = train(scored(begin(*DROPOUT), SCORES))
        assert_same_run(whole, first, second)
        for life in (whole, second):
            assert checkpoints(life).restore_best() is None
        assert second.bench.weights() == whole.bench.weights()
        assert checkpoints(second).best == checkpoints(whole).best == Best("exact_match", 2, 0.6)

    def test_a_damaged_one_is_not_taken(self, begin: Begin, tmp_path: Path) -> None:
        life = train(scored(begin(), SCORES))
        last = life.bench.weights()
        file = tmp_path / "checkpoints" / "step-00000002" / "trained.safetensors"
        os.truncate(file, 100)
        reason = checkpoints(life).restore_best()
        assert reason is not None and reason.startswith(f"{file}: has 100 bytes, ")
        assert life.bench.weights() == last

    def test_by_another_metric_begins_anew(self, begin: Begin) -> None:
        life = begin()
        checkpoints(life).best = Best("f1", 3, 0.99)
        train(scored(life, SCORES))
        assert checkpoints(life).best == Best("exact_match", 2, 0.6)

    def test_of_another_run_is_not_this_ones(self, begin: Begin, tmp_path: Path) -> None:
        train(scored(begin(folder="other"), SCORES))
        start, _ = commit.newest(tmp_path / "other")
        life = begin()
        checkpoints(life).start = start
        train(life)
        assert checkpoints(life).best is None
