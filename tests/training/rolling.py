"""A GRPO objective on a tiny model and a few prompts, as tests of several files put it together."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import yaml
from torch import Tensor

from tests.support import PROJECT, encoding, tiny, tiny_processor
from vlmft.config.spec import validate
from vlmft.encoding.batching import BatchingSpec, Padded
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.loading import EncodedGroup
from vlmft.scoring import MetricSpec, Reward
from vlmft.training.answered import Completion
from vlmft.training.grpo import GrpoObjective
from vlmft.training.grpo_spec import Grpo
from vlmft.training.rollouts import OwnRoller, Roller
from vlmft.training.rollouts_spec import OwnRollouts
from vlmft.types import Sample, Solution


class Varied(MetricSpec):
    """A number from 0 to 1 that the text alone decides, and that no two texts are likely to share."""

    def score(self, prediction: str, reference: str) -> float:
        return zlib.crc32(prediction.encode()) % 1001 / 1000


VARIED = {"varied": Reward(weight=2.0, metric=Varied())}


def grpo_values() -> dict[str, Any]:
    """The values of conf/trainer/grpo.yaml, with rollouts by transformers."""
    values: dict[str, Any] = yaml.safe_load((PROJECT / "conf/trainer/grpo.yaml").read_text())
    del values["defaults"]
    return values | {"rollouts": OwnRollouts()}


def spec(**changes: Any) -> Grpo:
    """conf/trainer/grpo.yaml with short completions, and some values changed."""
    return validate(
        Grpo, grpo_values() | {"num_generations": 3, "max_new_tokens": 6, "rollout_batch_size": 4} | changes
    )


def prompts(samples: Sequence[Sample], encoder: Encoder | None = None) -> list[Encoded]:
    """The samples as prompts with their solutions."""
    encoder = encoder or Encoder(tiny(), tiny_processor(), learns=Solution)
    return [encoder.encode(sample) for sample in samples]


def objective(
    model: Any,
    collator: Collator | None = None,
    batching: BatchingSpec | None = None,
    rewards: dict[str, Reward] | None = None,
    seed: int = 0,
    num_steps: int = 100,
    ahead: Callable[[int], EncodedGroup] | None = None,
    reference: Any = None,
    roller: Roller | None = None,
    **changes: Any,
) -> GrpoObjective:
    """An objective whose spec has some values changed."""

    def none_ahead(step: int) -> EncodedGroup:
        raise AssertionError(f"step {step} was read ahead")

    found, collator = spec(**changes), collator or encoding()[1]
    return GrpoObjective(
        found,
        model,
        roller or OwnRoller(model, collator, found, seed),
        collator,
        batching or Padded(max_tokens=8192),
        VARIED if rewards is None else rewards,
        num_steps,
        ahead or none_ahead,
        reference,
    )


def drawn(completions: Sequence[Completion]) -> list[list[int]]:
    """The tokens of each completion."""
    return [one.rollout.ids.tolist() for one in completions]


def gradients(made: GrpoObjective, cuts: Sequence[Sequence[Completion]]) -> tuple[float, dict[str, Tensor]]:
    """The loss of a step cut like this, and the gradient that it leaves at each trained weight."""
    model = made.model
    model.zero_grad(set_to_none=True)
    weights = tuple(map(sum, zip(*(made.weights(cut) for cut in cuts), strict=True)))
    total = 0.0
    for cut in cuts:
        share = made.share(model, cut, weights)
        share.loss.backward()
        total += share.loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def figures(made: GrpoObjective, completions: Sequence[Completion]) -> dict[str, float]:
    """What a step in one micro-batch says of itself."""
    with torch.no_grad():
        share = made.share(made.model, completions, made.weights(completions))
    return {name: float(amount) / weight for name, (amount, weight) in share.figures.items()}
