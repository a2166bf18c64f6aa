"""Each loss of preference pairs has the value that TRL's own trainer computes, and is the same in any cut."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from tests.support import PROJECT, compose, tiny_processor
from vlmft.training import Dpo
from vlmft.training.pairs import PairReader
from vlmft.training.preference import LOSSES, MIXES, SORTING, WITHOUT_REFERENCE
from vlmft.training.preference_loss import FORMULAS, Pairs, answer_log_probs, preference_losses, wpo_weights

TRL_LOSSES = sorted(LOSSES - (WITHOUT_REFERENCE - {"sft"}))
SMOOTHING = {"exo_pair": 1e-3, "robust": 0.1, "aot": 0.2, "aot_unpaired": 0.2}
ROWS = [
    {"prompt": "Name the colour.", "chosen": " red", "rejected": " a black background"},
    {"prompt": "Which digit is written here?", "chosen": " the digit is seven, or nine", "rejected": " no"},
    {"prompt": "Are you a helpful assistant?", "chosen": " yes", "rejected": " no"},
    {"prompt": "The quick brown fox?", "chosen": " jumps over the lazy dog", "rejected": " blue blue blue"},
]


def knobs(loss: str, **values: Any) -> Dpo:
    """The spec of trainer=dpo with a loss that TRL has as well, and other values beside."""
    names = {term.partition("@")[0] for term in loss.split("+")}
    fitting = {
        "label_smoothing": max(SMOOTHING.get(name, 0.0) for name in names),
        "reference": "none" if names <= WITHOUT_REFERENCE else "copy",
    }
    return Dpo.model_validate(dict(compose("trainer=dpo").trainer) | {"loss": loss, "beta": 0.3} | fitting | values)


@cache
def trl_trainer() -> DPOTrainer:
    """A trainer on a tiny LLM, with another one as its reference."""
    tokenizer = tiny_processor().tokenizer

    def model(seed: int) -> Qwen2ForCausalLM:
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2,
        )  # fmt: skip
        return Qwen2ForCausalLM(config)

    args = DPOConfig(
        output_dir="nowhere", report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=len(ROWS), max_length=None, disable_tqdm=True, use_weighting=True,
    )  # fmt: skip
    return DPOTrainer(
        model(0), ref_model=model(1), args=args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer
    )


@cache
def trl_batch() -> dict[str, Tensor]:
    trainer = trl_trainer()
    return cast("dict[str, Tensor]", trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))]))


def trl_loss(spec: Dpo) -> float:
    """What TRL's trainer computes of the batch, set to `spec`."""
    trainer = trl_trainer()
    trainer.loss_types, trainer.loss_weights = list(spec.losses), list(spec.losses.values())
    trainer.beta, trainer.label_smoothing, trainer.ld_alpha = spec.beta, spec.label_smoothing, spec.ld_alpha
    divergences = {"js": "js_divergence", "alpha": "alpha_divergence"}
    trainer.f_divergence_type = divergences.get(spec.f_divergence, spec.f_divergence)
    trainer.f_alpha_divergence_coef = spec.f_alpha
    trainer.args.discopop_tau, trainer.use_weighting = spec.discopop_tau, spec.wpo
    with torch.no_grad():
        return float(trainer._compute_loss(trainer.model, dict(trl_batch()), return_outputs=False))


@cache
def token_log_probs(which: str) -> tuple[Tensor, Tensor]:
    """[2B, K] of the policy or the reference, by log_softmax over all logits, and the mask."""
    trainer, batch = trl_trainer(), trl_batch()
    model = trainer.model if which == "policy" else trainer.ref_model
    config = type(model)(model.config)  # TRL replaces the forward of its own
    config.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = config(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    log_probs = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return log_probs, batch["completion_mask"][:, 1:].bool()


def pairs(ld_alpha: float | None = None) -> Pairs:
    """The batch as our losses take it."""
    (own, mask), (reference, _) = token_log_probs("policy"), token_log_probs("reference")
    chosen, rejected = answer_log_probs(own, mask, ld_alpha).chunk(2)
    ref_chosen, ref_rejected = answer_log_probs(reference, mask, ld_alpha).chunk(2)
    lengths = mask.sum(1).chunk(2)
    return Pairs(chosen, rejected, ref_chosen, ref_rejected, *lengths, -(own * mask).sum(1).chunk(2)[0])


def total(found: Pairs, spec: Dpo, num_pairs: float, num_tokens: float) -> Tensor:
    return torch.stack(list(preference_losses(found, spec, num_pairs, num_tokens).values())).sum()


def ours(spec: Dpo, found: Pairs | None = None) -> Tensor:
    found = found or pairs(spec.ld_alpha)
    return total(found, spec, len(found.chosen), float(found.chosen_tokens.sum()))


def test_every_name_has_a_formula_and_trl_s_are_all_there() -> None:
    assert FORMULAS.keys() == LOSSES
    assert len(TRL_LOSSES) == 15
    lengths = pairs()
    assert (lengths.chosen_tokens > lengths.rejected_tokens).any()
    assert (lengths.chosen_tokens < lengths.rejected_tokens).any()


@pytest.mark.parametrize("loss", [*TRL_LOSSES, "mpo", "sigmoid@2.0+sft@0.5", "hinge+robust@0.3"])
def test_the_value_is_trl_s(loss: str) -> None:
    spec = knobs(loss)
    assert float(ours(spec)) == pytest.approx(trl_loss(spec), rel=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "aot", "bco_pair"])
@pytest.mark.parametrize("ld_alpha", [0.0, 0.4])
def test_tokens_beyond_the_shorter_answer_count_as_in_trl(loss: str, ld_alpha: float) -> None:
    spec = knobs(loss, ld_alpha=ld_alpha)
    assert float(ours(spec)) == pytest.approx(trl_loss(spec), rel=1e-5)
    assert float(ours(spec)) != pytest.approx(float(ours(knobs(loss))), rel=1e-3)


@pytest.mark.parametrize(
    "values",
    [{"f_divergence": "forward_kl"}, {"f_divergence": "js"}]
    + [{"f_divergence": "alpha", "f_alpha": value} for value in (0.5, 1.0, 2.0)],
    ids=str,
)
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "exo_pair"])
def test_each_divergence_is_trl_s(loss: str, values: dict[str, Any]) -> None:
    spec = knobs(loss, beta=0.01, **values)
    assert float(ours(spec)) == pytest.approx(trl_loss(spec), rel=1e-5)


class _Read:
    """Stands for a collator: gives TRL's batch."""

    family = None
    packs = False

    def for_loss(self, sequences: Any, model: Any, times: int) -> Any:
        batch = trl_batch()
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}, labels


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "sigmoid@0.5+bco_pair"])
def test_weights_of_pairs_are_trl_s(loss: str) -> None:
    model = Qwen2ForCausalLM(trl_trainer().model.config)
    model.load_state_dict(trl_trainer().model.state_dict())
    with torch.no_grad():
        read = PairReader(cast("Any", _Read())).tokens(model, [], own=True)
    assert read.own is not None and not read.own.requires_grad
    weights = wpo_weights(read.own, read.mask)
    assert weights.min() < 0.9 * weights.max()
    spec = knobs(loss, wpo=True)
    assert float(ours(spec, replace(pairs(), weight=weights))) == pytest.approx(trl_loss(spec), rel=1e-5)
    torch.testing.assert_close(read.log_probs.sum(1), answer_log_probs(*token_log_probs("policy"), None))


@pytest.mark.parametrize("loss", ["simpo", "cpo"])
def test_losses_without_a_reference_are_trl_s(loss: str) -> None:
    found, spec = pairs(), knobs(loss)
    means = (found.chosen / found.chosen_tokens, found.rejected / found.rejected_tokens)
    trainer = SimpleNamespace(
        beta=spec.beta, alpha=0.0, label_smoothing=0.0, simpo_gamma=spec.simpo_gamma,
        loss_type={"cpo": "sigmoid"}.get(loss, loss), accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    expected = CPOTrainer.cpo_loss(trainer, *(means if loss == "simpo" else (found.chosen, found.rejected)))[0]
    torch.testing.assert_close(FORMULAS[loss](found, spec), expected, rtol=1e-5, atol=0)


def test_odds_ratios_are_trl_s_and_finite_where_an_answer_is_certain() -> None:
    found, spec = pairs(), knobs("orpo")
    trainer = SimpleNamespace(beta=spec.beta, accelerator=SimpleNamespace(device="cpu"))
    means = (found.chosen / found.chosen_tokens, found.rejected / found.rejected_tokens)
    expected = -ORPOTrainer.odds_ratio_loss(trainer, *means)[0]
    torch.testing.assert_close(FORMULAS["orpo"](found, spec), expected, rtol=1e-5, atol=0)
    nothing = torch.zeros(1, requires_grad=True)
    one = torch.ones(1)
    certain = FORMULAS["orpo"](Pairs(nothing, -one, one, one, one, one, one), spec)
    certain.sum().backward()
    assert certain.isfinite().all() and nothing.grad is not None and nothing.grad.isfinite().all()


def part(whole: Pairs, rows: slice) -> Pairs:
    return Pairs(*(getattr(whole, name)[rows] for name in Pairs.__slots__ if name != "weight"))


@pytest.mark.parametrize("loss", sorted(LOSSES - SORTING | MIXES.keys()))
def test_any_cut_into_micro_batches_adds_up(loss: str) -> None:
    spec = knobs(loss)
    whole = pairs()
    tokens = float(whole.chosen_tokens.sum())
    shares = [total(part(whole, rows), spec, 4, tokens) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(shares), ours(spec, whole), rtol=1e-6, atol=0)


def refused(match: str, **values: Any) -> None:
    with pytest.raises(ValueError, match=match):
        Dpo.model_validate(dict(compose("trainer=dpo").trainer) | values)


def test_contradictions_are_refused_with_the_fix() -> None:
    refused("sigmod: unknown loss; did you mean sigmoid", loss="sigmod")
    refused("kto learns from single answers, good or bad: take trainer=kto; .*apo_zero", loss="sigmoid+kto")
    refused("bco: unknown loss", loss="bco")
    refused("exo_pair needs label_smoothing above 0", loss="exo_pair")
    refused("robust needs label_smoothing below 0.5", loss="robust", label_smoothing=0.5)
    refused("label_smoothing=0.1 is read by none of loss=sigmoid", label_smoothing=0.1)
    refused("bco_pair, sft@1 takes no such|bco_pair takes no such", loss="bco_pair+sft", f_divergence="js")
    refused("loss=simpo asks no reference for anything; set reference=none", loss="simpo")
    refused("nca_pair compares each answer by itself with the reference", loss="sigmoid+nca_pair", reference="none")
    refused("nothing that f_divergence=js could diverge from", f_divergence="js", reference="none")
    refused("wpo=true weighs pairs, and aot, sft keeps none", loss="aot+sft", wpo=True)
    refused("there twice", loss="sigmoid+sigmoid@0.5")


def test_the_yaml_names_every_loss() -> None:
    text = (PROJECT / Path("conf/trainer/dpo.yaml")).read_text()
    assert [name for name in (*LOSSES, *MIXES) if name not in text] == []
