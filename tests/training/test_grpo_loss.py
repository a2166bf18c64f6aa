"""The losses against TRL's own code, on the same log-probabilities. B = completions, K = token places."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.rolling import grpo_values
from vlmft.config.spec import validate
from vlmft.training.grpo_loss import Denominators, Extras, PolicyLoss, group_advantages, kl_estimate, policy_loss
from vlmft.training.grpo_spec import Grpo

B, K = 6, 5
LENGTHS = [5, 1, 3, 4, 2, 5]
LOSSES = ["grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]
MASK = torch.arange(K)[None, :] < torch.tensor(LENGTHS)[:, None]
STEP = Denominators(completions=B, tokens=sum(LENGTHS), learnt=sum(LENGTHS))
ADVANTAGES = torch.tensor([1.2, -0.7, 0.0, 0.4, -1.5, 2.0])


def spec(loss: str = "dapo", **changes: Any) -> Grpo:
    """conf/trainer/grpo.yaml with the values that `loss` needs, and some changed."""
    needs = {"cispo": {"epsilon_high": 1.3}, "luspo": {"importance_sampling": "sequence"}}.get(loss, {})
    return validate(Grpo, grpo_values() | {"max_new_tokens": 7, "loss": loss} | needs | changes)


def draw(seed: int, spread: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """New, old and the reference's log-probs [B, K]; the old ones differ enough for ratios to be clipped."""
    random = torch.Generator().manual_seed(seed)
    old = -torch.rand(B, K, generator=random) * 3 - 0.1
    new, ref = (old + spread * torch.randn(B, K, generator=random) for _ in range(2))
    return new.requires_grad_(), old, ref


def shares(spec: Grpo, new: Tensor, old: Tensor, ref: Tensor, cuts: list[list[int]]) -> list[PolicyLoss]:
    return [policy_loss(spec, new[c], old[c], MASK[c], ADVANTAGES[c], STEP, ref[c]) for c in cuts]


@pytest.fixture(scope="module")
def trl_loss() -> Any:
    """TRL's `GRPOTrainer._compute_loss` on given log-probs: a trainer with all that it reads, and no model."""
    from trl import GRPOTrainer

    def loss(
        spec: Grpo,
        new: Tensor,
        old: Tensor,
        ref: Tensor,
        weights: Tensor | None = None,
        drawn: Tensor | None = None,
        entropy: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        above, below = spec.sapo_temperatures
        args = SimpleNamespace(
            delta=spec.delta,
            use_bias_correction_kl=spec.weighed_kl,
            sapo_temperature_pos=above,
            sapo_temperature_neg=below,
            vespo_k_pos=spec.vespo_k[0],
            vespo_k_neg=spec.vespo_k[1],
            vespo_lambda_pos=spec.vespo_lambda[0],
            vespo_lambda_neg=spec.vespo_lambda[1],
            steps_per_generation=1,
        )
        metrics: dict[str, list[float]] = defaultdict(list)
        accelerator = SimpleNamespace(
            num_processes=1,
            reduce=lambda value, reduction: value,
            gather=lambda value: value,
            pad_across_processes=lambda value, dim, pad_index: value,
            sync_gradients=True,
        )
        entropy = torch.zeros(B, K) if entropy is None else entropy
        trainer = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *_, **__: (new, entropy, None),
            get_high_entropy_mask=lambda *given: GRPOTrainer.get_high_entropy_mask(
                SimpleNamespace(accelerator=accelerator), *given
            ),
            get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
            get_gamma_weights=GRPOTrainer.get_gamma_weights,
            args=args,
            accelerator=accelerator,
            model=SimpleNamespace(training=True),
            _metrics={"train": metrics},
            loss_type=spec.loss,
            importance_sampling_level=spec.importance_sampling,
            epsilon_low=spec.epsilon_low,
            epsilon_high=spec.epsilon_high,
            beta=spec.beta,
            max_completion_length=spec.max_new_tokens,
            top_entropy_quantile=spec.top_entropy,
            off_policy_mask_threshold=spec.off_policy_threshold,
            use_vllm=weights is not None,
            vllm_importance_sampling_correction=True,
            aux_loss_enabled=False,
            _entropy_bonus_enabled=spec.entropy_bonus > 0,
            entropy_coef=spec.entropy_bonus,
            use_adaptive_entropy=False,
            current_gradient_accumulation_steps=1,
        )
        ids = torch.zeros(B, K, dtype=torch.long)
        inputs = {
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1],
            "completion_ids": ids,
            "completion_mask": MASK.long(),
            "advantages": ADVANTAGES,
            "old_per_token_logps": old,
            "ref_per_token_logps": ref,
            "num_items_in_batch": MASK.sum(),
        }
        if weights is not None:
            inputs["importance_sampling_ratio"] = weights
        if drawn is not None:
            inputs["sampling_per_token_logps"] = drawn
        value = GRPOTrainer._compute_loss(trainer, None, inputs)
        return value, {name: values[0] for name, values in metrics.items()}

    return loss


@pytest.mark.parametrize("beta", [0.0, 0.4])
@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        *((loss, {}) for loss in LOSSES),
        ("grpo", {"importance_sampling": "sequence"}),  # GSPO
        ("sapo", {"importance_sampling": "sequence"}),
        ("dapo", {"epsilon_high": 0.28, "delta": 1.5}),
        ("dr_grpo", {"epsilon_low": 0.4, "epsilon_high": 0.1}),
        ("vespo", {"vespo_k": [1.0, 2.0], "vespo_lambda": [2.0, 0.5]}),
        ("sapo", {"sapo_temperatures": [2.0, 3.0]}),
    ],
)
def test_losses_and_gradients_equal_trls(trl_loss: Any, loss: str, changes: dict[str, Any], beta: float) -> None:
    chosen = spec(loss, beta=beta, **changes)
    for seed in range(3):
        new, old, ref = draw(seed)
        theirs, metrics = trl_loss(chosen, new, old, ref)
        (expected,) = torch.autograd.grad(theirs, new)
        found = policy_loss(chosen, new, old, MASK, ADVANTAGES, STEP, ref)
        (gradient,) = torch.autograd.grad(found.loss, new)
        assert found.loss.item() == pytest.approx(theirs.item(), abs=1e-5, rel=1e-5)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
        pairs = {"kl": "kl", "clip_ratio": "clip_ratio/region_mean", "clip_ratio/low": "clip_ratio/low_mean"}
        for ours, name in pairs.items():
            if name in metrics:
                total, weight = found.figures[ours]
                assert float(total) / weight == pytest.approx(metrics[name], abs=1e-6)
        assert ("kl" in found.figures) == (beta > 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_a_server_drew_is_weighed_as_trl_weighs_it(trl_loss: Any, loss: str) -> None:
    chosen, (new, old, ref) = spec(loss, beta=0.4), draw(0)
    weights = torch.rand(B, K, generator=torch.Generator().manual_seed(1)) * 2
    weights = weights.masked_fill(weights > 1.7, 0.0) * MASK + ~MASK  # TRL's are 1 where there is no token
    theirs, _ = trl_loss(chosen, new, old, ref, weights)
    (expected,) = torch.autograd.grad(theirs, new)
    found = policy_loss(chosen, new, old, MASK, ADVANTAGES, STEP, ref, Extras(weights=weights * MASK))
    (gradient,) = torch.autograd.grad(found.loss, new)
    assert found.loss.item() == pytest.approx(theirs.item(), abs=1e-5, rel=1e-5)
    assert found.loss.item() != pytest.approx(policy_loss(chosen, new, old, MASK, ADVANTAGES, STEP, ref).loss.item())
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        *((loss, {"entropy_bonus": 0.3, "top_entropy": 0.4}) for loss in LOSSES),
        *((loss, {"weighed_kl": True, "beta": 0.4, "off_policy_threshold": 0.1}) for loss in LOSSES),
        ("grpo", {"importance_sampling": "sequence", "weighed_kl": True, "beta": 0.4, "entropy_bonus": 0.1}),
        ("dapo", {"top_entropy": 0.0}),
    ],
)
def test_further_settings_equal_trls(trl_loss: Any, loss: str, changes: dict[str, Any]) -> None:
    chosen, (new, old, ref) = spec(loss, steps_per_generation=2, **changes), draw(0)
    random = torch.Generator().manual_seed(2)
    entropy = (torch.rand(B, K, generator=random) * 3).requires_grad_()
    drawn = old + 0.1 * torch.randn(B, K, generator=random)
    drawn[4] += 1.0  # of a negative advantage, and now unlikely
    theirs, _ = trl_loss(chosen, new, old, ref, None, drawn, entropy)
    expected = torch.autograd.grad(theirs, [new, entropy], allow_unused=True)
    learnt = (entropy >= np.quantile(entropy[MASK].detach().numpy(), 1 - chosen.top_entropy)) & MASK
    step = Denominators(B, sum(LENGTHS), float(learnt.sum()))
    extras = Extras(drawn_logps=drawn, entropy=entropy, learnt=learnt if chosen.top_entropy < 1 else None)
    found = policy_loss(chosen, new, old, MASK, ADVANTAGES, step, ref, extras)
    gradients = torch.autograd.grad(found.loss, [new, entropy], allow_unused=True)
    assert found.loss.item() == pytest.approx(theirs.item(), abs=1e-5, rel=1e-5)
    assert found.loss.item() != pytest.approx(shares(spec(loss), new, old, ref, [list(range(B))])[0].loss.item())
    torch.testing.assert_close(gradients[0], expected[0], atol=1e-5, rtol=1e-5)
    if chosen.entropy_bonus > 0:
        torch.testing.assert_close(gradients[1], expected[1], atol=1e-6, rtol=1e-5)
    if chosen.off_policy_threshold is not None:
        left_out, completions = found.figures["off_policy"]
        assert 0 < float(left_out) < completions


@pytest.mark.parametrize("loss", LOSSES)
def test_any_cut_into_micro_batches_adds_up_to_the_same(loss: str) -> None:
    chosen = spec(loss, beta=0.4)
    new, old, ref = draw(7)
    (whole,) = shares(chosen, new, old, ref, [list(range(B))])
    (expected,) = torch.autograd.grad(whole.loss, new)
    for cuts in ([[0, 1, 2], [3, 4, 5]], [[3], [0, 5, 1, 2], [4]], [[i] for i in range(B)]):
        parts = shares(chosen, new, old, ref, cuts)
        total = torch.stack([part.loss for part in parts]).sum()
        (gradient,) = torch.autograd.grad(total, new)
        assert total.item() == pytest.approx(whole.loss.item(), abs=1e-6)
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)
        for name, (value, weight) in whole.figures.items():
            assert sum(float(part.figures[name][0]) for part in parts) == pytest.approx(float(value), abs=1e-5)
            assert sum(part.figures[name][1] for part in parts) == pytest.approx(weight)


@pytest.mark.parametrize("loss", LOSSES)
def test_at_ratio_1_a_step_goes_up_the_advantages(loss: str) -> None:
    """All losses are the policy gradient there: a token's share is its advantage over the loss's own denominator."""
    new, _, ref = draw(3)
    (gradient,) = torch.autograd.grad(policy_loss(spec(loss), new, new.detach(), MASK, ADVANTAGES, STEP, ref).loss, new)
    lengths = torch.tensor(LENGTHS)[:, None]
    by = {"grpo": B * lengths, "sapo": B * lengths, "luspo": B, "dr_grpo": B * 7}.get(loss, sum(LENGTHS))
    torch.testing.assert_close(gradient, -ADVANTAGES[:, None] * MASK / by)


def test_a_masked_completion_adds_nothing_and_still_counts() -> None:
    new, old, ref = draw(1)
    mask = MASK.clone()
    mask[0] = False
    for loss in LOSSES:
        chosen = spec(loss, beta=0.4)
        found = policy_loss(chosen, new, old, mask, ADVANTAGES, STEP, ref)
        (gradient,) = torch.autograd.grad(found.loss, new)
        assert math.isfinite(found.loss.item())
        assert gradient[0].eq(0).all() and gradient[1:][MASK[1:]].ne(0).any()
        rest = shares(chosen, new, old, ref, [[1, 2, 3, 4, 5]])[0]
        assert found.loss.item() == pytest.approx(rest.loss.item(), abs=1e-6)
    nothing = policy_loss(spec(), new, old, torch.zeros_like(MASK), ADVANTAGES, Denominators(B, 0, 0), ref)
    assert nothing.loss.item() == 0.0


def test_the_kl_estimate_is_0_where_equal_and_never_below() -> None:
    new, old, _ = draw(2)
    assert kl_estimate(old, old).eq(0).all()
    assert kl_estimate(new, old).gt(0).all()
    random = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(50, generator=random).log_softmax(0) for _ in range(2))
    drawn = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=random)
    exact = float((policy.exp() * (policy - reference)).sum())
    assert float(kl_estimate(policy[drawn], reference[drawn]).mean()) == pytest.approx(exact, rel=0.02)


REWARDS = torch.tensor([[7.0, 2.0, 0.0, 2.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 5.0]])


def test_advantages_are_above_the_groups_mean() -> None:
    plain, spread = group_advantages(REWARDS, "none")
    assert plain.tolist() == [[4.25, -0.75, -2.75, -0.75], [0, 0, 0, 0], [-1.25, -1.25, -1.25, 3.75]]
    assert spread.tolist() == pytest.approx([2.98607881, 0.0, 2.5])  # divided by G - 1
    by_group, _ = group_advantages(REWARDS, "group")
    assert by_group[0].tolist() == pytest.approx((plain[0] / (2.98607881 + 1e-4)).tolist())
    assert by_group[1].eq(0).all()
    by_batch, _ = group_advantages(REWARDS, "batch")
    torch.testing.assert_close(by_batch, plain / (float(REWARDS.std()) + 1e-4))
    of_one_rank, _ = group_advantages(REWARDS[:1], "batch", batch=REWARDS)
    torch.testing.assert_close(of_one_rank, by_batch[:1])
