"""Which run may be continued, and what is said where it may not."""

import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import compose, literally
from vlmft.data.run_data import open_run_data
from vlmft.errors import ConfigError, StorageError
from vlmft.resume import fingerprint, open_or_continue, refuse_differences
from vlmft.run_folder import RunFolder
from vlmft.training import commit

Open = Callable[..., tuple[RunFolder, bool]]


@pytest.fixture
def opened(tmp_path: Path, mine: Path) -> Open:
    """Open the folder of `python -m vlmft.train dataset=mine *words` as its driver does, and train a step in it."""

    def open_(*words: str, ranks: int = 1, folder: str = "run") -> tuple[RunFolder, bool]:
        compose.cache_clear()
        config = compose("dataset=mine", *words)
        data = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed)
        found = fingerprint(config, data, ranks)
        opened_folder, unfinished = open_or_continue(config, " ".join(words), tmp_path / folder, found)
        if unfinished and not opened_folder.metrics.exists():
            opened_folder.metrics.write_text('{"step": 1}\n')
        return opened_folder, unfinished

    return open_


def refused(opened: Open, *words: str, **options: Any) -> list[str]:
    """The differences that are listed."""
    with pytest.raises(ConfigError) as caught:
        opened(*words, **options)
    first, *differences, last = caught.value.problems
    assert first.endswith("run: this is not the run that began there, so it cannot be continued exactly:")
    keys = ",".join(line.strip().partition(":")[0] for line in differences)
    assert last == (f"  start a new one with another run.dir, or continue it all the same with 'resume_allow=[{keys}]'")
    return [line.strip() for line in differences]


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_run_that_never_made_a_step_may_begin_with_other_words(opened: Open) -> None:
    folder, _ = opened("seed=0")
    folder.metrics.unlink()
    folder, unfinished = opened("seed=7")
    assert unfinished
    assert (folder.config.read_text(), folder.read_fingerprint()["seed"]) == ("seed=7", 7)


class TestTheSameRun:
    def test_begins_and_goes_on(self, opened: Open) -> None:
        folder, unfinished = opened()
        assert unfinished and folder.config.exists()
        assert folder.read_fingerprint()["optim.lr"] == compose().optim.lr
        assert opened()[1]

    def test_is_the_same_however_it_is_shown_and_saved(self, opened: Open) -> None:
        opened()
        changed = (
            "run.name=other",
            "logger=none",
            "check_s=1",
            "max_bad_samples=3",
            "strategy.shutdown_timeout_s=9",
            "trainer.num_workers=0",
            "trainer.log_every=7",
            "trainer.save_every=null",
            "trainer.keep=9",
            "resume_allow=[seed]",
        )
        folder, unfinished = opened(*changed)
        assert unfinished
        assert folder.config.read_text() == " ".join(changed)  # what the ranks are to read

    def test_killed_before_its_config_was_written_begins_anew(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(*args: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "create", killed)
            with pytest.raises(KeyboardInterrupt):
                opened("seed=1")
        folder, unfinished = opened("seed=2")
        assert unfinished and folder.read_fingerprint()["seed"] == 2

    def test_without_a_fingerprint_cannot_be_told(self, opened: Open) -> None:
        opened()[0].fingerprint.unlink()
        with pytest.raises(StorageError, match=r"fingerprint\.json: cannot be read .*; choose another run\.dir$"):
            opened()


class TestAnotherRun:
    def test_is_refused_key_by_key(self, opened: Open) -> None:
        opened()
        assert refused(opened, "optim.lr=5e-5", "seed=7", "optim=adafactor", "global_batch_size=4") == [
            "global_batch_size: was 16, is 4",
            "optim._target_: was 'vlmft.training.optim.AdamW', is 'vlmft.training.optim.Adafactor'",
            "optim.betas: was [0.9, 0.999], is 'nothing'",
            "optim.eps: was 1e-08, is 'nothing'",
            f"optim.lr: was {compose().optim.lr}, is 5e-05",
            "optim.weight_decay: was 0.01, is 0.0",
            "seed: was 0, is 7",
        ]

    def test_with_another_mine(self, opened: Open, mine: Path) -> None:
        opened()
        mine.write_text(json.dumps(json.loads(mine.read_text())[:-1]))
        differences = refused(opened)
        assert differences and all(line.startswith("data.mine.") for line in differences)
        assert "data.mine.rows: was 6, is 5" in differences

    def test_with_another_library(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        opened()
        real = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "torch" else real(name))
        assert refused(opened) == [f"library.torch: was {real('torch')!r}, is '9.9'"]
        assert opened("resume_allow=[library]")[1]

    def test_with_another_number_of_ranks(self, opened: Open) -> None:
        opened()
        assert refused(opened, ranks=2) == ["ranks: was 1, is 2"]

    def test_a_refusal_changes_nothing(self, opened: Open) -> None:
        folder = opened()[0].path
        before = times(folder)
        refused(opened, "seed=7")
        assert times(folder) == before


class TestResumeAllow:
    def test_lets_through_by_name_and_says_so(self, opened: Open) -> None:
        opened()
        folder, unfinished = opened("seed=7", "resume_allow=[seed]")
        assert unfinished
        assert folder.read_result()["allowed_differences"] == ["seed: was 0, is 7"]
        assert folder.read_fingerprint()["seed"] == 7
        assert refused(opened) == ["seed: was 7, is 0"]  # from here on it is that run

    def test_lets_all_below_through(self, opened: Open) -> None:
        opened()
        assert opened("optim.lr=5e-5", "optim.eps=1e-6", "resume_allow=[optim]")[1]

    def test_lets_nothing_else_through(self, opened: Open) -> None:
        opened()
        lines = refused(opened, "optim.lr=5e-5", "seed=7", "resume_allow=[optim.l,optim.lr]")
        assert lines == ["seed: was 0, is 7"]

    def test_a_finished_run_goes_on_for_longer(self, opened: Open) -> None:
        folder, _ = opened("trainer.max_steps=10")
        folder.finish(0, "done")
        assert opened("trainer.max_steps=20", "resume_allow=[trainer.max_steps]")[1]


def test_a_finished_run_is_left_alone(opened: Open) -> None:
    folder, _ = opened()
    folder.finish(0, "done")
    before = times(folder.path)
    assert opened()[1] is False
    assert times(folder.path) == before


@pytest.mark.parametrize("code", [1, 3, 75, 130])
def test_a_run_that_ended_otherwise_goes_on(opened: Open, code: int) -> None:
    folder, _ = opened()
    folder.finish(code, "why")
    assert opened()[1] is True


class TestResumeNone:
    def test_begins(self, opened: Open) -> None:
        assert opened("resume=none")[1]

    def test_refuses_a_run(self, opened: Open) -> None:
        folder = opened()[0].path
        expected = f"run.dir={folder} holds a run already; choose another run.dir, or continue it (resume=auto)"
        with pytest.raises(ConfigError, match=f"^{literally(expected)}$"):
            opened("resume=none")


def test_other_held_out_samples_are_another_run(opened: Open, mine: Path) -> None:
    held_out = mine.with_name("held_out.json")
    registry = mine.parents[1] / "registry" / "datasets" / "mine.yaml"
    registry.write_text(
        registry.read_text() + registry.read_text().replace("mine", "judge").replace("dataset.json", held_out.name)
    )
    rows = [row | {"id": f"held-{row['id']}", "image": []} for row in json.loads(mine.read_text())][3:4]
    held_out.write_text(json.dumps(rows))
    opened("eval_dataset=judge")
    held_out.write_text(json.dumps(rows) + " ")
    (line,) = refused(opened, "eval_dataset=judge")
    assert line.startswith("held_out.judge.sha256: was '")


class TestResumePath:
    @pytest.fixture
    def origin(self, opened: Open) -> Path:
        """A checkpoint of another run."""
        folder, _ = opened(folder="origin")
        checkpoint = folder.checkpoint(5)
        (commit.begin(checkpoint) / "weights").write_bytes(b"weights")
        commit.commit(checkpoint, 5, {"fingerprint": folder.read_fingerprint()})
        return checkpoint

    def test_begins_a_new_run_there(self, opened: Open, origin: Path) -> None:
        assert opened(f"resume={origin}")[1]
        assert opened(f"resume={origin}")[1]  # the same command goes on

    def test_of_another_run_is_refused_before_a_folder_is_made(
        self, opened: Open, origin: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match="^" + literally(f"{origin}: this is not the run that began there")):
            opened(f"resume={origin}", "seed=7")
        assert not (tmp_path / "run").exists()
        assert opened(f"resume={origin}", "seed=7", "resume_allow=[seed]")[1]

    def test_a_damaged_one_is_refused(self, opened: Open, origin: Path) -> None:
        os.truncate(origin / "weights", 1)
        with pytest.raises(StorageError, match="weights: has 1 bytes, 7 were written$"):
            opened(f"resume={origin}")

    def test_a_wrong_path(self, opened: Open, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="nowhere: there is no such checkpoint$"):
            opened(f"resume={tmp_path / 'nowhere'}")

    def test_ones_own_is_refused(self, opened: Open, origin: Path) -> None:
        expected = f"resume={origin} is a checkpoint of this run, which goes on from its newest by itself"
        with pytest.raises(ConfigError, match=f"^{literally(expected)}"):
            opened(f"resume={origin}", folder="origin")


def test_differences_are_compared_by_value() -> None:
    assert refuse_differences({"a": [1, 2]}, {"a": [1, 2]}, (), "x") == []
    with pytest.raises(ConfigError, match="a: was 1, is 'nothing'"):
        refuse_differences({"a": 1}, {}, (), "x")
    assert refuse_differences({"ab.c": 1, "a.c": 1}, {"ab.c": 1, "a.c": 2}, ["a"], "x") == ["a.c: was 1, is 2"]
