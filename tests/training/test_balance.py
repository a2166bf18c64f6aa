"""Steps are shared out among ranks by cost: the same samples, the same shares on every rank, and even work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from tests.support import compose, encoding, read_llava, tiny, tiny_processor, with_recipe
from tests.training.conftest import Bench
from vlmft.data import LLaVADataset
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.encoding.collate import Collator
from vlmft.encoding.loading import EncodedGroup
from vlmft.encoding.probe import probe_sample
from vlmft.recipes.table import component_rows
from vlmft.training.balance import Costs, costs_of, digest, share_out
from vlmft.training.step_plan import StepPlan
from vlmft.training.steps import StepDataset, StepLoader


def test_the_costliest_goes_first_and_each_to_the_lightest_rank() -> None:
    assert share_out([5, 1, 9, 4, 4], 2) == [[2, 4], [0, 1, 3]]  # 9, then 5, 4, 4 of 13 against 10
    assert share_out([3, 3, 3, 3], 2) == [[0, 2], [1, 3]]
    assert share_out([2, None, 2, None, None], 2) == [[0, 1, 4], [2, 3]]
    assert share_out([None, None, 1], 2) == [[1, 2], [0]] or share_out([None, None, 1], 2) == [[2], [0, 1]]


@given(st.lists(st.one_of(st.none(), st.floats(1, 1e5)), min_size=1, max_size=40), st.integers(1, 8))
def test_each_sample_has_one_rank_and_no_rank_is_idle(costs: list[float | None], ranks: int) -> None:
    shares = share_out(costs, ranks)
    assert sorted(sum(shares, [])) == list(range(len(costs))) and len(shares) == ranks
    assert all(share == sorted(share) for share in shares)
    usable = [cost for cost in costs if cost is not None]
    loads = [sum(costs[number] or 0 for number in share) for share in shares]
    if len(usable) >= ranks:
        assert min(loads) > 0
    if usable:  # Graham's bound for lists in any order
        assert max(loads) <= sum(usable) / ranks + max(usable) * (1 + 1e-9)


def test_shares_that_differ_have_numbers_that_differ() -> None:
    found = {digest(share_out([float(cost) for cost in range(1, 12)], ranks)) for ranks in range(1, 9)}
    assert len(found) == 8 and all(0 <= number < 2**20 for number in found)


def test_a_cost_counts_vision_tokens_exactly_and_text_by_its_bytes(data_file: Path) -> None:
    encoder, _ = encoding()
    for sample in read_llava(data_file):
        counted = encoder.count(sample)
        text = sum(len(message.text.encode()) for message in sample.messages) / 4
        assert Costs(0.5).of(encoder.planner, sample) == pytest.approx(1 + text + 1.5 * counted.num_vision_tokens)


@pytest.mark.parametrize(
    ("words", "tower", "llm"),
    [
        (["recipe=fft"], 3, 3),
        (["recipe=lora_llm"], 1, 2),  # a frozen tower goes forward alone; the projector trains before the LLM
        (["recipe=lora_vt_llm"], 2, 2),
        (["recipe=lora_vt_llm", "trainer.gradient_checkpointing=true"], 3, 3),
        (["recipe=ln_vt"], 2, 2),
    ],
)
def test_the_tower_is_weighed_by_its_weights_patches_and_passes(words: list[str], tower: int, llm: int) -> None:
    """Qwen2.5-VL has four patches a vision token."""
    config = compose("precision=fp32", *words)
    model, (encoder, collator) = with_recipe(config), encoding()
    probe = probe_sample(encoder)
    rows = component_rows(model, config.recipe, config.model, 1e-4, lambda number: 0)
    inputs, _ = collator.on_device([probe], model)
    mode = model.training
    found = costs_of(model, config.model, rows, probe, inputs, config.trainer.gradient_checkpointing)
    base = tiny().load_model(next(model.parameters()).device)
    visual = sum(p.numel() for name, p in base.named_parameters() if "visual" in name and "merger" not in name)
    language = sum(p.numel() for name, p in base.named_parameters() if "visual" not in name)
    assert found.vision_token == pytest.approx(4 * visual * tower / (language * llm)) and model.training == mode


def datasets(path: Path, ranks: int, step: int = 6, costs: Costs | None = None) -> list[StepDataset]:
    source = LLaVADataset(data_path=path).open("mine")
    mixture = Mixture([MixturePart(source, 1, range(len(source)))], 0)
    plan = StepPlan.derive(len(source), step, 1, 2, ranks)
    return [StepDataset(mixture, encoding()[0], plan, rank, costs) for rank in range(ranks)]


def steps_of(found: list[StepDataset], number: int = 0) -> list[EncodedGroup]:
    groups = [steps[number] for steps in found]
    assert all(isinstance(group, EncodedGroup) for group in groups), groups
    return groups  # type: ignore[return-value]


def test_ranks_share_the_samples_of_the_step_by_cost(data_file: Path) -> None:
    (whole,) = steps_of(datasets(data_file, 1, costs=Costs(1)))
    assert whole.shares == 0  # with one rank nothing is looked at
    ids = [sample.id for sample in whole.samples]
    planner = encoding()[0].planner
    costs = {sample.id: Costs(1).of(planner, sample) for sample in read_llava(data_file)}
    for ranks in (2, 3):
        shares = steps_of(datasets(data_file, ranks, costs=Costs(1)))
        assert sorted(sample.id for group in shares for sample in group.samples) == sorted(ids)
        assert len({group.shares for group in shares}) == 1 and shares[0].shares > 0
        for group in shares:  # in the order of the data
            assert sorted(group.samples, key=lambda sample: ids.index(sample.id)) == group.samples

        def busiest(groups: list[EncodedGroup]) -> float:
            return max(sum(costs[sample.id] for sample in group.samples) for group in groups)

        assert busiest(shares) < busiest(steps_of(datasets(data_file, ranks)))


def test_a_step_in_turn_is_that_without_costs(data_file: Path) -> None:
    for balanced, plain in zip(datasets(data_file, 2, costs=Costs(1)), datasets(data_file, 2), strict=True):
        one, other = balanced.in_turn(1), plain[1]
        assert isinstance(one, EncodedGroup) and isinstance(other, EncodedGroup)
        assert [s.id for s in one.samples] == [s.id for s in other.samples] and one.shares == other.shares == 0


def test_a_loader_process_hands_the_shares_on(data_file: Path) -> None:
    steps = datasets(data_file, 2, costs=Costs(1))[1]
    here, there = (next(iter(StepLoader(steps, workers))) for workers in (0, 1))
    assert here.shares == there.shares > 0 and [s.id for s in here.samples] == [s.id for s in there.samples]


def test_bad_samples_leave_no_rank_idle_and_are_listed_once(data_file: Path) -> None:
    rows = json.loads(data_file.read_text())
    (data_file.parent / "0.png").write_bytes(b"no picture")  # of the samples `one` and `system`
    shares = steps_of(datasets(data_file, 3, costs=Costs(1)))
    bad = [name for group in shares for name in group.bad]
    assert sorted(bad) == ["mine/one", "mine/system"]
    assert len(rows) - 2 == sum(len(group.samples) for group in shares) and all(group.samples for group in shares)


def test_ranks_that_come_to_other_shares_take_the_step_in_turn(
    bench: Callable[..., Bench], data_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rank 0 of two; what the other says is put in."""
    made = bench("global_batch_size=6", "trainer.max_steps=2")
    steps = datasets(data_file, 2, costs=Costs(1))[0]
    made.trainer.parts.loader = StepLoader(steps, 0)
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    (mine,), said = steps_of([steps]), [0, 0, 0, 0]
    turn = steps.in_turn(0)
    assert isinstance(turn, EncodedGroup) and [s.id for s in turn.samples] != [s.id for s in mine.samples]

    def agreed(others: int) -> Any:
        """What is trained on where the other rank's number is `others`, and 0 once it has come in turn as well."""
        numbers = iter([others, 0])

        def summed(values: list[float]) -> list[float]:
            number = next(numbers)
            return [float(a + b) for a, b in zip(values, [*said, number, number**2], strict=True)]

        monkeypatch.setattr(made.trainer, "_sum", summed)
        return made.trainer._agree(mine)

    assert agreed(mine.shares) is mine and not caplog.records
    again = agreed(mine.shares ^ 1)
    assert [s.id for s in again.samples] == [s.id for s in turn.samples]
    assert "step 1: ranks see its files differently; it is shared out in turn" in caplog.text


def test_a_crash_in_decoding_changes_no_shares(data_file: Path) -> None:
    """A loader process of one rank has died at a sample; the other ranks know nothing of it."""
    whole = steps_of(datasets(data_file, 2, costs=Costs(1)))
    made = datasets(data_file, 2, costs=Costs(1))
    name = made[0].mixture.sample_id(made[0].mixture.at(3))
    (at,) = [rank for rank, group in enumerate(whole) if name in {sample.id for sample in group.samples}]
    made[at].watch.crashed[0, 3] = "Segmentation fault (signal 11)"
    found = steps_of(made)
    assert [group.shares for group in found] == [group.shares for group in whole]
    assert list(found[at].bad) == [name] and "Segmentation fault" in found[at].bad[name] and not found[1 - at].bad
    for group, before in zip(found, whole, strict=True):
        assert [sample.id for sample in group.samples] == [s.id for s in before.samples if s.id != name]


def test_a_crash_over_a_header_leaves_the_sample_undecoded(data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (steps,) = datasets(data_file, 2, costs=Costs(1))[:1]
    for place in range(6):
        steps.watch.crashed[0, -1 - place] = "Bus error (signal 7)"
    monkeypatch.setattr(type(steps.encoder), "encode", lambda *args: pytest.fail("decoded"))
    (group,) = steps_of([steps])
    assert group.bad and not group.samples
    assert steps.crashes_of(0) == dict.fromkeys(range(6), "Bus error (signal 7)") and not steps.crashes_of(1)


def test_no_rank_decodes_in_turn_what_has_crashed_another(
    bench: Callable[..., Bench], data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step in turn is encoded in the run's own process, which a crash would end."""
    made = bench("global_batch_size=6", "trainer.max_steps=2", "max_bad_samples=1")
    steps = datasets(data_file, 2, costs=Costs(1))[0]
    made.trainer.parts.loader = StepLoader(steps, 0)
    taken = steps.in_turn(0)
    assert isinstance(taken, EncodedGroup) and len(taken.samples) == 3
    place = steps.plan.positions(0, 0)[1]
    monkeypatch.setattr("vlmft.training.trainer.gather_object", lambda mine: [*mine, {place: "Aborted (signal 6)"}])
    again = made.trainer._in_turn()
    assert isinstance(again, EncodedGroup)
    assert [s.id for s in again.samples] == [taken.samples[0].id, taken.samples[2].id]
    assert list(again.bad) == [taken.samples[1].id]


def test_the_probe_is_encoded_for_a_collator_that_packs(data_file: Path) -> None:
    """The weighing takes rows: `on_device`, whatever the run packs."""
    config = compose("batching=packed", "precision=fp32")
    model, encoder = with_recipe(config), encoding()[0]
    inputs, _ = Collator(tiny(), tiny_processor(), packs=True).on_device([probe_sample(encoder)], model)
    assert inputs["attention_mask"].dim() == 2
