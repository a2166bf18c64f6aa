"""What a run settles by itself before it trains: whether `batching=auto` packs, and why.

It packs where the family's tests hold packs to be exact, the trainer's loss takes them, and the checkpoint's LLM is of
a known kind. With torch's kernel for segments (CUDA from Ampere on, 16 bits) that costs no time. Without it attention
is a loop over samples, and each costs the tiny model about what 8 tokens of padding cost it (`benchmarks/packs.py`; a
larger model less): there it packs where rows would be padded by twice that a sample, from where on packs were faster in
nine steps of ten.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vlmft.data.check import examine
from vlmft.data.problems import SampleError
from vlmft.encoding import AutoBatching, BatchingSpec, Grouped, Packed
from vlmft.models.varlen import varlen_on
from vlmft.training.ranks import rank, world_size

if TYPE_CHECKING:
    import torch

    from vlmft.data.run_data import RunData
    from vlmft.encoding.encoder import Encoder
    from vlmft.models import ModelSpec
    from vlmft.run_folder import RunFolder
    from vlmft.train import TrainConfig
    from vlmft.training.commit import Committed
    from vlmft.training.step_plan import StepPlan

PAYS_FROM = 16.0
"""Tokens of padding a sample from which a loop over samples is surely faster than rows."""
_COUNTED = 64  # first samples of rank 0 that padding is counted of

Name = Literal["packed", "grouped"]


@dataclass(frozen=True)
class Settled:
    """What `batching=auto` has come to."""

    name: Name
    because: str

    def __str__(self) -> str:
        return f"batching {self.name}: {self.because}"

    def spec(self, max_tokens: int) -> BatchingSpec:
        """The rule itself."""
        return (Packed if self.name == "packed" else Grouped)(max_tokens=max_tokens)


def settle_batching(
    config: "TrainConfig",
    folder: "RunFolder",
    data: "RunData",
    plan: "StepPlan",
    encoder: "Encoder",
    device: "torch.device",
    start: "Committed | None",
) -> "tuple[TrainConfig, Settled | None]":
    """The config with a rule that cuts, the same on all ranks, written to the run folder; None: it had one.

    A run that goes on from a checkpoint keeps what it was there, whatever device it is on now.
    """
    if not isinstance(config.batching, AutoBatching):
        return config, None
    found: list[Settled] = []
    if rank() == 0:
        earlier = None if start is None else start.facts.get("batching")
        if earlier in ("packed", "grouped"):
            found = [Settled(earlier, "as it was when the checkpoint was saved")]
        else:
            found = [choose(config, data, plan, encoder, device)]
        folder.write_result(batching={"chosen": found[0].name, "because": found[0].because})
    (settled,) = _told(found)
    return config.model_copy(update={"batching": settled.spec(config.batching.max_tokens)}), settled


def choose(
    config: "TrainConfig", data: "RunData", plan: "StepPlan", encoder: "Encoder", device: "torch.device"
) -> Settled:
    """Packed or grouped; a function of config, data and kind of device alone."""
    if not config.trainer.packs:
        name = type(config.trainer).__name__.lower()
        return Settled("grouped", f"the loss of trainer={name} takes samples in rows of their own")
    if reason := config.model.unpacked_reason or unknown_llm(config.model):
        return Settled("grouped", f"{type(config.model).__name__} takes no packs: {reason}")
    if config.precision != "fp32" and varlen_on(device):
        return Settled("packed", "no padding, and one kernel for all samples of a pack")
    padding = padding_of_rows(data, plan, encoder, Grouped(max_tokens=config.batching.max_tokens))
    words = f"rows of like length would hold {padding:.1f} tokens of padding a sample"
    if padding < PAYS_FROM:
        where = f"on {device.type} in {config.precision}"
        return Settled("grouped", f"{words}, and packs pay from {PAYS_FROM:.0f} {where}")
    return Settled("packed", words)


def unknown_llm(family: "ModelSpec") -> str | None:
    """Why packs cannot be computed by the LLM that a checkpoint's config.json names; None: nothing there says so."""
    from transformers import AutoConfig

    from vlmft.models.packing import PACKED_LLMS

    kind: str = AutoConfig.from_pretrained(family.folder()).get_text_config().model_type
    return None if kind in PACKED_LLMS else f"this checkpoint's LLM is of type {kind}, and nobody has looked at that"


def padding_of_rows(data: "RunData", plan: "StepPlan", encoder: "Encoder", rows: BatchingSpec) -> float:
    """Tokens of padding a sample in rank 0's first steps, cut by `rows`; from headers. Bad samples are left out."""
    padding = good = counted = 0
    for step in range(plan.num_steps):
        lengths: list[int] = []
        for position in list(plan.positions(step, 0))[: _COUNTED - counted]:
            ref = data.mixture.at(position)
            sample = examine(data.mixture.parts[ref.part].source, ref.row, lambda one: encoder.count(one, ref.key))  # noqa: B023
            counted += 1
            if not isinstance(sample, SampleError):
                lengths.append(sample.num_tokens)
        good += len(lengths)
        for cut in rows.micro_batches(lengths) if lengths else []:
            padding += sum(max(lengths[i] for i in cut) - lengths[i] for i in cut)
        if counted >= _COUNTED:
            break
    return padding / max(good, 1)


def _told(found: list[Settled]) -> list[Settled]:
    """What rank 0 has found, on every rank."""
    import torch.distributed

    shared = found or [Settled("grouped", "")]
    if world_size() > 1:
        torch.distributed.broadcast_object_list(shared)
    return shared
