"""Who computes where: the places for jobs that a machine's devices, or its cores, make."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from vlmft.config.pool import PoolSettings
from vlmft.errors import ConfigError
from vlmft.launch import count_devices

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the job's environment has beside this process's."""


def make_slots(settings: PoolSettings, environ: Mapping[str, str] = os.environ) -> list[Slot]:
    """The places of this machine, each with `devices_per_job` devices, or with a share of the cores.

    Raises:
        ConfigError: the settings ask for devices that are not there, or for more places than devices.
    """
    devices = _devices(settings, environ)
    per_job = settings.devices_per_job or max(1, len(devices))
    count = len(devices) // per_job if devices else settings.slots or 1
    problems = []
    if devices and not count:
        found = f"there are only {len(devices)} devices ({', '.join(devices)})"
        problems.append(f"hydra.launcher.devices_per_job={per_job}: {found}")
    elif devices and settings.slots is not None and settings.slots > count:
        problems.append(
            f"hydra.launcher.slots={settings.slots}: {len(devices)} devices, {per_job} a job, are {count}; "
            "leave slots out, or name more devices"
        )
    ConfigError.raise_if(problems)
    count = min(count, settings.slots or count)
    share = {}
    if "OMP_NUM_THREADS" not in environ:
        # A job's driver divides what it finds among its ranks only where this is not set.
        ranks = per_job if devices else 1
        share["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // (count * ranks)))
    if not devices:
        hidden = {VISIBLE: ""} if settings.devices == () else {}
        return [Slot(f"cpu slot {number}", share | hidden) for number in range(count)]
    groups = [",".join(devices[number * per_job : (number + 1) * per_job]) for number in range(count)]
    return [Slot(f"cuda {group}", share | {VISIBLE: group}) for group in groups]


def _devices(settings: PoolSettings, environ: Mapping[str, str]) -> list[str]:
    visible = [part.strip() for part in environ.get(VISIBLE, "").split(",") if part.strip()]
    if settings.devices is None:
        return visible[: count_devices()] if VISIBLE in environ else [str(number) for number in range(count_devices())]
    hidden = [device for device in settings.devices if VISIBLE in environ and device not in visible]
    if hidden:
        raise ConfigError(
            f"hydra.launcher.devices: {', '.join(hidden)} is hidden by {VISIBLE}={environ[VISIBLE]}; "
            "name devices as they stand there"
        )
    return list(settings.devices)
