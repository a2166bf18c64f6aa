"""Which rank computes which samples of a step: as much work for each, by what headers and texts say of it.

Ranks wait for the slowest of them in every step. Each rank looks at the headers of the whole step, its own samples and
the others', and comes to the same shares by itself; that all did is checked (`StepTrainer`), since a file may be
readable on one machine alone. The step holds the same samples as without this, so its loss and gradient stay the same.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmft.encoding.media import MediaPlanner
from vlmft.types import Sample

if TYPE_CHECKING:
    from vlmft.encoding.encoder import Encoded
    from vlmft.models.spec import ModelSpec
    from vlmft.recipes.table import ComponentRow

_BYTES_A_TOKEN = 4  # of text in UTF-8, about as for English; a Chinese character has 3
_TOWER, _LLM = "vision_tower", "llm"


@dataclass(frozen=True)
class Costs:
    """What it costs to compute a sample, in tokens of the LLM."""

    vision_token: float
    """What the tower's work for a vision token costs beside that token's own place in the LLM."""

    def of(self, planner: MediaPlanner, sample: Sample) -> float:
        """From headers and the length of its texts, undecoded and untokenised. Raises `DataError` as `planner.plan`."""
        features = sum(item.written.num_features for item in planner.plan(sample, None)[1])
        said = sum(len(message.text.encode()) for message in sample.messages)
        return 1 + said / _BYTES_A_TOKEN + (1 + self.vision_token) * features


def share_out(costs: Sequence[float | None], num_ranks: int) -> list[list[int]]:
    """The samples of each rank, by their numbers in ascending order: the costliest first, each to the lightest rank.

    Where there are as many usable samples as ranks, each rank has one at least.

    Args:
        costs: above 0; None of a sample that cannot be used.
    """
    loads, shares = [0.0] * num_ranks, [list[int]() for _ in range(num_ranks)]
    usable = sorted((-cost, number) for number, cost in enumerate(costs) if cost is not None)
    for negative, number in usable:
        lightest = min(range(num_ranks), key=lambda rank: (loads[rank], rank))
        shares[lightest].append(number)
        loads[lightest] -= negative
    for number in (number for number, cost in enumerate(costs) if cost is None):
        min(shares, key=len).append(number)
    return [sorted(share) for share in shares]


def digest(shares: Sequence[Sequence[int]]) -> int:
    """A number of 20 bits that tells shares apart; sums of it and of its square over ranks are exact in float64."""
    return zlib.crc32(repr([list(share) for share in shares]).encode()) & 0xFFFFF


def costs_of(
    model: Any,
    family: "ModelSpec",
    rows: "Sequence[ComponentRow]",
    probe: "Encoded",
    inputs: dict[str, Any],
    recomputed: bool,
) -> Costs:
    """Weigh a model's tower against its LLM: weights times the places at which each is applied, times its passes.

    Args:
        model: with its recipe applied, without a head.
        rows: its components.
        probe: a sample with pictures, of which `inputs` were made.
        recomputed: blocks are computed once more on the way back.
    """
    of = {row.component: row for row in rows}
    tower, llm = of[_TOWER], of[_LLM]
    patches = _places(model, family, inputs) if _TOWER in family.block_paths else probe.num_vision_tokens
    work = tower.parameters * _passes(tower, False, recomputed) * patches / probe.num_vision_tokens
    others = any(row.trainable for row in rows if row.component != _LLM)
    return Costs(work / (llm.parameters * _passes(llm, others, recomputed)))


def _passes(row: "ComponentRow", something_before_trains: bool, recomputed: bool) -> int:
    """Forward; backward to its inputs; backward to its weights, which adapters alone make cheap."""
    if not row.trainable and not something_before_trains:
        return 1
    return 2 + (row.trainable > row.parameters / 2) + recomputed


def _places(model: Any, family: "ModelSpec", inputs: dict[str, Any]) -> int:
    """Patches that go through the tower's first block."""
    import torch

    from vlmft.models.components import blocks_of
    from vlmft.training.reference import judging

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    first = base.get_submodule(blocks_of(base, family.block_paths[_TOWER])[0])
    found: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        found.append(states.shape[:-1].numel())

    handle = first.register_forward_pre_hook(count, with_kwargs=True)
    try:
        with judging(model), torch.no_grad():
            model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return sum(found)
