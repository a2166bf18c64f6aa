"""What `batching=auto` comes to, and that ranks, checkpoints and the run folder agree on it."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES
from tests.support import CPU, compose, encoding
from vlmft import settling
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.data.problems import SampleError
from vlmft.data.run_data import RunData
from vlmft.encoding import Grouped, Packed, Padded
from vlmft.run_folder import RunFolder
from vlmft.settling import Settled, choose, padding_of_rows, settle_batching, unknown_llm
from vlmft.training.step_plan import StepPlan
from vlmft.types import Message, Sample

CUDA = torch.device("cuda")


class Source:
    """Samples of text whose answers have so many words; a negative number is a bad sample."""

    name = "mine"
    shards = None

    def __init__(self, words: Sequence[int]) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def sample_id(self, row: int) -> str:
        return f"mine/{row}"

    def __getitem__(self, row: int) -> Sample:
        if self.words[row] < 0:
            raise SampleError(self.sample_id(row), "x:1", "damaged")
        said = ("red " * self.words[row]).strip()
        return Sample(self.sample_id(row), (Message("user", ("Go",)), Message("assistant", (said,))), "x:1")


def data_of(words: Sequence[int]) -> RunData:
    source: Any = Source(words)
    return RunData(Mixture([MixturePart(source, 1, range(len(words)))], 0), ())


def plan_of(data: RunData, samples: int, ranks: int = 1) -> StepPlan:
    return StepPlan.derive(len(data.mixture), samples, 1, None, ranks)


def chosen(*words: str, device: torch.device = CPU, lengths: Sequence[int] = (1, 60)) -> Settled:
    config, data = compose(*words), data_of([*lengths] * 8)
    return choose(config, data, plan_of(data, 8), encoding()[0], device)


def test_long_padding_is_packed_on_the_cpu_and_short_is_not() -> None:
    assert chosen() == Settled("packed", "rows of like length would hold 59.0 tokens of padding a sample")
    words = "rows of like length would hold 13.0 tokens of padding a sample, and packs pay from 16 on cpu in fp32"
    short = chosen(lengths=(4, 17))
    assert short.name == "grouped" and str(short) == f"batching grouped: {words}"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_with_the_kernel_for_segments_all_is_packed(precision: str) -> None:
    found = chosen(f"precision={precision}", device=CUDA, lengths=(3, 3))
    assert found == Settled("packed", "no padding, and one kernel for all samples of a pack")
    assert chosen(f"precision={precision}", lengths=(3, 3)).name == "grouped"
    assert chosen("precision=fp32", device=CUDA, lengths=(3, 3)).because.endswith("packs pay from 16 on cuda in fp32")


def test_a_gpu_without_the_kernel_goes_by_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    short = chosen("precision=fp16", device=CUDA, lengths=(3, 3))
    assert short.name == "grouped" and short.because.endswith("packs pay from 16 on cuda in fp16")
    assert chosen("precision=fp16", device=CUDA).because.endswith("59.0 tokens of padding a sample")


def test_what_cannot_pack_is_grouped_with_the_reason() -> None:
    assert chosen("model=tiny_gemma3").because.startswith("TinyGemma3 takes no packs: its pictures' tokens see each")
    assert chosen("model.attention=eager").because == (
        "TinyQwen25VL takes no packs: packs are computed in sdpa's place, and model.attention is eager"
    )
    grpo = chosen("trainer=grpo", "dataset=demo_grpo", "reward=format@1.0")
    assert grpo == Settled("grouped", "the loss of trainer=grpo takes samples in rows of their own")


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.unpacked is None], ids=lambda family: family.name)
def test_the_llm_of_each_family_that_packs_is_known(family: Any) -> None:
    assert unknown_llm(family.spec) is None


def test_an_llm_that_nobody_has_looked_at_is_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmft.models.packing.PACKED_LLMS", frozenset({"llama"}))
    assert chosen().because.endswith("this checkpoint's LLM is of type qwen2_5_vl_text, and nobody has looked at that")


def test_padding_is_counted_as_the_steps_of_the_first_rank_are_cut() -> None:
    """Each step of a rank is sorted by length: cut by hand here."""
    data = data_of([1, 2, 4, 8, 16, -1, 32, 64])
    encoder, _ = encoding()
    lengths = {row: 0 if row == 5 else encoder.count(data.mixture.parts[0].source[row]).num_tokens for row in range(8)}
    for ranks in (1, 2):
        plan = plan_of(data, 4, ranks)
        steps = [[data.mixture.at(place).row for place in plan.positions(step, 0)] for step in range(2)]
        rows = [[lengths[row] for row in step if row != 5] for step in steps]
        padding = sum(max(step) - length for step in rows for length in step)
        found = padding_of_rows(data, plan, encoder, Grouped(max_tokens=8192))
        assert found == pytest.approx(padding / sum(map(len, rows))) and found > 1
    all_of_one_length = data_of([3] * 100)
    assert padding_of_rows(all_of_one_length, plan_of(all_of_one_length, 100), encoder, Grouped(max_tokens=8192)) == 0


def settled_in(folder: Path, *words: str, start: Any = None) -> tuple[Any, Settled | None, dict[str, Any]]:
    data = data_of([1, 60] * 8)
    run = RunFolder(folder)
    config, found = settle_batching(compose(*words), run, data, plan_of(data, 8), encoding()[0], CPU, start)
    return config.batching, found, run.read_result()


def test_the_run_folder_says_what_was_chosen_and_the_budget_stays(tmp_path: Path) -> None:
    batching, found, result = settled_in(tmp_path, "batching.max_tokens=5000")
    assert type(batching) is Packed and batching.max_tokens == 5000
    assert found is not None and result["batching"] == {"chosen": "packed", "because": found.because}


@pytest.mark.parametrize(("word", "kind"), [("grouped", Grouped), ("packed", Packed), ("padded", Padded)])
def test_a_rule_that_is_named_stays(tmp_path: Path, word: str, kind: type) -> None:
    batching, found, result = settled_in(tmp_path, f"batching={word}")
    assert type(batching) is kind and found is None and "batching" not in result


def test_a_resumed_run_keeps_what_it_began_with(tmp_path: Path) -> None:
    start = SimpleNamespace(facts={"batching": "grouped"})
    batching, found, _ = settled_in(tmp_path, start=start)
    assert type(batching) is Grouped and str(found) == "batching grouped: as it was when the checkpoint was saved"
    batching, *_ = settled_in(tmp_path, start=SimpleNamespace(facts={"batching": "padded"}))  # of another run's choice
    assert type(batching) is Packed


def test_other_ranks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(shared: list[Any]) -> None:
        shared[:] = [Settled("packed", "rank 0 said so")]

    monkeypatch.setattr(settling, "rank", lambda: 1)
    monkeypatch.setattr(settling, "world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    batching, found, result = settled_in(tmp_path)
    assert type(batching) is Packed and found == Settled("packed", "rank 0 said so") and result == {}


def test_the_recorded_bound_is_the_one_in_use() -> None:
    recorded = json.loads((Path(__file__).parents[1] / "benchmarks/results/packs.json").read_text())
    assert recorded["pays_from"] == settling.PAYS_FROM
    beyond = [one["ratio"]["p90"] for one in recorded["steps"].values() if one["padding"] >= settling.PAYS_FROM]
    assert len(beyond) >= 5 and max(beyond) < 1
    assert min(one["ratio"]["n"] for one in recorded["steps"].values()) >= 15
