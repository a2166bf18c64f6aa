"""Group relative policy optimisation: completions are made at the step, scored, compared in their group, and learned.

B = completions of a micro-batch, K = token places, T = tokens of a completion.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from vlmft.encoding.batching import BatchingSpec
from vlmft.encoding.collate import IGNORED, Collator
from vlmft.encoding.encoder import Encoded
from vlmft.encoding.loading import EncodedGroup
from vlmft.errors import DataError
from vlmft.scoring import Reward, rewards_of, weighted_sum
from vlmft.scoring.rewards import OWN
from vlmft.training.answered import Answered, Completion, followed, solution_of
from vlmft.training.grpo_loss import Denominators, Extras, group_advantages, policy_loss
from vlmft.training.grpo_spec import Grpo
from vlmft.training.loss import supervised_logits, token_log_probs
from vlmft.training.objective import Figure, Objective, Share
from vlmft.training.ranks import world_size
from vlmft.training.reference import judging
from vlmft.training.rollouts import Roller, Rollout
from vlmft.training.seen_once import by_blocks, seen_once
from vlmft.training.server_correction import drawn_by_server, drawn_figures, refuse_far

_Compute = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor]]
"""A micro-batch's inputs and labels -> values of its completions' tokens, and where they stand, both [B, K]."""
_EQUAL = 1e-6
"""A standard deviation of rewards below this is rounding: the group has nothing to compare."""


class GrpoObjective(Objective[Completion]):
    """Makes likelier what earned more than the other completions of its prompt.

    Args:
        model: unwrapped.
        roller: makes the completions.
        rewards: what completions earn, by name.
        ahead: this rank's samples of a later step, for `spec.steps_per_generation` above 1.
        num_steps: of the run; nothing is made for steps that never come.
        reference: within it, `model` computes as it did when the run began; needed where `spec.beta` is above 0.
    """

    nothing: ClassVar[str] = "has no completion"

    def __init__(
        self,
        spec: Grpo,
        model: Any,
        roller: Roller,
        collator: Collator,
        batching: BatchingSpec,
        rewards: Mapping[str, Reward],
        num_steps: int,
        ahead: Callable[[int], EncodedGroup],
        reference: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.spec = spec
        self.model = model
        self.roller = roller
        self.collator = collator
        self.batching = batching
        self.rewards = rewards
        self.num_steps = num_steps
        self.ahead = ahead
        self.reference = reference
        self.on_completions: Callable[[int, Sequence[Completion]], None] | None = None
        """Takes each step's completions of this rank; called on all ranks alike."""
        self._waiting: dict[int, list[Answered]] = {}
        """Completions of steps to come, made at an earlier one."""

    def begin(self, step: int, group: EncodedGroup) -> Sequence[Completion]:
        """Make the completions of the step, or take those that an earlier step made for it."""
        if step not in self._waiting:
            self._make(step, group)
        completions = list(self._completions(group.samples, self._waiting.pop(step)))
        if not completions:
            raise DataError(f"step {step + 1}: none of its samples could be read when its completions were made")
        self._compare(completions)
        if self.spec.top_entropy < 1:
            self._choose_tokens(completions)
        if self.reference is not None:
            with self.reference():
                found = self.log_probs(completions)
            for one, logps in zip(completions, found, strict=True):
                one.ref_logps = logps
        if self.on_completions is not None:
            self.on_completions(step, completions)
        return completions

    def weights(self, units: Sequence[Completion]) -> tuple[float, ...]:
        """The completions, their tokens that count, and of these the ones that are learned from."""
        counting = [unit for unit in units if self._counts(unit)]
        tokens = sum(len(unit.rollout.ids) for unit in counting)
        learnt = sum(len(unit.rollout.ids) if unit.learnt is None else int(unit.learnt.sum()) for unit in counting)
        return float(len(units)), float(tokens), float(learnt)

    def share(self, model: Any, units: Sequence[Completion], weights: Sequence[float]) -> Share:
        """See `Objective.share`."""
        order, times = by_blocks(units)
        units = [units[place] for place in order]
        inputs, labels = self.collator.on_device([unit.encoded for unit in units], model)
        with seen_once(model, self.collator, times):
            logps, entropy, places = self._log_probs(model, inputs, labels)
        counts = torch.tensor([self._counts(unit) for unit in units], device=logps.device)
        old = [unit.old_logps for unit in units]
        ref = [unit.ref_logps for unit in units]
        found = policy_loss(
            self.spec,
            logps,
            logps.detach() if old[0] is None else _in_places(old, places),
            places & counts[:, None],
            torch.tensor([unit.advantage for unit in units], device=logps.device),
            Denominators(*weights),
            None if ref[0] is None else _in_places(ref, places),
            self._extras(units, logps, entropy, places),
        )
        tokens = float(places.sum())
        figures = self._figures(units) | {"entropy": ((entropy.detach() * places).sum(), tokens)} | found.figures
        figures |= drawn_figures([unit.drawn for unit in units if unit.drawn])
        return Share(found.loss, labels.numel(), figures)

    def state(self) -> dict[str, Any]:
        """The completions of steps to come."""
        waiting = {step: [answered.state() for answered in all_] for step, all_ in self._waiting.items()}
        return {"ranks": world_size(), "waiting": waiting}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `state`. Where the ranks are others, they are made anew: each rank's prompts have changed."""
        if state["ranks"] == world_size():
            waiting = state["waiting"].items()
            self._waiting = {step: [Answered.of(one) for one in all_] for step, all_ in waiting}

    def close(self) -> None:
        """See `Objective`."""
        self.roller.close()

    def _counts(self, unit: Completion) -> bool:
        return unit.rollout.ended or not self.spec.mask_truncated

    def _make(self, step: int, group: EncodedGroup) -> None:
        """Answer the prompts of this step and of those that share its generation."""
        until = min(step - step % self.spec.steps_per_generation + self.spec.steps_per_generation, self.num_steps)
        groups = {step: group} | {later: self.ahead(later) for later in range(step + 1, until)}
        prompts = [prompt for of_step in groups.values() for prompt in of_step.samples]
        rollouts = iter(self.roller(step, prompts))
        for number, of_step in groups.items():
            self._waiting[number] = [self._scored(prompt, next(rollouts)) for prompt in of_step.samples]
        if self.spec.steps_per_generation > 1 or self.spec.corrects:
            for number, of_step in groups.items():
                self._note_log_probs(of_step.samples, self._waiting[number])
        if self.spec.corrects:
            refuse_far(
                self.spec,
                step,
                [one for number in groups for made in self._waiting[number] for one in made.drawn or ()],
            )

    def _scored(self, prompt: Encoded, rollouts: list[Rollout]) -> Answered:
        scores = [rewards_of(self.rewards, prompt.id, made.text, solution_of(prompt)) for made in rollouts]
        return Answered(prompt.id, rollouts, scores)

    def _completions(self, prompts: Sequence[Encoded], answered: Sequence[Answered]) -> Iterator[Completion]:
        """Join prompts and completions; a prompt that could not be read when they were made has none."""
        waiting = list(answered)
        for prompt in prompts:
            found = next((one for one in waiting if one.id == prompt.id), None)
            if found is None:
                continue
            waiting.remove(found)
            for number, (made, scores) in enumerate(zip(found.rollouts, found.scores, strict=True)):
                yield Completion(
                    encoded=followed(prompt, made.ids),
                    rollout=made,
                    solution=solution_of(prompt),
                    scores=scores,
                    reward=weighted_sum(self.rewards, scores),
                    advantage=0.0,
                    spread=0.0,
                    old_logps=found.old_logps[number] if found.old_logps else None,
                    drawn=found.drawn[number] if found.drawn else None,
                )

    def _compare(self, completions: Sequence[Completion]) -> None:
        """Give each completion its advantage over its group, which stands together."""
        rewards = torch.tensor([one.reward for one in completions]).view(-1, self.spec.num_generations)
        everywhere = None
        if self.spec.scale_rewards == "batch":
            everywhere = torch.tensor(
                [reward for share in gather_object([rewards.flatten().tolist()]) for reward in share]
            )
        advantages, spread = group_advantages(rewards, self.spec.scale_rewards, everywhere)
        for number, one in enumerate(completions):
            one.advantage = float(advantages.flatten()[number])
            one.spread = float(spread[number // self.spec.num_generations])

    def _note_log_probs(self, prompts: Sequence[Encoded], answered: Sequence[Answered]) -> None:
        found = iter(self.log_probs(list(self._completions(prompts, answered))))
        for one in answered:
            logps = [next(found) for _ in one.rollouts]
            if self.spec.steps_per_generation > 1:  # else the ratio is 1 by construction, whatever drops out
                one.old_logps = logps
            if self.spec.corrects:
                one.drawn = [drawn_by_server(self.spec, *pair) for pair in zip(logps, one.rollouts, strict=True)]

    def log_probs(self, completions: Sequence[Completion]) -> list[Tensor]:
        """The log-probs of each completion's tokens [T] under the model as it is now, without dropout."""
        return self._of_tokens(
            completions, lambda inputs, labels: token_log_probs(self.model, inputs, labels, self.spec.temperature)
        )

    @torch.no_grad()
    def _of_tokens(self, completions: Sequence[Completion], compute: _Compute) -> list[Tensor]:
        """What `compute` makes of each completion's tokens [T], without dropout."""
        found: dict[int, Tensor] = {}
        kinds = self.collator.kinds(completions)
        with judging(self.model):
            for cut in self.batching.micro_batches([one.num_places for one in completions], kinds=kinds):
                order, times = by_blocks([completions[i] for i in cut])
                cut = [cut[place] for place in order]
                inputs, labels = self.collator.on_device([completions[i].encoded for i in cut], self.model)
                with seen_once(self.model, self.collator, times):
                    values, places = compute(inputs, labels)
                for row, i in enumerate(cut):
                    found[i] = values[row][places[row]].cpu()
        return [found[i] for i in range(len(completions))]

    def _extras(self, units: Sequence[Completion], logps: Tensor, entropy: Tensor, places: Tensor) -> Extras:
        """What the settings need beyond log-probs."""
        weights = [unit.drawn.weights for unit in units if unit.drawn is not None]
        learnt = [unit.learnt for unit in units if unit.learnt is not None]
        by_server = [unit.rollout.logps for unit in units if unit.rollout.logps is not None]
        drawn = by_server or [unit.old_logps for unit in units if unit.old_logps is not None]
        return Extras(
            weights=_in_places(weights, places) if weights else None,
            drawn_logps=_in_places(drawn, places) if drawn else logps.detach(),
            entropy=entropy,
            learnt=_in_places(learnt, places) if learnt else None,
        )

    def _choose_tokens(self, completions: Sequence[Completion]) -> None:
        """Mark the tokens whose entropy is among the step's highest, over all ranks, as learned from."""
        found = self._of_tokens(completions, lambda *batch: self._log_probs(self.model, *batch)[1:])
        counting = [one for one, unit in zip(found, completions, strict=True) if self._counts(unit)]
        everywhere = np.concatenate(gather_object([torch.cat([*counting, torch.zeros(0)]).numpy()]))
        bound = np.quantile(everywhere, 1 - self.spec.top_entropy) if len(everywhere) else 0.0
        for one, unit in zip(found, completions, strict=True):
            unit.learnt = one >= float(bound)

    def _log_probs(self, model: Any, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs and entropies of the completions' tokens, and where they stand, all [B, K]."""
        logits, targets = supervised_logits(model, inputs, labels)
        everything = (logits.float() / self.spec.temperature).log_softmax(-1)
        places = targets.ne(IGNORED)
        logps = everything.gather(-1, targets.masked_fill(~places, 0)[..., None])[..., 0] * places
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.spec.entropy_bonus > 0):
            entropy = -(everything.exp() * everything).sum(-1)
        return logps, entropy, places

    def _figures(self, units: Sequence[Completion]) -> dict[str, Figure]:
        n = float(len(units))
        sums = {
            "reward": sum(unit.reward for unit in units),
            "reward_std": sum(unit.spread for unit in units),
            "frac_reward_zero_std": sum(unit.spread < _EQUAL for unit in units),
            "completion_length": sum(len(unit.rollout.ids) for unit in units),
            "truncated": sum(not unit.rollout.ended for unit in units),
        }
        sums |= {OWN + name: sum(unit.scores[name] for unit in units) for name in self.rewards}
        return {name: (float(total), n) for name, total in sums.items()}


def _in_places(rows: Sequence[Tensor | None], places: Tensor) -> Tensor:
    """Each row's values [T] where its tokens stand, [B, K]; 0 elsewhere."""
    values = torch.cat([row for row in rows if row is not None]).to(places.device)
    return torch.zeros(places.shape, dtype=values.dtype, device=places.device).masked_scatter(places, values)
