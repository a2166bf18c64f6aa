import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import encoding
from vlmft.data import LLaVADataset
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.data.problems import SampleError
from vlmft.encoding.encoder import Encoder
from vlmft.encoding.loading import EncodedGroup
from vlmft.errors import ConfigError, VlmftError
from vlmft.training.step_plan import StepPlan
from vlmft.training.steps import StepDataset, StepLoader


def dataset(path: Path, plan: StepPlan, rank: int = 0, seed: int = 0, max_tokens: int | None = None) -> StepDataset:
    source = LLaVADataset(data_path=path).open("mine")
    mixture = Mixture([MixturePart(source, 1, range(len(source)))], seed)
    return StepDataset(mixture, encoding(max_tokens)[0], plan, rank)


def ids(step: EncodedGroup | VlmftError) -> list[str]:
    assert isinstance(step, EncodedGroup), step
    return [sample.id for sample in step.samples]


class TestDataset:
    def test_the_last_step_is_filled_from_the_next_pass(self, data_file: Path) -> None:
        steps = dataset(data_file, StepPlan.derive(6, 4, 1, None, 1))
        stream = [sample_id for step in range(2) for sample_id in ids(steps[step])]
        assert len(steps) == 2
        assert len(set(stream[:6])) == 6
        order = Mixture(steps.mixture.parts, 0)
        assert stream == [order.sample_id(order.at(position)) for position in range(8)]

    def test_the_ranks_share_what_one_rank_sees_alone(self, data_file: Path) -> None:
        alone = dataset(data_file, StepPlan.derive(6, 4, 1, None, 1))
        first, second = (dataset(data_file, StepPlan.derive(6, 4, 1, None, 2), rank) for rank in (0, 1))
        for step in range(2):
            shares = [sample_id for pair in zip(ids(first[step]), ids(second[step]), strict=True) for sample_id in pair]
            assert shares == ids(alone[step])

    def test_is_the_same_in_every_process_and_another_with_another_seed(self, data_file: Path) -> None:
        plan = StepPlan.derive(6, 6, 1, 4, 1)
        inside, outside = (StepLoader(dataset(data_file, plan), workers) for workers in (0, 1))
        for here, there in zip(inside, outside, strict=True):
            assert ids(here) == ids(there)
            for one, other in zip(here.samples, there.samples, strict=True):
                assert torch.equal(one.input_ids, other.input_ids)
                assert torch.equal(one.supervised, other.supervised)
                for left, right in zip(one.media, other.media, strict=True):
                    assert torch.equal(left["patches"], right["patches"])
        orders = {tuple(ids(dataset(data_file, plan, seed=seed)[0])) for seed in range(5)}
        assert len(orders) > 1


class TestBadSamples:
    def test_are_missing_from_their_step_and_named(self, data_file: Path) -> None:
        (data_file.parent / "0.png").write_bytes(b"no picture")  # of the samples `one` and `system`
        step = dataset(data_file, StepPlan.derive(6, 6, 1, 1, 1))[0]
        assert isinstance(step, EncodedGroup)
        assert sorted(ids(step)) == ["mine/later", "mine/none", "mine/turns", "mine/two"]
        assert sorted(step.bad) == ["mine/one", "mine/system"]
        assert step.bad["mine/one"].startswith(f"mine/one ({data_file}:1, row 0): {data_file.parent}/0.png is no pict")

    def test_too_long_is_bad(self, data_file: Path) -> None:
        plan = StepPlan.derive(6, 6, 1, 1, 1)
        step = dataset(data_file, plan)[0]
        assert isinstance(step, EncodedGroup)
        lengths = {sample.id: sample.num_tokens for sample in step.samples}
        longest = max(lengths, key=lambda name: lengths[name])
        shorter = dataset(data_file, plan, max_tokens=lengths[longest] - 1)[0]
        assert isinstance(shorter, EncodedGroup)
        assert longest in shorter.bad
        assert f"{lengths[longest]} tokens" in shorter.bad[longest]
        assert f"exceed batching.max_tokens={lengths[longest] - 1}; raise it" in shorter.bad[longest]

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_an_error_that_is_no_samples_own_ends_the_stream(
        self, data_file: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It comes out as it is, also of a loader process, which torch would wrap in a text of its own."""

        def encode(self: Encoder, sample: Any, key: int) -> Any:
            raise ConfigError("the disk is gone")

        monkeypatch.setattr(Encoder, "encode", encode)
        with pytest.raises(ConfigError, match="^the disk is gone$") as caught:
            list(StepLoader(dataset(data_file, StepPlan.derive(6, 6, 1, 1, 1)), num_workers))
        # Gone with the error, though its traceback still holds the stream.
        assert caught.tb and multiprocessing.active_children() == []

    def test_a_sample_error_names_its_sample(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.json"
        path.write_text(json.dumps([{"id": "a", "conversations": [{"from": "human", "value": "What?"}]}]))
        with pytest.raises(SampleError, match=r"^mine/a \(.*rows.json:1, row 0\): it has no assistant turn") as caught:
            LLaVADataset(data_path=path).open("mine")[0]
        assert caught.value.sample_id == "mine/a"


def test_says_how_long_each_step_was_waited_for(data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = StepLoader(dataset(data_file, StepPlan.derive(6, 2, 1, 3, 1)), num_workers=0)
    real, waited = Encoder.encode, []
    monkeypatch.setattr(Encoder, "encode", lambda self, *args: (time.sleep(0.05), real(self, *args))[1])
    loader.on_wait = waited.append
    began = time.perf_counter()
    for _ in loader:
        time.sleep(0.2)  # the step's own time
    assert len(waited) == 3 and min(waited) >= 0.1
    assert sum(waited) <= time.perf_counter() - began - 3 * 0.2
