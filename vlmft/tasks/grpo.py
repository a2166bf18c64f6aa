"""Group relative policy optimisation."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from vlmft.data.problems import SampleError
from vlmft.errors import ConfigError, DataError
from vlmft.evaluation import Generate
from vlmft.scoring import check_references
from vlmft.scoring.rewards import OWN, TOTAL
from vlmft.tasks.base import Kit, Task, places
from vlmft.training import Grpo, VllmRollouts
from vlmft.training.ranks import rank
from vlmft.training.rollouts_spec import video_refusal
from vlmft.types import Solution, Video

if TYPE_CHECKING:
    from vlmft.encoding.loading import EncodedGroup
    from vlmft.evaluation.judge import Judge
    from vlmft.train import TrainConfig
    from vlmft.training.answered import Completion
    from vlmft.training.grpo import GrpoObjective
    from vlmft.training.rollouts import Roller
    from vlmft.training.steps import StepDataset
    from vlmft.types import Sample


class GrpoTask(Task):
    """The model's own completions are scored by the rewards; held-out samples by them and by the metrics."""

    def __init__(self, config: "TrainConfig") -> None:
        super().__init__(config)
        assert isinstance(config.trainer, Grpo)
        self.spec = config.trainer

    def check(self) -> None:
        """See `Task.check`."""
        super().check()
        self.spec.rollouts.check(self.config.recipe, self.config.model)
        budget = self.config.batching.max_tokens
        if self.spec.room >= budget:
            raise ConfigError(
                f"trainer.max_new_tokens: {self.spec.room} leave no room for a prompt in "
                f"batching.max_tokens={budget}; lower the one or raise the other"
            )

    def check_rewards(self) -> None:
        """Refuse a run in which no completion earns anything, and a metric that takes a reward's place."""
        from vlmft.config.source import options_of

        if not self.config.reward:
            raise ConfigError(
                "reward: trainer=grpo learns from rewards, and none is chosen; choose such as "
                f"reward=format@2.0+correctness@5.0. Known: {', '.join(options_of('reward'))}"
            )
        if TOTAL in self.config.metric:
            raise ConfigError(f"metric: {TOTAL} is what the sum of all rewards is called; give the metric another name")

    def score_names(self) -> Sequence[str]:
        """The rewards, then the metrics."""
        return [TOTAL, *(OWN + name for name in self.config.reward), *self.config.metric]

    def check_data(self, kit: Kit) -> None:
        """Look at the servers; have the rewards look at solutions, in training's order, for a quarter of `check_s`.

        Raises:
            ConfigError: a server does not answer for this checkpoint.
            DataError: a solution, or a medium, cannot be used.
        """
        from vlmft.data.check import examine

        if rank() != 0:
            return
        served = isinstance(self.spec.rollouts, VllmRollouts)
        if served:
            self._look_at_servers()
        end = time.monotonic() + self.config.check_s / 4
        mixture, found = kit.data.mixture, []
        for position in range(len(mixture)):
            if time.monotonic() > end:
                break
            ref = mixture.at(position)
            sample = examine(mixture.parts[ref.part].source, ref.row, kit.encoder.learnt)
            if not isinstance(sample, SampleError) and isinstance(sample.target, Solution):
                found.append((sample.id, sample.target.text))
                if served and any(isinstance(medium, Video) for medium in sample.media):
                    raise DataError(video_refusal(sample.id))
        check_references({name: reward.metric for name, reward in self.config.reward.items()}, found, word="reward")

    def _look_at_servers(self) -> None:
        from vlmft.training.vllm_server import look_at

        assert isinstance(self.spec.rollouts, VllmRollouts)
        folder = self.config.model.folder()
        if "experts" in (folder / "config.json").read_text(encoding="utf-8"):
            raise ConfigError(
                f"trainer.rollouts: {folder} is a mixture of experts, and nobody has looked at how a vLLM server takes "
                "the weights of experts while it runs; take trainer/rollouts=transformers"
            )
        look_at(self.spec.rollouts, self.config.batching.max_tokens)

    def judge_of(self, kit: Kit, evaluation: Generate, samples: "Sequence[Sample]") -> "Judge":
        """Greedy answers, scored by the rewards and the chosen metrics."""
        from vlmft.evaluation.rewarded import RewardedEvaluator

        if evaluation.max_new_tokens < self.spec.max_new_tokens and rank() == 0:
            logging.getLogger(__name__).warning(
                "evaluation.max_new_tokens=%d cuts held-out answers that training lets grow to %d tokens "
                "(trainer.max_new_tokens); a cut answer earns less than it could: raise it",
                evaluation.max_new_tokens,
                self.spec.max_new_tokens,
            )
        return RewardedEvaluator(
            evaluation,
            kit.encoder,
            kit.collator,
            samples,
            rewards=self.config.reward,
            metrics=self.config.metric,
            num_workers=self.config.trainer.num_workers,
            between_batches=kit.stop.obey,
            **places(),
        )

    def objective(self, model: Any, kit: Kit) -> "GrpoObjective":
        """Completions of this model, its loss, and what keeps them."""
        from vlmft.training.grpo import GrpoObjective
        from vlmft.training.steps import StepDataset

        steps = StepDataset(kit.data.mixture, kit.encoder, kit.plan, rank())
        objective = GrpoObjective(
            self.spec,
            model,
            self._roller(model, kit),
            kit.collator,
            self.config.batching,
            self.config.reward,
            kit.plan.num_steps,
            partial(_group, steps),
            self._reference(model),
        )
        objective.on_completions = self._keeper(kit)
        return objective

    def _roller(self, model: Any, kit: Kit) -> "Roller":
        """Who makes the completions."""
        from vlmft.recipes.dtypes import torch_dtype
        from vlmft.training.rollouts import OwnRoller

        config, made = self.config, self.spec.rollouts
        if not isinstance(made, VllmRollouts):
            return OwnRoller(model, kit.collator, self.spec, config.seed)
        from vlmft.training.server_rollouts import ServerRollouts

        way = made.way(config.recipe, config.model)
        folder = made.weights_dir or kit.folder.path / "weights"
        kit.console.print(f"rollouts by {', '.join(made.urls)}; weights go there as {_WAYS[way]}, through {folder}")
        return ServerRollouts(self.spec, model, kit.collator, way, folder, torch_dtype(config.precision), config.seed)

    def _keeper(self, kit: Kit) -> "Callable[[int, Sequence[Completion]], None]":
        """What writes the completions of some steps to the run folder and, where it is used, to TensorBoard."""
        from vlmft.previewing.completions import CompletionsOnBoard, shown_prompts
        from vlmft.training import completions as tables
        from vlmft.training.trackers import guarded

        board = None
        if tracker := next((guard.tracker for guard in kit.trackers if guard.name == "tensorboard"), None):
            board = CompletionsOnBoard(tracker)
            kit.trackers.append(guarded("tensorboard", board))
        kept_out = kit.folder.entries_kept_out()

        def keep(step: int, completions: "Sequence[Completion]") -> None:
            if not tables.is_kept(step, self.spec.save_completions):
                return
            rows = tables.rows_of(step, completions, kit.collator, kept_out)
            tables.write(kit.folder.completions, rows)
            if board is not None:
                board.show(shown_prompts(rows, [one.media for one in completions], kit.collator))

        return keep

    def _reference(self, model: Any) -> Callable[[], AbstractContextManager[None]] | None:
        """The model at the start of the run; None where nothing is compared with it."""
        from vlmft.training.reference import StartValues

        return StartValues(model).put_in if self.spec.beta > 0 else None


_WAYS = {"adapter": "a LoRA adapter", "checkpoint": "a whole checkpoint, adapters merged"}


def _group(steps: "StepDataset", step: int) -> "EncodedGroup":
    """The samples of a later step, read ahead of the loader.

    Raises:
        VlmftError: they cannot be had.
    """
    found = steps[step]
    if isinstance(found, Exception):
        raise found
    return found
