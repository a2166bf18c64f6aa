"""trainer=kto: a step's loss by hand, in any cut; its reference is the model of the start; a resume is exact."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, set_seed

from tests.support import compose, literally
from tests.training.pairs import TaskBench, said_alone, sample_of
from tests.training.rated import rated_bench, write_rated
from vlmft.encoding.encoder import Encoded, Encoder, Rating
from vlmft.encoding.loading import EncodedGroup
from vlmft.errors import ConfigError, DataError, NumericError
from vlmft.tasks import task_of
from vlmft.training import commit
from vlmft.training.checkpoint import Checkpoints
from vlmft.training.kto import KtoObjective
from vlmft.training.step_plan import StepPlan
from vlmft.training.steps import StepDataset
from vlmft.types import Preference

MakeBench = Callable[..., TaskBench]

ALL = ("global_batch_size=6", "trainer.max_steps=3", "optim.warmup=0")
FAST = [("fft", "copy"), ("ln_vt_lora_llm", "adapters_off")]
MORE = [
    ("custom", "copy"),
    ("projector", "copy"),
    ("topk", "copy"),
    ("dora_llm", "adapters_off"),
    ("lora_llm_int8", "adapters_off"),
    ("fft_vt_lora_llm_nf4", "adapters_off"),
]
"""Of each kind; the reference is had as trainer=dpo has it, whose tests hold it for every recipe and family."""


@pytest.fixture
def bench(tmp_path: Path) -> MakeBench:
    def make(*words: str, **replaces: Any) -> TaskBench:
        (tmp_path / "run").mkdir(exist_ok=True)
        return rated_bench(tmp_path / "run", write_rated(tmp_path / "data"), *words, **replaces)

    return make


def objective_of(made: TaskBench) -> KtoObjective:
    found = made.trainer.parts.objective
    assert isinstance(found, KtoObjective)
    return found


def move(model: Any, seed: int = 3) -> None:
    """Take the model away from its start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)


def rating(unit: Encoded) -> Rating:
    assert isinstance(unit.target, Rating)
    return unit.target


def test_a_step_is_the_mean_over_its_answers_of_what_each_has_by_itself(bench: MakeBench) -> None:
    """Pictures, a video, several turns and text; the other answers stand behind the pictures of the prompt."""
    made = bench("recipe=fft", "trainer.beta=0.3", "trainer.undesirable_weight=1.5", *ALL)
    step = made.step()
    samples = [sample_of(made, unit.id) for unit in step.samples]
    assert len({sample.id for sample in samples}) == 6
    asked = [(sample, samples[number - 1].target.answer) for number, sample in enumerate(samples)]
    own = [(sample, sample.target.answer) for sample in samples]
    said = [[said_alone(made, *one) for one in some] for some in (own, asked)]
    move(made.model)
    ratios, others = (
        [said_alone(made, *one) - was for one, was in zip(some, before, strict=True)]
        for some, before in zip((own, asked), said, strict=True)
    )
    kl = sum(others) / 6
    assert kl > 0.1 and max(map(abs, ratios)) > 0.3
    good = [sample.target.good for sample in samples]
    losses = [
        torch.sigmoid(torch.tensor(-0.3 * (ratio - kl))) if is_good else 1.5 * torch.sigmoid(
            torch.tensor(0.3 * (ratio - kl))
        )
        for ratio, is_good in zip(ratios, good, strict=True)
    ]  # fmt: skip
    loss, _ = made.gradients(step)
    assert loss == pytest.approx(float(sum(losses)) / 6, rel=1e-4)
    made.trainer.state.global_step = 1
    made.trainer.log({"loss": 0.0})
    line = made.lines[-1]
    assert line["kl"] == pytest.approx(kl, rel=1e-3) and line["mismatched"] == 1
    for kind, which in (("good", True), ("bad", False)):
        those = [0.3 * ratio for ratio, is_good in zip(ratios, good, strict=True) if is_good == which]
        assert line[f"rewards/{kind}"] == pytest.approx(sum(those) / 3, rel=1e-3, abs=1e-4)


def test_what_the_kl_is_read_from_leaves_no_gradient_and_draws_nothing(bench: MakeBench) -> None:
    made = bench("recipe=lora_llm", "recipe.llm.dropout=0.5", *ALL)
    step = made.step()
    move(made.model)
    made.model.train()
    state = torch.get_rng_state()
    ratios = [objective_of(made)._ratios(step.samples) for _ in range(2)]
    assert ratios[0] == ratios[1] and max(map(abs, ratios[0])) > 0.1
    assert torch.equal(torch.get_rng_state(), state) and made.model.training
    assert all(parameter.grad is None for parameter in made.model.parameters())


def test_any_cut_into_micro_batches_gives_the_same_gradient(bench: MakeBench) -> None:
    made = bench("recipe=fft", "trainer.beta=0.3", *ALL)
    step = made.step()
    move(made.model)
    places = [unit.num_places for unit in step.samples]
    whole_loss, whole = made.gradients(step)
    whole_kl = objective_of(made).kl
    assert whole_kl > 0.1 and made.trainer.meters.read()["micro_batches"] == 1
    longest = max(*places, *(len(other.input_ids) for unit in step.samples if (other := rating(unit).mismatched)))
    for budget in (longest, 2 * longest):
        batching = compose(f"batching.max_tokens={budget}").batching
        made.trainer.parts.batching = objective_of(made).batching = batching
        loss_of_cut, cut = made.gradients(step)
        assert made.trainer.meters.read()["micro_batches"] > 1
        assert objective_of(made).kl == pytest.approx(whole_kl, rel=1e-4)
        assert loss_of_cut == pytest.approx(whole_loss, rel=1e-5)
        largest = max(float(gradient.abs().max()) for gradient in whole.values())
        assert max(float((cut[name] - whole[name]).abs().max()) for name in whole) < 1e-5 * largest


def test_ranks_read_the_same_other_answers_and_add_up_to_the_same_kl(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks have two samples each, and six have one; what they gather is put in here."""
    made = bench("recipe=fft", *ALL)
    move(made.model)
    objective, whole = objective_of(made), made.step()
    objective.begin(0, whole)
    kl = objective.kl
    assert kl > 0.1
    for ranks in (3, 6):
        plan = StepPlan.derive(6, 6, 1.0, None, ranks)
        shares = [StepDataset(made.steps.mixture, made.steps.encoder, plan, rank)[0] for rank in range(ranks)]
        assert all(isinstance(share, EncodedGroup) and len(share.samples) == 6 // ranks for share in shares)
        units = {unit.id: unit for share in shares for unit in share.samples}  # type: ignore[union-attr]
        for unit in whole.samples:
            ours, others = rating(unit).mismatched, rating(units[unit.id]).mismatched
            assert ours is not None and others is not None and torch.equal(ours.input_ids, others.input_ids)
        gathered: list[Any] = []
        monkeypatch.setattr("vlmft.training.kto.gather_object", lambda own: gathered.extend(own) or own)  # noqa: B023
        for share in shares:
            objective.begin(0, share)  # type: ignore[arg-type]
        monkeypatch.setattr("vlmft.training.kto.gather_object", lambda _: gathered)  # noqa: B023
        objective.begin(0, shares[0])  # type: ignore[arg-type]
        assert objective.kl == pytest.approx(kl, rel=1e-4)


def test_apo_zero_unpaired_asks_for_no_other_answer(bench: MakeBench) -> None:
    made = bench("recipe=fft", "trainer.loss=apo_zero_unpaired", *ALL)
    step = made.step()
    assert [rating(unit).mismatched for unit in step.samples] == [None] * 6
    read = []
    reader = objective_of(made).reader
    sums = reader.sums
    reader.sums = lambda model, answers: read.append(len(answers)) or sums(model, answers)  # type: ignore[method-assign,func-returns-value]
    assert made.gradients(step)[0] == pytest.approx(0.5)
    assert read == [6, 6]  # the model of the start, and that of now


def test_what_does_not_fit_behind_a_prompt_is_left_out_of_the_kl_and_counted(bench: MakeBench) -> None:
    made = bench("recipe=fft", *ALL)
    whole = made.step()
    longest = max(len(unit.input_ids) for unit in whole.samples)
    encoder = made.steps.encoder
    made.steps.encoder = Encoder(encoder.family, encoder.processor, longest, learns=encoder.learns)
    step = made.step()
    kept = sum(rating(unit).mismatched is not None for unit in step.samples)
    assert len(step.samples) == 6 and 0 < kept < 6
    made.gradients(step)
    made.trainer.state.global_step = 1
    made.trainer.log({"loss": 0.0})
    assert made.lines[-1]["mismatched"] == pytest.approx(kept / 6)


def test_a_kl_that_is_no_number_ends_the_run(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench("recipe=fft", *ALL)
    monkeypatch.setattr(KtoObjective, "_ratios", lambda *_: [float("nan")])
    with pytest.raises(NumericError, match="the loss of step 1 is nan"):
        made.gradients(made.step())


def check_constant(made: TaskBench) -> None:
    """Train some steps; the reference says before and after what the model of the start said."""
    objective, units = objective_of(made), made.step().samples

    def said(read: Callable[[list[Encoded]], torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([read([unit]) for unit in units])

    def by_the_model() -> torch.Tensor:
        return said(lambda some: objective.reader.sums(made.model.eval(), some)[0])

    start, before = by_the_model(), said(objective.of_the_start)
    torch.testing.assert_close(before, start, rtol=1e-4, atol=1e-3)
    made.trainer.train()
    assert torch.equal(said(objective.of_the_start), before)
    assert (by_the_model() - start).abs().max() > 0.01
    assert made.lines[0]["loss"] == pytest.approx(0.5, abs=1e-3)
    assert made.lines[0]["kl"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("recipe", "way"), FAST)
def test_the_reference_is_the_model_of_the_start_whatever_trains(bench: MakeBench, recipe: str, way: str) -> None:
    check_constant(bench(f"recipe={recipe}", f"trainer.reference={way}", "optim.lr=1e-3", *ALL))


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "way"), MORE)
def test_the_reference_is_the_model_of_the_start_in_each_kind_of_recipe(
    bench: MakeBench, recipe: str, way: str
) -> None:
    made = bench(f"recipe={recipe}", f"trainer.reference={way}", "global_batch_size=2", "trainer.max_steps=1")
    objective, units = objective_of(made), made.step().samples
    start, _ = objective.reader.sums(made.model.eval(), units)
    before = objective.of_the_start(units)
    torch.testing.assert_close(before, start.detach(), rtol=1e-4, atol=1e-3)
    move(made.model)
    assert torch.equal(objective.of_the_start(units), before)
    assert (objective.reader.sums(made.model, units)[0] - start).abs().max() > 0.01


class _KilledError(Exception):
    """Stands for SIGKILL."""


class _KillAt(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise _KilledError


def test_steps_and_a_resume_are_the_undisturbed_run(tmp_path: Path) -> None:
    file = write_rated(tmp_path / "data")
    words = ("recipe=ln_vt_lora_llm", "global_batch_size=2", "trainer.max_steps=5", "optim.warmup=0.2")

    def life(name: str) -> TaskBench:
        (tmp_path / name).mkdir(exist_ok=True)
        start, _ = commit.newest(tmp_path / name / "checkpoints")
        set_seed(0)
        made = rated_bench(tmp_path / name, file, *words, "optim.lr=1e-2")
        if start:
            made.trainer.parts.loader.start = start.step
        made.trainer.add_callback(Checkpoints(made.trainer, tmp_path / name / "checkpoints", 2, 2, {}, start))
        return made

    def said(made: TaskBench) -> dict[int, Any]:
        kept = ("loss", "grad_norm", "learning_rate", "micro_batches", "kl")  # the others are of the clock
        return {
            line["step"]: {key: value for key, value in line.items() if key in kept or "/" in key}
            for line in made.lines
        }

    whole = life("whole")
    whole.trainer.train()
    first = life("killed")
    first.trainer.add_callback(_KillAt())
    with pytest.raises(_KilledError):
        first.trainer.train()
    second = life("killed")
    second.trainer.train()
    assert second.weights() == whole.weights()
    assert said(first) | said(second) == said(whole)
    assert min(said(second)) == 3


def refused(message: str, trainer: dict[str, Any], **fields: Any) -> None:
    config = compose("trainer=kto", "dataset=demo_kto", "recipe=lora_llm")
    chosen = config.trainer.model_copy(update=trainer)
    with pytest.raises(ConfigError, match=literally(message)):
        task_of(config.model_copy(update=fields | {"trainer": chosen})).check()


def test_contradictions_are_refused_before_anything_starts(tmp_path: Path) -> None:
    config = compose("trainer=kto", "dataset=demo_kto", "recipe=lora_llm")
    task_of(config).check()
    off = {"reference": "adapters_off"}
    refused("adapters_off: the recipe has no adapters; use copy", off, recipe=compose().recipe)
    refused("the start is not the base", off, model=config.model.model_copy(update={"adapter": "/nowhere"}))
    refused("global_batch_size: 1 sample a step has no other answer that trainer.loss=kto", {}, global_batch_size=1)
    alone = config.model_copy(
        update={"global_batch_size": 1, "trainer": config.trainer.model_copy(update={"loss": "apo_zero_unpaired"})}
    )
    task_of(alone).check()
    best = config.evaluation.model_copy(update={"best_by": "exact_match", "every_steps": 2})
    refused("is not among this run's metrics: answer_auroc", {}, evaluation=best)


def test_answers_of_one_kind_are_refused_before_weights_load(tmp_path: Path) -> None:
    file = write_rated(tmp_path)
    file.write_text(file.read_text().replace('"label": false', '"label": true'))
    with pytest.raises(DataError, match="all 6 training samples have 'label': true"):
        rated_bench(tmp_path, file, model=object())


def test_a_pair_is_no_rated_answer(bench: MakeBench) -> None:
    made = bench(*ALL)
    pair = replace(sample_of(made, "mine/one"), target=Preference("a", "b"))
    with pytest.raises(DataError, match=r"trainer=dpo learns from such samples\); trainer=kto learns from one answer"):
        made.steps.encoder.encode(pair)
