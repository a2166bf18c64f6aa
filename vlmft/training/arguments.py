"""vlmft's choices as transformers' TrainingArguments; building them joins the process group."""

from pathlib import Path
from typing import TYPE_CHECKING

from vlmft.errors import ConfigError
from vlmft.models.spec import Precision
from vlmft.training.optim import OptimSpec
from vlmft.training.ranks import world_size
from vlmft.training.specs import Strategy, TrainerSpec

if TYPE_CHECKING:
    from transformers import TrainingArguments


def training_arguments(
    folder: Path,
    trainer: TrainerSpec,
    optim: OptimSpec,
    strategy: Strategy,
    precision: Precision,
    seed: int,
    num_steps: int,
) -> "TrainingArguments":
    """Everything that Trainer is to know. Its own saving, evaluating and progress bar stay off.

    Raises:
        ConfigError: this machine cannot do what was chosen.
    """
    import torch
    from transformers import TrainingArguments
    from transformers.trainer_utils import SchedulerType

    on_cpu = uses_cpu(strategy)
    if precision == "fp16" and on_cpu:
        raise ConfigError("precision: fp16 needs a GPU (its loss scaling has no CPU form); use bf16 or fp32")
    if precision == "bf16" and not on_cpu and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"precision: {torch.cuda.get_device_name()} cannot compute in bf16; use fp16 or fp32")
    if trainer.oom_retries and world_size() > 1:
        raise ConfigError(
            f"trainer.oom_retries: {trainer.oom_retries} works on one rank alone, there are {world_size()}: while one "
            "tries again, the others wait for its gradients; set it to 0, and batching.max_tokens lower"
        )
    schedules = [kind.value for kind in SchedulerType]
    if optim.schedule not in schedules:
        raise ConfigError(f"optim.schedule: there is no {optim.schedule!r}; known: {', '.join(schedules)}")
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=optim.lr,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        lr_scheduler_type=optim.schedule,
        lr_scheduler_kwargs=dict(optim.schedule_options),
        warmup_steps=round(optim.warmup * num_steps),
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        activation_checkpointing=trainer.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=on_cpu,
        seed=seed,
        logging_steps=trainer.log_every,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        # A rank whose samples hold no picture does not touch the tower; without this DDP would wait for it. A single
        # rank is wrapped by DDP as well, which then ends the run at the next step.
        ddp_find_unused_parameters=True,
    )


def uses_cpu(strategy: Strategy) -> bool:
    """Whether the run is on the CPU.

    Raises:
        ConfigError: a GPU was asked for and there is none.
    """
    import torch

    if strategy.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("strategy.device: cuda was asked for, torch finds no CUDA device here")
    return strategy.device == "cpu" or not torch.cuda.is_available()
