"""What each trainer does in its own way; everything else about a run is the same for all of them."""

from typing import TYPE_CHECKING

from vlmft.tasks.base import Kit, Task
from vlmft.tasks.classification import ClassificationTask
from vlmft.tasks.dpo import DpoTask
from vlmft.tasks.grpo import GrpoTask
from vlmft.tasks.kto import KtoTask
from vlmft.tasks.sft import SftTask
from vlmft.training import Classification, Dpo, Grpo, Kto, Sft, TrainerSpec

if TYPE_CHECKING:
    from vlmft.train import TrainConfig

__all__ = ["Kit", "Task", "task_of"]

_TASKS: dict[type[TrainerSpec], type[Task]] = {
    Sft: SftTask,
    Dpo: DpoTask,
    Kto: KtoTask,
    Grpo: GrpoTask,
    Classification: ClassificationTask,
}


def task_of(config: "TrainConfig") -> Task:
    """The task of the run's trainer."""
    return next(_TASKS[kind] for kind in type(config.trainer).mro() if kind in _TASKS)(config)
