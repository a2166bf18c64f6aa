"""trainer=dpo: a step's loss by hand, in any cut; and the reference is the model of the start under every recipe."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, set_seed

from tests.models.families import FAMILIES, Family
from tests.support import CPU, PROJECT, compose, encoding, literally
from tests.training.pairs import PairBench, pair_bench, said_alone, sample_of, write_pairs
from vlmft.config.media import Augmentation
from vlmft.encoding import Grouped, Packed
from vlmft.encoding.encoder import Encoded
from vlmft.errors import ConfigError, DataError, PreemptedError, StorageError
from vlmft.tasks import task_of
from vlmft.training import commit, reference_pass
from vlmft.training.checkpoint import Checkpoints
from vlmft.training.pack_proof import PackProof
from vlmft.training.pairs import PairReader
from vlmft.training.reference_pass import ReferencePass
from vlmft.training.stop import StopRequest

MakeBench = Callable[..., PairBench]

ALL = ("global_batch_size=6", "trainer.max_steps=3", "optim.warmup=0")
FAST = [
    ("fft", "copy"),
    ("projector", "precomputed"),
    ("topk", "copy"),
    ("ln_vt_lora_llm", "adapters_off"),
    ("lora_llm", "precomputed"),
]
REST = [(recipe, way) for recipe, _ in FAST for way in ("precomputed", "copy", "adapters_off")]
REST = [
    (recipe, way) for recipe, way in REST if (recipe, way) not in FAST and ("lora" in recipe or way != "adapters_off")
]


@pytest.fixture
def bench(tmp_path: Path) -> MakeBench:
    def make(*words: str, **replaces: Any) -> PairBench:
        (tmp_path / "run").mkdir(exist_ok=True)
        return pair_bench(tmp_path / "run", write_pairs(tmp_path / "data"), *words, **replaces)

    return make


def alone(bench: PairBench, pair: Encoded) -> tuple[float, float]:
    """Log-probabilities of both answers, each by itself."""
    sample = sample_of(bench, pair.id)
    return said_alone(bench, sample, sample.target.chosen), said_alone(bench, sample, sample.target.rejected)


def test_a_step_is_the_mean_over_its_pairs_of_what_each_answer_has_by_itself(bench: MakeBench) -> None:
    """Pictures, a video, several turns and text; the policy has moved away from the reference."""
    made = bench("recipe=fft", "trainer.reference=copy", *ALL)
    step = made.step()
    base = {pair.id: alone(made, pair) for pair in step.samples}
    assert len(base) == 6
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    margins = []
    for pair in step.samples:
        chosen, rejected = alone(made, pair)
        margins.append((chosen - base[pair.id][0]) - (rejected - base[pair.id][1]))
    assert max(map(abs, margins)) > 0.3
    loss, _ = made.gradients(step)
    expected = -torch.nn.functional.logsigmoid(0.1 * torch.tensor(margins)).mean()
    assert loss == pytest.approx(float(expected), rel=1e-4)
    made.trainer.state.global_step = 1
    made.trainer.log({"loss": 0.0})
    line = made.lines[-1]
    assert line["rewards/margin"] == pytest.approx(0.1 * sum(margins) / 6, rel=1e-3, abs=1e-5)
    assert line["rewards/accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 6)
    assert line["rewards/chosen"] - line["rewards/rejected"] == pytest.approx(line["rewards/margin"], abs=1e-5)


def test_any_cut_into_micro_batches_gives_the_same_gradient(bench: MakeBench) -> None:
    made = bench("recipe=lora_llm", "trainer.loss=mpo", *ALL)
    step = made.step()
    places = [pair.num_places for pair in step.samples]
    whole_loss, whole = made.gradients(step)
    assert made.trainer.meters.read()["micro_batches"] == 1
    for budget in (max(places), 2 * max(places)):
        made.trainer.parts.batching = compose(f"batching.max_tokens={budget}").batching
        loss_of_cut, cut = made.gradients(step)
        assert made.trainer.meters.read()["micro_batches"] > 1
        assert loss_of_cut == pytest.approx(whole_loss, rel=1e-5)
        largest = max(float(gradient.abs().max()) for gradient in whole.values())
        assert max(float((cut[name] - whole[name]).abs().max()) for name in whole) < 1e-5 * largest


@pytest.mark.parametrize(
    "words",
    [
        ("recipe=fft", "trainer.reference=copy"),
        ("recipe=lora_llm", "trainer.loss=mpo"),
        ("recipe=lora_llm", "trainer.wpo=true", "trainer.ld_alpha=0.5"),
    ],
)
def test_a_step_is_the_same_in_packs_as_in_padded_rows(bench: MakeBench, words: tuple[str, ...]) -> None:
    """Both answers of each pair, with the reference's log-probabilities; pictures are seen once either way."""
    made = bench("batching=packed", "precision=fp32", *words, *ALL)
    step, collator = made.step(), made.trainer.parts.collator
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.03 * torch.randn_like(parameter) * parameter.requires_grad
    patches: list[int] = []
    base = made.model.get_base_model() if hasattr(made.model, "get_base_model") else made.model
    base.model.visual.blocks[0].register_forward_pre_hook(lambda module, args: patches.append(len(args[0])))
    lengths = [pair.num_tokens for pair in step.samples]
    found = []
    for batching in (Grouped(max_tokens=8192), Packed(max_tokens=sum(lengths)), Packed(max_tokens=max(lengths) + 40)):
        made.trainer.parts.batching, collator.packs = batching, batching.packs
        patches.clear()
        found.append((*made.gradients(step), sum(patches)))
    read = made.trainer.meters.read()
    assert read["micro_batches"] > 1 and read["padding"] < 0.5
    loss, rows, seen = found[0]
    largest = max(float(gradient.abs().max()) for gradient in rows.values())
    for other, packed, seen_in_packs in found[1:]:
        assert other == pytest.approx(loss, rel=1e-5) and seen_in_packs == seen > 0
        assert packed.keys() == rows.keys()
        assert max(float((packed[name] - rows[name]).abs().max()) for name in rows) < 1e-5 * largest


def test_the_first_pack_of_pairs_is_looked_at(bench: MakeBench) -> None:
    made = bench("batching=packed", "precision=fp32", "recipe=fft", "trainer.reference=copy", *ALL)
    assert made.task is not None
    said: list[str] = []
    made.trainer.parts.look_at_packs = PackProof(made.trainer.parts.collator, "fp32", said.append, made.task.reading())
    made.gradients(made.step())
    (line,) = said
    assert "of 12 in a pack: its logits are as alone (within " in line  # both answers of six pairs


@pytest.mark.slow
def test_a_mix_says_what_each_loss_adds(bench: MakeBench) -> None:
    made = bench("recipe=lora_llm", "trainer.loss=mpo", "batching.max_tokens=200", *ALL)
    made.trainer.train()
    for line in made.lines:
        assert sum(line[f"loss/{name}"] for name in ("sigmoid", "bco_pair", "sft")) == pytest.approx(line["loss"])
    assert made.lines[0]["loss/sigmoid"] == pytest.approx(0.8 * 0.693147, rel=1e-4)
    assert made.lines[0]["micro_batches"] > 1


def test_losses_that_sort_need_all_pairs_of_a_step_at_once(bench: MakeBench) -> None:
    made = bench("recipe=lora_llm", "trainer.loss=aot", *ALL)
    step = made.step()
    assert made.gradients(step)[0] == pytest.approx(0.693147, rel=1e-4)
    made.trainer.parts.batching = compose("batching.max_tokens=200").batching
    with pytest.raises(ConfigError, match=r"aot sorts all pairs of a step, and \d of 6 .* raise batching.max_tokens"):
        made.gradients(step)


def test_without_a_reference_every_answer_is_as_likely(bench: MakeBench) -> None:
    made = bench("recipe=fft", "trainer.loss=cpo", "trainer.reference=none", "trainer.beta=0.5", *ALL)
    step = made.step()
    margins = [chosen - rejected for chosen, rejected in (alone(made, pair) for pair in step.samples)]
    expected = -torch.nn.functional.logsigmoid(0.5 * torch.tensor(margins)).mean()
    assert made.gradients(step)[0] == pytest.approx(float(expected), rel=1e-4)


def check_constant(made: PairBench, within: float = 1e-3) -> None:
    """Train some steps; the reference says before and after what the model of the start said."""
    pairs = made.step().samples

    def said(read: Callable[[list[Encoded]], Any]) -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([torch.cat(read([pair])) for pair in pairs])  # one by one: some cannot share a batch

    def by_the_model() -> torch.Tensor:
        return said(lambda some: made.objective.reader.answers(made.model.eval(), some))

    start, before = by_the_model(), said(made.objective.reference.answers)
    torch.testing.assert_close(before, start, rtol=1e-4, atol=1e-3)
    made.trainer.train()
    assert torch.equal(said(made.objective.reference.answers), before)
    assert (by_the_model() - start).abs().max() > 0.01
    assert made.lines[0]["loss"] == pytest.approx(0.693147, abs=within)
    assert made.lines[0]["rewards/margin"] == pytest.approx(0, abs=within)
    assert abs(made.lines[-1]["rewards/margin"]) > 1e-4


@pytest.mark.parametrize(("recipe", "way"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)])
def test_the_reference_is_the_model_of_the_start_whatever_trains(bench: MakeBench, recipe: str, way: str) -> None:
    check_constant(bench(f"recipe={recipe}", f"trainer.reference={way}", "optim.lr=1e-3", *ALL))


RECIPES = sorted(path.stem for path in (PROJECT / "conf/recipe").glob("*.yaml"))


def cases() -> Iterator[Any]:
    """Each family with two recipes, and each recipe with two families or more, over all ways."""
    for number, family in enumerate(FAMILIES):
        fitting = [recipe for recipe in RECIPES if recipe not in family.refuses]
        for offset in (0, len(RECIPES) // 2):
            recipe = fitting[(number + offset) % len(fitting)]
            yield pytest.param(family, recipe, number % 2, id=f"{family.name}-{recipe}")


def test_no_shipped_recipe_is_left_out() -> None:
    assert {case.values[1] for case in cases()} == set(RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "recipe", "way"), cases())
def test_the_reference_is_the_model_of_the_start_in_every_family(
    tmp_path: Path, family: Family, recipe: str, way: int
) -> None:
    file = write_pairs(tmp_path / "data", video=family.video, text=not family.prefix)
    some = {"one", "two", "none", "video"} if family.prefix else {"one", "two", "none", "video", "turns"}
    rows = [row for row in json.loads(file.read_text()) if row["id"] in some]
    file.write_text(json.dumps(rows))  # not every template takes a system turn
    words = (f"recipe={recipe}", f"model=tiny_{family.name}")
    live = "adapters_off" if compose(*words).recipe.adapters else "copy"
    words += (f"trainer.reference={(live, 'precomputed')[way]}", "optim.lr=1e-3")
    made = pair_bench(tmp_path, file, *words, "global_batch_size=2", "trainer.max_steps=3", "optim.warmup=0")
    # bitsandbytes rounds to 8 bits otherwise where a gradient is wanted.
    check_constant(made, within=5e-3 if recipe.endswith("int8") else 1e-3)


class _KilledError(Exception):
    """Stands for SIGKILL."""


class _KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise _KilledError


@pytest.mark.parametrize("way", ["precomputed", pytest.param("copy", marks=pytest.mark.slow)])
def test_steps_and_a_resume_are_the_undisturbed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    file = write_pairs(tmp_path / "data")
    words = ("recipe=ln_vt_lora_llm", f"trainer.reference={way}", "global_batch_size=2", "trainer.max_steps=5")

    def life(name: str) -> PairBench:
        (tmp_path / name).mkdir(exist_ok=True)
        start, _ = commit.newest(tmp_path / name / "checkpoints")
        set_seed(0)
        made = pair_bench(tmp_path / name, file, *words, "optim.warmup=0.2")
        if start:
            made.trainer.parts.loader.start = start.step
        made.trainer.add_callback(Checkpoints(made.trainer, tmp_path / name / "checkpoints", 2, 2, {}, start))
        return made

    def said(made: PairBench) -> dict[int, Any]:
        kept = ("loss", "grad_norm", "learning_rate", "micro_batches")  # the others are of the clock
        return {
            line["step"]: {key: value for key, value in line.items() if key in kept or "/" in key}
            for line in made.lines
        }

    whole = life("whole")
    whole.trainer.train()
    first = life("killed")
    first.trainer.add_callback(_KillAt(3))
    with pytest.raises(_KilledError):
        first.trainer.train()
    if way == "precomputed":  # what the reference said is kept: it is not asked again
        monkeypatch.setattr(ReferencePass, "_compute", lambda *_: pytest.fail("the reference was computed again"))
    second = life("killed")
    second.trainer.train()
    assert second.weights() == whole.weights()
    assert said(first) | said(second) == said(whole)
    assert min(said(second)) == 3


class TestPrecomputed:
    WORDS = ("recipe=lora_llm", "global_batch_size=2")

    def test_only_pairs_that_the_run_meets_are_read_and_more_are_added(self, bench: MakeBench, tmp_path: Path) -> None:
        file = tmp_path / "run" / "reference.jsonl"
        bench(*self.WORDS, "trainer.max_steps=1")
        _, *rows = map(json.loads, file.read_text().splitlines())
        assert len(rows) == 2
        made = bench(*self.WORDS, "trainer.epochs=2")
        _, *more = map(json.loads, file.read_text().splitlines())
        assert more[:2] == rows and len(more) == 6
        for row in more:
            pair = next(p for n in range(3) for p in made.step(n).samples if p.id == row["id"])
            assert (row["chosen"], row["rejected"]) == pytest.approx(alone(made, pair), rel=1e-4)

    def test_a_pass_that_is_stopped_goes_on_from_its_last_part(
        self, bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reference_pass, "_LEAST_PART", 2)
        file, read = tmp_path / "run" / "reference.jsonl", []
        whole = ReferencePass._read

        def reads(self: ReferencePass, model: Any, pairs: list[Encoded]) -> Any:
            read.extend(pair.id for pair in pairs)
            return whole(self, model, pairs)

        monkeypatch.setattr(ReferencePass, "_read", reads)
        bench(*self.WORDS)
        expected, order = file.read_text(), list(read)
        file.unlink()
        monkeypatch.setattr(StopRequest, "obey", lambda stop: len(read) < 10 or stop.stop_at("now"))
        with pytest.raises(PreemptedError):
            bench(*self.WORDS, stop=StopRequest(reason="SIGTERM received"))
        monkeypatch.undo()
        assert len(file.read_text().splitlines()) == 1 + 4
        bench(*self.WORDS)
        assert file.read_text() == expected and len(order) == 6

    def test_another_model_or_other_data_make_it_anew(self, bench: MakeBench, tmp_path: Path) -> None:
        file = tmp_path / "run" / "reference.jsonl"
        bench(*self.WORDS)
        first = file.read_text().splitlines()
        head, *rows = first
        lies = [json.dumps(json.loads(row) | {"chosen": 1.0}) for row in rows]
        file.write_text("\n".join([head, *lies]))
        bench(*self.WORDS)
        assert file.read_text().splitlines() == [head, *lies]  # the same run trusts its file
        file.write_text("\n".join([json.dumps({"facts": "others"}), *lies]))
        bench(*self.WORDS)
        assert file.read_text().splitlines() == first
        file.write_text("{")
        with pytest.raises(StorageError, match=r"reference\.jsonl is damaged .*remove it"):
            bench(*self.WORDS)

    def test_a_pair_that_cannot_be_read_is_left_to_training(self, bench: MakeBench, tmp_path: Path) -> None:
        write_pairs(tmp_path / "data")
        picture = (tmp_path / "data" / "1.png").read_bytes()
        made = bench(*self.WORDS)
        (tmp_path / "run" / "reference.jsonl").unlink()
        (tmp_path / "data" / "1.png").write_bytes(b"no picture")
        assert made.task and made.kit
        known = made.task._precompute(made.model, made.kit, made.objective.reader)
        assert "mine/two" not in known and len(known) == 5
        (tmp_path / "data" / "1.png").write_bytes(picture)
        made.objective.reference.known = known  # type: ignore[attr-defined]
        step = next(n for n in range(3) if "mine/two" in [pair.id for pair in made.step(n).samples])
        with pytest.raises(DataError, match="mine/two: could be read now, and not when the reference was computed"):
            made.gradients(made.step(step))


def test_where_pictures_are_seen_twice_it_is_said() -> None:
    """`model=auto` may be any class; what its features are is not known."""

    def apart(name: str, spec: Any = None) -> str | None:
        family = next(family for family in FAMILIES if family.name == name).spec
        _, collator = encoding(spec=spec or family)
        return PairReader(collator).apart_because(family.load_model(CPU))

    assert apart("qwen25vl") is None
    assert apart("mllama") == "this family makes no features of them apart from the text"
    path = compose().model.folder()
    auto = compose("model=auto", f"model.path={path}", "precision=fp32").model
    assert apart("qwen25vl", auto) == "no test shows for this model that once is enough"


def refused(message: str, trainer: dict[str, Any], **fields: Any) -> None:
    config = compose("trainer=dpo", "dataset=demo_dpo", "recipe=lora_llm")
    chosen = config.trainer.model_copy(update=trainer)
    with pytest.raises(ConfigError, match=literally(message)):
        task_of(config.model_copy(update=fields | {"trainer": chosen})).check()


def test_contradictions_are_refused_before_anything_starts() -> None:
    config = compose("trainer=dpo", "dataset=demo_dpo", "recipe=lora_llm")
    task_of(config).check()
    off = {"reference": "adapters_off"}
    refused("the recipe has no adapters; use copy or precomputed", off, recipe=compose().recipe)
    refused("the start is not the base", off, model=config.model.model_copy(update={"adapter": "/nowhere"}))
    biased = config.recipe.llm.model_copy(update={"bias": True})
    recipe = config.recipe.model_copy(update={"llm": biased})
    refused("recipe.llm.bias=true trains biases in place, which stay when adapters are off", off, recipe=recipe)
    augmented = {"mine": config.dataset["demo_dpo"].model_copy(update={"augment": Augmentation(flip=0.5)})}
    refused("mine changes its pictures at random (augment)", {"reference": "precomputed"}, dataset=augmented)
    two = config.strategy.model_copy(update={"ranks": 2})
    refused("aot sorts all pairs of a step, and 2 ranks share it", {"loss": "sigmoid+aot"}, strategy=two)
    best = config.evaluation.model_copy(update={"best_by": "exact_match", "every_steps": 2})
    refused("is not among this run's metrics: preference_accuracy, preference_margin", {}, evaluation=best)
