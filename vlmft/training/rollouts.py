"""Completions: what a model answers to prompts when it samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from vlmft.data.hashing import mix, salt
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.encoding.generating import answer_text, generating
from vlmft.training.grpo_spec import Grpo
from vlmft.training.ranks import rank
from vlmft.training.reference import judging
from vlmft.training.seen_once import by_blocks, seen_once

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion. T = its tokens."""

    ids: "Tensor"
    """int64 [T], with the token that ends it where it has one."""
    ended: bool
    """False where it was cut at `max_new_tokens`."""
    text: str
    """What rewards see: see `answer_text`."""
    logps: "Tensor | None" = None
    """float32 [T], under whoever drew it, where that is not the model that trains."""


class Roller(Protocol):
    """Whoever makes completions."""

    def __call__(self, step: int, prompts: Sequence[Encoded]) -> list[list[Rollout]]:
        """Answer each prompt as often as is asked for; called at steps that all ranks share, on all alike."""
        ...

    def close(self) -> None:
        """Give back what lies outside of this process."""
        ...


class OwnRoller:
    """The model that trains, by transformers.

    Args:
        seed: of the run; with the step and the rank it decides what is drawn, so that a resumed run draws the same.
    """

    def __init__(self, model: Any, collator: Collator, spec: Grpo, seed: int) -> None:
        self.model, self.collator, self.spec, self.seed = model, collator, spec, seed

    def __call__(self, step: int, prompts: Sequence[Encoded]) -> list[list[Rollout]]:
        """See `Roller`."""
        with random_state_of(self.seed, step, rank()):
            return roll_out(self.model, prompts, self.collator, self.spec)

    def close(self) -> None:
        """See `Roller`; there is nothing."""


def roll_out(model: Any, prompts: Sequence[Encoded], collator: Collator, spec: Grpo) -> list[list[Rollout]]:
    """Answer each prompt `spec.num_generations` times, by the global random state.

    Dropout is off. Tokens that stand for a picture's features are never drawn: a text that has more of them than
    pictures have features could not be learned from.
    """
    rows = [(number, prompt) for number, prompt in enumerate(prompts) for _ in range(spec.num_generations)]
    made: list[list[Rollout]] = [[] for _ in prompts]
    with judging(model), _sampling(model, collator, spec) as ends:
        for batch in _batches(rows, collator, spec.rollout_batch_size):
            order, times = by_blocks([prompt for _, prompt in batch])
            batch = [batch[place] for place in order]
            with seen_once(model, collator, times):
                rollouts = _generate(model, [prompt for _, prompt in batch], collator, ends)
            for (number, _), rollout in zip(batch, rollouts, strict=True):
                made[number].append(rollout)
    return made


@contextmanager
def random_state_of(*numbers: int) -> Iterator[None]:
    """Draw in the body from a state that `numbers` alone decide; what is drawn elsewhere does not notice."""
    seed = int(mix(np.array([salt("completions")], dtype=np.uint64), *numbers)[0] >> np.uint64(1))
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _sampling(model: Any, collator: Collator, spec: Grpo) -> Any:
    return generating(
        model,
        collator,
        do_sample=True,
        max_new_tokens=spec.max_new_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k or 0,  # transformers' own default is 50
        min_p=spec.min_p,
        repetition_penalty=spec.repetition_penalty,
        suppress_tokens=sorted(collator.family.feature_tokens(collator.processor)),
    )


def _batches(
    rows: Sequence[tuple[int, Encoded]], collator: Collator, size: int
) -> Iterator[Sequence[tuple[int, Encoded]]]:
    """Rows that are generated at once, `size` at most; those of different kinds share none."""
    kinds = collator.kinds([prompt for _, prompt in rows])
    for kind in dict.fromkeys(kinds):
        alike = [row for row, own in zip(rows, kinds, strict=True) if own == kind]
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


@torch.no_grad()
def _generate(model: Any, prompts: list[Encoded], collator: Collator, ends: frozenset[int]) -> list[Rollout]:
    inputs, _ = collator.on_device(prompts, model, padding_side="left")
    output = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :].cpu()
    rollouts = []
    for prompt, row in zip(prompts, output, strict=True):
        end = next((place for place, token in enumerate(row.tolist()) if token in ends), None)
        ids = row.clone() if end is None else row[: end + 1].clone()
        rollouts.append(Rollout(ids, end is not None, answer_text(prompt, ids, collator)))
    return rollouts
