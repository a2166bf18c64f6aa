import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import set_seed

from tests.support import CLOCKED, compose
from tests.training.classifying import CLASSES, class_bench, labelled_config, shake_head, write_labelled
from tests.training.test_checkpoint import assert_equal
from tests.training.test_trainer import Singles, same_gradients
from vlmft.encoding import Packed
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.errors import ConfigError
from vlmft.models.classifier import backbone_of
from vlmft.training import EarlyStopping, commit
from vlmft.training.checkpoint import Checkpoints
from vlmft.training.classification import Patience
from vlmft.training.pack_proof import PackProof

SLOW = [pytest.param(recipe, marks=pytest.mark.slow) for recipe in ("fft", "projector")]
RECIPES = ["lora_llm", "lora_llm_nf4", *SLOW]
LOSSES = ["cross_entropy", "focal", "class_balanced", "class_balanced_focal"]
COUNTS = [3, 2, 1]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled"))


def by_hand(loss: str, logits: list[list[float]], truth: list[int]) -> float:
    """The papers' formulas, number by number: beta 0.999, gamma 2."""
    weights = [1.0] * 3
    if loss.startswith("class_balanced"):
        raw = [(1 - 0.999) / (1 - 0.999**n) for n in COUNTS]
        weights = [3 * weight / sum(raw) for weight in raw]
    total = 0.0
    for row, own in zip(logits, truth, strict=True):
        p = math.exp(row[own]) / sum(map(math.exp, row))
        total += weights[own] * (1 - p) ** (2 if "focal" in loss else 0) * -math.log(p)
    return total / len(truth)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_s_loss_is_the_chosen_one_under_every_recipe(tmp_path: Path, data_file: Path, recipe: str) -> None:
    if recipe.endswith("nf4"):
        pytest.importorskip("bitsandbytes")
    made = class_bench(tmp_path, labelled_config(data_file, f"recipe={recipe}"))
    shake_head(made.model)
    step = made.step()
    truth = [CLASSES.index(sample.target.names[0]) for sample in step.samples]  # type: ignore[union-attr]
    assert sorted(truth) == [0, 0, 0, 1, 1, 2]
    logits = made.logits(step).tolist()
    found = {}
    for loss in LOSSES:
        chosen = compose("trainer=classification", f"trainer/loss={loss}").trainer.loss  # type: ignore[attr-defined]
        made.task.config = made.config.model_copy(
            update={"trainer": made.config.trainer.model_copy(update={"loss": chosen})}
        )
        made.trainer.parts.objective = made.task.objective(made.model, made.kit)
        made.model.zero_grad()
        found[loss] = float(made.trainer.training_step(made.model, step))
        assert found[loss] == pytest.approx(by_hand(loss, logits, truth), rel=1e-3)
        assert any(p.grad is not None and p.grad.any() for p in made.model.head.parameters())
    assert len({round(value, 3) for value in found.values()}) == 4


@pytest.mark.parametrize("recipe", ["fft", "lora_llm"])
def test_a_step_is_the_same_in_one_micro_batch_as_in_many(tmp_path: Path, data_file: Path, recipe: str) -> None:
    config = labelled_config(data_file, f"recipe={recipe}", "trainer/loss=class_balanced_focal")
    made = class_bench(tmp_path, config)
    shake_head(made.model)
    step = made.step()
    loss, gradients = made.gradients(step)
    whole = made.trainer.meters.read() | made.trainer._figures()
    made.trainer.parts.batching = Singles(max_tokens=8192)
    other, other_gradients = made.gradients(step)
    figures = made.trainer.meters.progress.figures
    assert made.trainer.meters.read()["micro_batches"] == 6 and whole["micro_batches"] < 6
    assert other == pytest.approx(loss, rel=1e-5)
    assert same_gradients(gradients, other_gradients) < 1e-4
    names = {"accuracy", *(f"{what}/{name}" for what in ("accuracy", "loss") for name in CLASSES)}
    assert figures.keys() == names
    assert {name: figures[f"loss/{name}"][1] for name in CLASSES} == {"cat": 3, "dog": 2, "fish": 1}
    assert figures["accuracy"][0] == sum(figures[f"accuracy/{name}"][0] for name in CLASSES)


@pytest.mark.parametrize(
    ("recipe", "pooling"), [("fft", "last"), ("lora_llm", "mean"), pytest.param("fft", "max", marks=pytest.mark.slow)]
)
def test_a_step_is_the_same_in_packs_as_in_padded_rows(
    tmp_path: Path, data_file: Path, recipe: str, pooling: str
) -> None:
    words = (f"recipe={recipe}", f"trainer.head.pooling={pooling}", "precision=fp32")
    made = class_bench(tmp_path, labelled_config(data_file, *words, "batching=packed"))
    rows = class_bench(tmp_path, labelled_config(data_file, *words, "batching=grouped"))
    for one in (made, rows):
        set_seed(2)  # the adapters' first weights
        shake_head(one.model)
    rows.model.load_state_dict(made.model.state_dict())
    step = made.step()
    loss, gradients = rows.gradients(step)
    lengths = [sample.num_tokens for sample in step.samples]
    for max_tokens in (sum(lengths), max(lengths) + 20):
        made.trainer.parts.batching = Packed(max_tokens=max_tokens)
        other, other_gradients = made.gradients(step)
        assert other == pytest.approx(loss, rel=1e-5)
        assert same_gradients(gradients, other_gradients) < 1e-5
        assert made.trainer.meters.read()["padding"] == 0


def test_the_first_pack_is_looked_at_as_the_head_sees_it(tmp_path: Path, data_file: Path) -> None:
    """The head begins with the same logits for all: what it is given is compared."""
    made = class_bench(tmp_path, labelled_config(data_file, "batching=packed", "precision=fp32"))
    said: list[str] = []
    made.trainer.parts.look_at_packs = PackProof(made.kit.collator, "fp32", said.append, made.task.reading())
    made.gradients(made.step())
    assert len(said) == 1 and "in a pack: its pooled states are as alone (within " in said[0]

    class Leaking(Collator):
        def for_loss(self, samples: Sequence[Encoded], model: Any) -> Any:
            inputs, labels = super().for_loss(samples, model)
            ends = inputs["attention_mask"][0, 0, 0]
            spoilt = torch.stack([ends[0], *(ends[1:-1] - 1), ends[-1]])
            return inputs | {"attention_mask": spoilt.expand_as(inputs["attention_mask"])}, labels

    leaking = Leaking(made.config.model, made.kit.collator.processor, packs=True)
    made.trainer.parts.look_at_packs = PackProof(leaking, "fp32", said.append, made.task.reading())
    with pytest.raises(ConfigError, match="is not computed as it is alone: its pooled states differ by"):
        made.gradients(made.step())


def test_several_labels_are_asked_one_by_one(tmp_path: Path) -> None:
    config = labelled_config(write_labelled(tmp_path / "data", multi=True), multi=True)
    made = class_bench(tmp_path, config)
    shake_head(made.model)
    step = made.step()
    total = 0.0
    right = 0
    for sample, row in zip(step.samples, made.logits(step).tolist(), strict=True):
        names = sample.target.names  # type: ignore[union-attr]
        p = [1 / (1 + math.exp(-value)) for value in row]
        total -= sum(math.log(p[i] if name in names else 1 - p[i]) for i, name in enumerate(CLASSES)) / 3
        right += {name for i, name in enumerate(CLASSES) if p[i] >= 0.5} == {*names}
    assert float(made.trainer.training_step(made.model, step)) == pytest.approx(total / 6, rel=1e-4)
    assert made.trainer.meters.progress.figures["accuracy"] == (right, 6)


@pytest.mark.parametrize("recipe", ["ln_vt_lora_llm", *SLOW])
def test_what_is_frozen_stays_and_the_rest_moves(tmp_path: Path, data_file: Path, recipe: str) -> None:
    words = ("trainer.max_steps=3", "trainer/head=mlp", "optim.weight_decay=0")
    made = class_bench(tmp_path, labelled_config(data_file, f"recipe={recipe}", *words))
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    made.trainer.train()
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    head = {f"head.layers.{layer}.{part}" for layer in (1, 4) for part in ("weight", "bias")}
    assert head <= trained and moved <= trained
    # From a head of zeros it takes the first step to have anything to pass on, and an adapter's B the next.
    assert {name for name in trained - moved if "lora_A" not in name} == set()
    grouped = [p for group in made.trainer.optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(trained)


def test_the_head_trains_at_its_own_rate(tmp_path: Path, data_file: Path) -> None:
    words = ("trainer.head.lr=0.007", "trainer.head.lr_factor=null", "optim.weight_decay=0.1")
    made = class_bench(tmp_path, labelled_config(data_file, *words))
    groups = {(g["component"], g["weight_decay"]): g for g in made.task.groups(made.model)}
    assert groups["head", 0.1]["names"] == ["head.layers.1.weight"]
    assert groups["head", 0.0]["names"] == ["head.layers.1.bias"]
    assert {groups["head", decay]["lr"] for decay in (0.0, 0.1)} == {0.007}
    assert groups["llm", 0.1]["lr"] == made.config.optim.lr
    row = made.task.rows(made.model)[-1]
    assert (row.component, row.policy, row.trainable, row.lr) == ("head", "linear, 3 classes", 195, (0.007, 0.007))


def test_a_probe_finds_what_no_gradient_reaches_and_leaves_the_head_alone(tmp_path: Path, data_file: Path) -> None:
    from vlmft.recipes.probe import freeze_unreached

    made = class_bench(tmp_path, labelled_config(data_file))
    found = freeze_unreached(made.task.backbone(made.model), lambda _: made.task.probe_loss(made.model, made.kit))
    assert found == []
    assert all(p.requires_grad and p.grad is None for p in made.model.head.parameters())
    made.model.model.model.language_model.norm.weight.requires_grad_(True)
    extra = torch.nn.Linear(2, 2)
    made.model.model.model.extra = extra
    assert freeze_unreached(made.task.backbone(made.model), lambda _: made.task.probe_loss(made.model, made.kit)) == [
        "model.extra.weight",
        "model.extra.bias",
    ]


@pytest.mark.parametrize("recipe", ["lora_llm", pytest.param("projector", marks=pytest.mark.slow)])
def test_gradient_checkpointing_changes_no_number(tmp_path: Path, data_file: Path, recipe: str) -> None:
    words = (f"recipe={recipe}", "trainer.max_steps=2")
    plain, frugal = (
        class_bench(tmp_path, labelled_config(data_file, *words, f"trainer.gradient_checkpointing={on}"))
        for on in ("false", "true")
    )
    plain.trainer.train()
    calls: list[bool] = []
    backbone = backbone_of(frugal.model.model)
    backbone.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    frugal.trainer.train()
    micro_batches = sum(int(line["micro_batches"]) for line in frugal.lines)
    assert len(calls) == 2 * micro_batches  # forward, and once more in the backward pass
    assert [line["loss"] for line in frugal.lines] == [line["loss"] for line in plain.lines]
    assert_equal(dict(frugal.model.state_dict()), dict(plain.model.state_dict()))


def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(tmp_path: Path, data_file: Path) -> None:
    words = (
        "recipe=lora_llm",
        "recipe.llm.dropout=0.1",
        "trainer/head=mlp",
        "trainer.max_steps=4",
        "global_batch_size=4",
    )
    config = labelled_config(data_file, *words, "trainer/sampler=balanced")

    def begin(folder: str, every: int | None, start: commit.Committed | None = None):
        made = class_bench(tmp_path, config)
        if start:
            made.trainer.parts.loader.start = start.step
            set_seed(12345)  # what a new process draws is not what the old one would have drawn
        checkpoints = Checkpoints(made.trainer, tmp_path / folder, every, 2, {}, start)
        made.trainer.add_callback(checkpoints)
        return made

    whole = begin("whole", 2)
    whole.trainer.parts.objective.judged({})  # nothing to stop by
    whole.trainer.train()
    start, _ = commit.newest(tmp_path / "whole")
    assert start is not None and start.step == 2
    again = begin("again", None, start)
    again.trainer.train()
    assert_equal(dict(again.model.state_dict()), dict(whole.model.state_dict()))
    assert_equal(again.trainer.optimizer.state_dict(), whole.trainer.optimizer.state_dict())
    lines, others = (
        [{name: value for name, value in line.items() if name not in CLOCKED} for line in made.lines]
        for made in (whole, again)
    )
    assert len(lines) == 4 and others == lines[2:]


def over(patience: Patience, *scores: float) -> list[bool]:
    """Whether it is at its end after each of these evaluations."""
    found = []
    for score in scores:
        patience.count(score)
        found.append(patience.is_over)
    return found


class TestPatience:
    WORDS = ("trainer.early_stopping.patience=2", "evaluation.every_steps=1", "evaluation.best_by=f1_macro")

    def test_counts_evaluations_without_a_better_score(self) -> None:
        patience = Patience(EarlyStopping(patience=2, threshold=0.1))
        # 0.55 beats 0.5 by less than 0.1; 0.65 beats it by more; then two do not.
        assert over(patience, 0.5, 0.55, 0.65, 0.7, 0.74) == [False] * 4 + [True]
        assert patience.best == 0.65

    def test_of_none_never_ends(self) -> None:
        assert not any(over(Patience(EarlyStopping(patience=None, threshold=0.0)), *[0.1] * 50))

    def test_an_equal_score_is_no_better(self) -> None:
        assert over(Patience(EarlyStopping(patience=1, threshold=0.0)), 0.5, 0.5) == [False, True]

    def test_is_part_of_a_checkpoint(self, tmp_path: Path, data_file: Path) -> None:
        made = class_bench(tmp_path, labelled_config(data_file, *self.WORDS))
        objective = made.trainer.parts.objective
        for score in (0.5, 0.4):
            objective.judged({"f1_macro": score, "accuracy": 1.0})
        assert not objective.is_over and objective.state() == {"best": 0.5, "waited": 1}
        other = made.task.objective(made.model, made.kit)
        other.restore(objective.state())
        other.judged({"f1_macro": 0.45})
        assert other.is_over

    def test_a_run_that_had_ended_is_resumed_without_a_step(self, tmp_path: Path, data_file: Path) -> None:
        """As where a signal came during the step that was its last."""
        made = class_bench(tmp_path, labelled_config(data_file, *self.WORDS, "trainer.max_steps=3"))
        before = {name: weight.clone() for name, weight in made.model.state_dict().items()}
        made.trainer.parts.objective.restore({"best": 0.5, "waited": 2})
        made.trainer.train()
        assert made.trainer.state.global_step == 0 and made.lines == []
        assert_equal(dict(made.model.state_dict()), before)
