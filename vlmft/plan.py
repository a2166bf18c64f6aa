"""What a run would take, before it does: `python -m vlmft.plan model=... recipe=... device.memory=24GB`, a run's words.

Memory by part, the largest token budget that fits, FLOPs and hours. The checkpoint's real classes run on tensors
without contents: no weight is loaded, and a folder with config and processor is enough.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic import Field

from vlmft.config.app import Composition, run_app
from vlmft.config.sweep import JobRecord
from vlmft.errors import ConfigError
from vlmft.planning.specs import Device, num_bytes
from vlmft.train import TrainConfig, number_of_ranks, refuse_packing

if TYPE_CHECKING:
    from vlmft.planning.plan import Plan


class PlanConfig(TrainConfig):
    """Every choice of a run, and the device that it is planned for; conf/plan.yaml holds the values."""

    device: Device
    n: int = Field(ge=1, description="samples of the training stream that are counted")
    search: bool = Field(description="find the largest batching.max_tokens that fits")


def main() -> NoReturn:
    """The command."""
    plans: list[Plan] = []

    def side_by_side(folder: Path, records: list[JobRecord]) -> None:
        from vlmft.planning.table import side_by_side as table
        from vlmft.screen import console

        if plans:
            console().print(table(plans))

    sys.exit(
        run_app(
            "plan",
            PlanConfig,
            lambda config, composition: plan(config, composition, plans),
            sweep_done=side_by_side,
        )
    )


def plan(config: PlanConfig, composition: Composition, plans: "list[Plan]") -> int:
    """Print the plan of one run, and add it to `plans`; return the exit code."""
    from vlmft.data.run_data import open_run_data
    from vlmft.tasks import task_of
    from vlmft.training.specs import Sft
    from vlmft.training.step_plan import refuse_uneven_shares

    refuse_packing(config)
    task = task_of(config)
    task.check()
    if not isinstance(config.trainer, Sft):
        name = type(config.trainer).__name__.lower()
        raise ConfigError(f"trainer={name}: only the step of trainer=sft is planned; leave trainer= out for its memory")
    ranks = number_of_ranks(config.strategy)
    refuse_uneven_shares(config.global_batch_size, ranks)
    config = config.model_copy(update={"model": config.model.without_weights()})
    data = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed, config.mixing_temperature)

    from vlmft import assembly
    from vlmft.planning.plan import Planner
    from vlmft.planning.table import memory_table
    from vlmft.screen import console

    assembly.quiet_libraries()
    planner = Planner(config, task.prepare(data), ranks)
    if planner.settled is not None:
        console().print(str(planner.settled))
    found = planner.plan(composition.choices.get("recipe", "custom"), room(config.device), rate(config))
    plans.append(found)
    console().print(memory_table(found))
    return 0


def room(device: Device) -> int | None:
    """Bytes of the device for tensors; None where its memory is not known.

    Raises:
        ConfigError: nothing is left of it.
    """
    import torch

    if device.memory is not None:
        total = num_bytes(device.memory)
    elif torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
    else:
        return None
    if total <= num_bytes(device.reserved):
        raise ConfigError(f"device.reserved: {device.reserved} leaves nothing of device.memory={device.memory}")
    return total - num_bytes(device.reserved)


def rate(config: PlanConfig) -> float | None:
    """TFLOP/s of the device; None where they are not known: fp32's peak depends on what torch is allowed to round."""
    import torch

    from vlmft.training.peaks import peak_tflops

    device = config.device
    if device.tflops is not None:
        return device.tflops
    if config.precision == "fp32":
        return None
    if device.name is not None:
        return peak_tflops(device.name)
    return peak_tflops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


if __name__ == "__main__":
    main()
