"""The choices of a training run that need no code of their own: trainer, strategy, logger."""

from typing import ClassVar, Literal

from pydantic import Field

from vlmft.config.spec import Spec
from vlmft.types import Target


class TrainerSpec(Spec, abstract=True):
    """How long a run trains and what it does beside."""

    learns: ClassVar[type[Target] | None] = None
    """What a sample has to hold; None: answers."""

    packs: ClassVar[bool] = False
    """Its loss may be computed of samples that stand end to end in one row."""

    shares_by_cost: ClassVar[bool] = False
    """A step is shared out among ranks by what its samples cost; else in turn, to each equally many."""

    epochs: float = Field(gt=0, description="passes over the training data; the last step is filled from the next pass")
    max_steps: int | None = Field(ge=1, description="optimiser steps; where set, `epochs` is not used")
    num_workers: int = Field(ge=0, description="loader processes a rank; 0 encodes in the training process")
    gradient_checkpointing: bool = Field(
        description="keep no activations inside blocks, recompute them: less memory, slower"
    )
    oom_retries: int = Field(
        ge=0, description="times that a step which runs out of memory is tried again, in micro-batches half as large"
    )
    save_every: int | None = Field(ge=1, description="steps between two checkpoints; null: only when asked to stop")
    keep: int = Field(ge=1, description="how many of the newest checkpoints stay")
    log_every: int = Field(ge=1, description="steps between two lines of metrics.jsonl")

    @property
    def room(self) -> int:
        """Tokens that a sample grows by while it is trained on; with them it has to fit into a micro-batch."""
        return 0


class Sft(TrainerSpec):
    """Supervised fine-tuning: every assistant turn of every conversation is learned."""

    packs: ClassVar[bool] = True
    shares_by_cost: ClassVar[bool] = True


class Strategy(Spec):
    """The ranks of this machine and what they run on."""

    ranks: int | Literal["auto"] = Field(description="processes started here; auto: one a GPU, or one on the CPU")
    device: Literal["auto", "cuda", "cpu"] = Field(description="auto: cuda where there is one, else cpu")
    shutdown_timeout_s: float = Field(gt=0, description="seconds that ranks get to end after a signal, before SIGKILL")


class Logger(Spec):
    """Where metrics go beside metrics.jsonl, which is always written."""

    report_to: tuple[str, ...] = Field(
        description="names that transformers' Trainer knows: tensorboard, wandb, mlflow, ..."
    )
