"""What the driver decides before it starts a rank."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import compose
from vlmft import launch, train, worker
from vlmft.config.app import Composition
from vlmft.errors import ConfigError
from vlmft.run_folder import RunFolder
from vlmft.train import TrainConfig, number_of_ranks, refuse_packing, thread_share
from vlmft.training import Strategy, TrainerSpec


def strategy(ranks: Any = "auto", device: Any = "auto") -> Strategy:
    return Strategy(ranks=ranks, device=device, shutdown_timeout_s=5)


class TestNumberOfRanks:
    @pytest.mark.parametrize(
        ("asked", "device", "gpus", "expected"),
        [("auto", "auto", 0, 1), ("auto", "auto", 4, 4), ("auto", "cpu", 4, 1), (2, "auto", 4, 2), (3, "cpu", 0, 3)],
    )
    def test_is_one_a_gpu_or_what_was_asked(
        self, asked: Any, device: str, gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(launch, "count_devices", lambda: gpus)
        assert number_of_ranks(strategy(asked, device)) == expected


class TestThreads:
    def test_the_users_word_stands(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        assert thread_share(2, 1) == {}

    @pytest.mark.parametrize(("cores", "ranks", "workers", "share"), [(16, 2, 1, 7), (2, 1, 1, 1), (2, 4, 2, 1)])
    def test_ranks_share_the_cores_with_their_loaders(
        self, cores: int, ranks: int, workers: int, share: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        assert thread_share(ranks, workers) == {"OMP_NUM_THREADS": str(share)}


class TestJoining:
    """The ranks are another launcher's: RANK and WORLD_SIZE are set."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        ran: list[Path] = []
        monkeypatch.setattr(worker, "run_rank", lambda folder: ran.append(folder.path) or 0)
        monkeypatch.setenv("WORLD_SIZE", "2")
        return ran

    def composition(self, folder: Path, given: bool = True) -> Composition:
        return Composition("seed: 0\n", (), folder, {}, None, given)

    @property
    def config(self) -> TrainConfig:
        return compose("dataset.shapes.train_samples=4", "dataset.shapes.eval_samples=2")

    def test_rank_0_makes_the_folder(self, tmp_path: Path, calls: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "0")
        assert train.train(self.config, self.composition(tmp_path / "run")) == 0
        assert calls == [tmp_path / "run"]
        assert RunFolder.open(tmp_path / "run").read_result()["state"] == "running"

    def test_the_others_wait_for_it(self, tmp_path: Path, calls: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        RunFolder.create(tmp_path / "run", "seed: 0\n").start()
        monkeypatch.setenv("RANK", "1")
        assert train.train(self.config, self.composition(tmp_path / "run")) == 0
        assert calls == [tmp_path / "run"]

    @pytest.mark.parametrize("rank", ["0", "1"])
    def test_without_a_run_dir_there_is_no_common_folder(
        self, tmp_path: Path, calls: list[Path], rank: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ConfigError, match="^run.dir: must be given where another launcher starts the ranks; all"):
            train.train(self.config, self.composition(tmp_path / "run", given=False))
        assert calls == [] and not (tmp_path / "run").exists()


class TestPacking:
    """What cannot pack is refused by the driver, which has read no weight."""

    def refused(self, config: TrainConfig, tmp_path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            train.train(config, Composition("seed: 0\n", (), tmp_path / "run", {}, None, True))
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    def test_a_model(self, tmp_path: Path) -> None:
        said = self.refused(compose("batching=packed", "model=gemma3", "model.path=/weights/gemma"), tmp_path)
        assert said.startswith("batching=packed: Gemma3 takes no packs: its pictures' tokens see each other by masks")

    def test_a_trainer(self, tmp_path: Path) -> None:
        config = compose("batching=packed")

        class Ranking(TrainerSpec):
            """A trainer that says nothing of packs."""

        config = config.model_copy(update={"trainer": Ranking(**dict(config.trainer))})
        said = self.refused(config, tmp_path)
        assert said == (
            "batching=packed: the loss of trainer=ranking takes samples in rows of their own; take batching=grouped"
        )

    @pytest.mark.parametrize("batching", ["grouped", "padded"])
    def test_rows_are_for_all(self, batching: str) -> None:
        refuse_packing(compose(f"batching={batching}", "model=gemma3", "model.path=/weights/gemma"))

    def test_a_family_that_packs(self) -> None:
        refuse_packing(compose("batching=packed", "model=qwen25vl", "model.path=/weights/qwen"))
