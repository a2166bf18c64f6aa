"""Each loss of single answers has the value that TRL's own trainer computes, and is the same in any cut."""

import math
from functools import cache
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import KTOConfig, KTOTrainer

from tests.support import PROJECT, compose, tiny_processor
from vlmft.training import Kto
from vlmft.training.kto_loss import kl_estimate, rated_losses

LOSSES = ("kto", "apo_zero_unpaired")
ROWS = [
    {"prompt": "Name the colour.", "completion": " red", "label": True},
    {"prompt": "Which digit is written here?", "completion": " the digit is seven, or nine", "label": False},
    {"prompt": "Are you a helpful assistant?", "completion": " no", "label": False},
    {"prompt": "The quick brown fox?", "completion": " jumps over the lazy dog", "label": True},
    {"prompt": "Name the digit.", "completion": " blue blue", "label": False},
]


def knobs(**values: Any) -> Kto:
    """The spec of trainer=kto with other values."""
    return Kto.model_validate(dict(compose("trainer=kto").trainer) | {"beta": 0.3} | values)


@cache
def trl_trainer() -> KTOTrainer:
    """A trainer on a tiny LLM, with another one as its reference."""
    tokenizer = tiny_processor().tokenizer

    def model(seed: int) -> Qwen2ForCausalLM:
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2,
        )  # fmt: skip
        return Qwen2ForCausalLM(config)

    args = KTOConfig(
        output_dir="nowhere", report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=len(ROWS), max_length=None, disable_tqdm=True,
    )  # fmt: skip
    return KTOTrainer(
        model(1), ref_model=model(0), args=args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer
    )


@cache
def trl_batch() -> dict[str, Tensor]:
    trainer = trl_trainer()
    return cast("dict[str, Tensor]", trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))]))


def trl_loss(spec: Kto) -> float:
    """What TRL's trainer computes of the batch, set to `spec`."""
    trainer = trl_trainer()
    trainer.loss_type, trainer.beta, trainer.calculate_KL = spec.loss, spec.beta, spec.needs_kl
    trainer.desirable_weight, trainer.undesirable_weight = spec.desirable_weight, spec.undesirable_weight
    with torch.no_grad():
        return float(trainer._compute_loss(trainer.model, dict(trl_batch()), return_outputs=False))


@cache
def log_ratios(of: str) -> Tensor:
    """Of each answer (""), or of another one behind its prompt ("KL_"), by log_softmax over all logits: [B]."""
    trainer, batch = trl_trainer(), trl_batch()
    found = []
    for model in (trainer.model, trainer.ref_model):
        plain = type(model)(model.config)  # TRL replaces the forward of its own
        plain.load_state_dict(model.state_dict())
        ids, mask = batch[f"{of}input_ids"], batch[f"{of}completion_mask"][:, 1:]
        with torch.no_grad():
            logits = plain(input_ids=ids, attention_mask=batch[f"{of}attention_mask"]).logits[:, :-1]
        found.append((logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1) * mask).sum(1))
    return found[0] - found[1]


def good() -> Tensor:
    return torch.tensor([row["label"] for row in ROWS])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("values", [{}, {"beta": 0.05}, {"desirable_weight": 1.7, "undesirable_weight": 0.4}], ids=str)
def test_the_value_is_trl_s(loss: str, values: dict[str, float]) -> None:
    spec = knobs(loss=loss, **values)
    kl = kl_estimate(log_ratios("KL_").tolist())
    assert kl > 0.5
    ours = rated_losses(log_ratios(""), good(), kl, spec)
    assert float(ours.mean()) == pytest.approx(trl_loss(spec), rel=1e-5)
    assert float(ours.mean()) != pytest.approx(float(rated_losses(log_ratios(""), good(), kl, knobs(beta=2.0)).mean()))


def test_the_kl_is_zero_where_it_would_be_negative_or_there_is_nothing_to_tell_it() -> None:
    assert kl_estimate([1.0, 2.0, -0.5]) == pytest.approx(2.5 / 3)
    assert kl_estimate([-1.0, 0.5]) == 0.0
    assert kl_estimate([]) == 0.0
    assert math.isnan(kl_estimate([math.nan, 1.0]))  # the step says so; it is no 0


def test_without_a_kl_it_is_the_other_loss() -> None:
    ratios = log_ratios("")
    kto, apo = (rated_losses(ratios, good(), 1.3, knobs(loss=loss)) for loss in LOSSES)
    assert not torch.allclose(kto, apo)
    torch.testing.assert_close(rated_losses(ratios, good(), 0.0, knobs()), apo)


def refused(match: str, **values: Any) -> None:
    with pytest.raises(ValueError, match=match):
        knobs(**values)


def test_what_is_not_there_is_refused() -> None:
    refused("loss\n.*'kto' or 'apo_zero_unpaired'", loss="bco")
    refused("desirable_weight\n.*greater than 0", desirable_weight=0.0)
    refused("reference\n.*'copy' or 'adapters_off'", reference="precomputed")


def test_the_yaml_names_every_loss() -> None:
    text = (PROJECT / "conf/trainer/kto.yaml").read_text()
    assert [name for name in LOSSES if name not in text] == []
