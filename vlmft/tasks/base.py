"""What a run asks of its trainer, in the order in which it asks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.errors import ConfigError
from vlmft.evaluation import Generate
from vlmft.training.ranks import rank, world_size

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from vlmft.data.run_data import RunData
    from vlmft.encoding.collate import Collator
    from vlmft.encoding.encoder import Encoder
    from vlmft.evaluation.judge import Judge
    from vlmft.recipes.table import ComponentRow
    from vlmft.run_folder import RunFolder
    from vlmft.train import TrainConfig
    from vlmft.training.objective import Objective
    from vlmft.training.pack_proof import Reading
    from vlmft.training.step_plan import StepPlan
    from vlmft.training.stop import StopRequest
    from vlmft.training.trackers import Guard
    from vlmft.types import Sample


@dataclass(frozen=True)
class Kit:
    """What a run has put together before its trainer's own part."""

    data: "RunData"
    plan: "StepPlan"
    encoder: "Encoder"
    collator: "Collator"
    folder: "RunFolder"
    stop: "StopRequest"
    console: "Console"
    trackers: "list[Guard]"


class Task(ABC):
    """One trainer's part in a run; made from the config alone, so that the driver can ask it, too."""

    counts_flops: ClassVar[bool] = False
    """Whether a step is one forward and backward pass of each sample, so that its operations are known."""

    def __init__(self, config: "TrainConfig") -> None:
        self.config = config

    def check(self) -> None:
        """Refuse what contradicts itself in the config; the driver asks, before a process is started.

        Raises:
            ConfigError: names the keys.
        """
        self.check_rewards()
        evaluation = self.config.evaluation
        if not isinstance(evaluation, Generate) or evaluation.best_by is None:
            return
        names = self.score_names()
        if evaluation.best_by not in names:
            raise ConfigError(
                f"evaluation.best_by: {evaluation.best_by!r} is not among this run's metrics: {', '.join(names)}"
            )

    def check_rewards(self) -> None:
        """Refuse rewards, which only a trainer that makes completions has a use for."""
        if self.config.reward:
            raise ConfigError(
                f"reward: {'+'.join(self.config.reward)} is for trainer=grpo; answers of another trainer's model are "
                f"scored by metric={'+'.join(self.config.reward)}"
            )

    def prepare(self, data: "RunData") -> "RunData":
        """The run's data as this trainer wants it; the driver asks as well, before a process is started.

        Raises:
            ConfigError: the config and the data contradict each other.
            DataError: the data cannot be used.
        """
        return data

    @abstractmethod
    def score_names(self) -> Sequence[str]:
        """What `judge` scores by."""

    def check_data(self, kit: Kit) -> None:
        """Refuse data that the trainer cannot use, as far as the time for checks reaches; before weights are loaded.

        Raises:
            DataError: names the samples.
        """
        return

    def judge(self, kit: Kit) -> "Judge | None":
        """What judges the model on the held-out samples; None where nothing is held out or evaluation is off.

        Raises:
            ConfigError: the state that scores best is to be kept, and nothing can be scored.
            DataError: a held-out sample cannot be judged.
        """
        evaluation = self.config.evaluation
        if not isinstance(evaluation, Generate):
            return None
        if not kit.data.held_out:
            if evaluation.best_by is not None:
                raise ConfigError(
                    "evaluation.best_by: nothing is held out to be scored; give holdout= or eval_dataset="
                )
            return None
        return self.judge_of(kit, evaluation, kit.data.held_out_samples(evaluation.max_samples))

    @abstractmethod
    def judge_of(self, kit: Kit, evaluation: Generate, samples: "Sequence[Sample]") -> "Judge":
        """What judges the model on these samples."""

    def finish_model(self, model: Any, kit: Kit) -> Any:
        """The model as it trains, of the one to which the recipe has been applied."""
        return model

    def probe_loss(self, model: Any, kit: Kit) -> "Tensor":
        """A loss over every modality of the family: a weight of the backbone that gets no gradient never gets one."""
        return probe_loss(model, kit.encoder, kit.collator)

    @abstractmethod
    def objective(self, model: Any, kit: Kit) -> "Objective[Any]":
        """What is minimised; `model` is as it stands before training, also in a run that is resumed."""

    def reading(self) -> "Reading | None":
        """What a run compares of its first pack; None: the logits of supervised tokens."""
        return None

    def groups(self, model: Any) -> list[dict[str, Any]]:
        """The optimiser's groups."""
        from vlmft.recipes.groups import parameter_groups

        config = self.config
        return parameter_groups(model, config.recipe, config.model, config.optim.lr, config.optim.weight_decay)

    def rows(self, model: Any) -> "list[ComponentRow]":
        """The table of what trains."""
        from vlmft.recipes.table import component_rows

        config = self.config
        return component_rows(model, config.recipe, config.model, config.optim.lr, config.optim.state_bytes)

    def backbone(self, model: Any) -> Any:
        """The checkpoint's own model, with the recipe, of what `finish_model` made."""
        return model

    def save(self, folder: Path, model: Any) -> dict[str, Any]:
        """Write what belongs into `final/` beside the backbone; return what its vlmft.json is to say of it."""
        return {}


def probe_loss(model: Any, encoder: "Encoder", collator: "Collator") -> "Tensor":
    """The cross entropy of one answer about a picture and, where the family takes one, a video."""
    from vlmft.encoding.probe import probe_sample
    from vlmft.training.loss import supervised_loss

    return supervised_loss(model, *collator.on_device([probe_sample(encoder)], model))


def places() -> dict[str, int]:
    """This process among the ranks, as judges take it."""
    return {"rank": rank(), "world_size": world_size()}
