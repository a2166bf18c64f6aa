"""What padding wastes, and how full micro-batches are: counted, not timed, on a skewed mix of lengths.

The mix is drawn with a seed, in tokens as Qwen2.5-VL counts them (a picture has one for each 28 x 28 pixels): 30 % text
alone, 45 % with one picture, 15 % with two to four, 10 % with a video of 8 to 32 slices of 100 to 250 tokens. Text is
log-normal, median 150 tokens, cut at 2,000. A sample is never cut: those above the budget are drawn again.

Two kinds of batches. Of a fixed number of samples, as most trainers make them: in random order (what a collator that
pads is given), and in transformers' order for `group_by_length`. Of a token budget, as vlmft cuts an optimiser step:
`padded`, `grouped` and `packed`. `waste` is the share of token places that hold padding. `fill` is the share of the
budget that holds tokens: what memory for a micro-batch is paid for and used. Packs are filled from the samples of one
step, so they are the fuller, the more samples a step has.

`ranks`: the work of the busiest of 8 ranks over their mean, median and worst of all steps: samples in turn, and shared
out by cost as a run does it. That goes by the bytes of a text, of which a token here has 3 to 5.5; counted is the real
cost, a token as 1 and a vision token as 1.4 (the tower of Qwen2.5-VL-7B beside its LLM, both in full training).
"""

import argparse
import math
import random
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from common import provenance, show, write_result

BUDGET = 16_384
STEPS, QUICK_STEPS = 200, 10
STEP_SAMPLES = (16, 64, 256)
FIXED = (2, 4, 8, 16)
PICTURES = ((448, 448), (640, 480), (1024, 768), (1036, 1036), (1280, 720))
RANKS, RANK_SAMPLES = 8, (8, 16)
VISION_TOKEN = 0.4
BOUND_RANKS = 1.05
BOUND_FILL = 0.85
"""Of packs of 64 samples a step and more."""


@dataclass
class Counted:
    """Token places of many micro-batches."""

    tokens: int = 0
    places: int = 0
    batches: int = 0

    def add(self, lengths: Sequence[int], is_pack: bool) -> None:
        """Count one micro-batch."""
        self.tokens += sum(lengths)
        self.places += sum(lengths) if is_pack else len(lengths) * max(lengths)
        self.batches += 1

    @property
    def waste(self) -> float:
        """Share of the places that hold padding."""
        return 1 - self.tokens / self.places

    @property
    def fill(self) -> float:
        """Share of the budget that holds tokens."""
        return self.tokens / (self.batches * BUDGET)


def main() -> int:
    """Count, print, write benchmarks/results/waste.json; return 1 where packs pad, or are not filled to the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, and no result file")
    options = parser.parse_args()
    made = provenance()
    steps = QUICK_STEPS if options.quick else STEPS
    parts = mix(steps * max(STEP_SAMPLES))
    lengths = [text + media for text, media in parts]
    fixed, cut = of_fixed_size(lengths), {samples: of_steps(lengths, samples, steps) for samples in STEP_SAMPLES}
    rows = [(f"{size} samples, {name}", percent(found.waste), "-") for (name, size), found in fixed.items()]
    for samples, found in cut.items():
        rows += [
            (f"{name}, {samples} samples a step", percent(one.waste), percent(one.fill)) for name, one in found.items()
        ]
    notes = [f"{len(lengths):,} samples, {sum(lengths) / len(lengths):.0f} tokens on average, {max(lengths):,} at most"]
    show(f"a budget of {BUDGET:,} tokens a micro-batch", ("", "waste", "fill"), rows, notes)
    ranks = {samples: of_ranks(parts, samples, steps) for samples in RANK_SAMPLES}
    show(
        f"the busiest of {RANKS} ranks over their mean",
        ("", "in turn", "worst", "by cost", "worst"),
        [
            (f"{samples} samples a rank", *(f"{one[key]:.3f}" for one in found.values() for key in ("median", "most")))
            for samples, found in ranks.items()
        ],
        [],
    )
    if not options.quick:
        balance = {str(samples): found for samples, found in ranks.items()}
        write_result("waste", figures(lengths, fixed, cut) | {"ranks": balance, "bound_ranks": BOUND_RANKS}, made)
    packed = {samples: found["packed"] for samples, found in cut.items()}
    badly_filled = any(one.waste or (one.fill < BOUND_FILL and samples >= 64) for samples, one in packed.items())
    return int(badly_filled or any(found["by_cost"]["median"] > BOUND_RANKS for found in ranks.values()))


def figures(
    lengths: Sequence[int], fixed: dict[tuple[str, int], Counted], cut: dict[int, dict[str, Counted]]
) -> dict[str, Any]:
    """What the result file holds."""
    ordered = sorted(lengths)
    return {
        "command": "python benchmarks/waste.py",
        "budget": BUDGET,
        "lengths": {
            "samples": len(lengths),
            "mean": sum(lengths) / len(lengths),
            **{f"p{share}": ordered[len(ordered) * share // 100] for share in (10, 50, 90, 99)},
            "most": ordered[-1],
        },
        "fixed_size": {f"{name}_{size}": {"waste": found.waste} for (name, size), found in fixed.items()},
        "step_samples": {
            str(samples): {
                name: {"waste": one.waste, "fill": one.fill, "micro_batches": one.batches}
                for name, one in found.items()
            }
            for samples, found in cut.items()
        },
        "bound_fill": BOUND_FILL,
    }


def mix(count: int) -> list[tuple[int, int]]:
    """Tokens of text and of media of `count` samples."""
    drawn = random.Random(0)
    found: list[tuple[int, int]] = []
    while len(found) < count:
        text, media = _text(drawn), _media(drawn)
        if text + media <= BUDGET:
            found.append((text, media))
    return found


def _text(drawn: random.Random) -> int:
    return max(20, min(2000, round(drawn.lognormvariate(math.log(150), 0.9))))


def _media(drawn: random.Random) -> int:
    kind = drawn.random()
    if kind < 0.3:
        return 0
    if kind < 0.9:
        number = 1 if kind < 0.75 else drawn.randint(2, 4)
        return sum((height // 28) * (width // 28) for height, width in drawn.choices(PICTURES, k=number))
    return drawn.randint(8, 32) * drawn.randint(100, 250)


def of_fixed_size(lengths: Sequence[int]) -> dict[tuple[str, int], Counted]:
    """Batches of a fixed number of samples."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    found: dict[tuple[str, int], Counted] = {}
    for size in FIXED:
        grouped = get_length_grouped_indices(list(lengths), size, generator=torch.Generator().manual_seed(0))
        orders: dict[str, Iterable[int]] = {"random": range(len(lengths)), "group_by_length": grouped}
        for name, order in orders.items():
            places = found[name, size] = Counted()
            ordered = [lengths[index] for index in order]
            for start in range(0, len(ordered), size):
                places.add(ordered[start : start + size], is_pack=False)
    return found


def of_steps(lengths: Sequence[int], samples: int, steps: int) -> dict[str, Counted]:
    """Optimiser steps of so many samples, cut by each of vlmft's rules."""
    from vlmft.encoding import Grouped, Packed, Padded

    found: dict[str, Counted] = {}
    for kind in (Padded, Grouped, Packed):
        rule, places = kind(max_tokens=BUDGET), Counted()
        for step in range(steps):
            own = lengths[step * samples : (step + 1) * samples]
            for batch in rule.micro_batches(own):
                places.add([own[index] for index in batch], rule.packs)
        found[kind.__name__.lower()] = places
    return found


def of_ranks(parts: Sequence[tuple[int, int]], samples: int, steps: int) -> dict[str, dict[str, float]]:
    """The busiest rank's work over the ranks' mean, in steps of so many samples a rank."""
    from vlmft.training.balance import share_out

    drawn, size = random.Random(1), samples * RANKS
    found: dict[str, list[float]] = {"in_turn": [], "by_cost": []}
    for step in range(steps):
        own = parts[step * size : (step + 1) * size]
        real = [text + (1 + VISION_TOKEN) * media for text, media in own]
        seen = [text * drawn.uniform(3, 5.5) / 4 + (1 + VISION_TOKEN) * media for text, media in own]
        in_turn = [list(range(rank, size, RANKS)) for rank in range(RANKS)]
        for name, shares in (("in_turn", in_turn), ("by_cost", share_out(seen, RANKS))):
            loads = [sum(real[number] for number in share) for share in shares]
            found[name].append(max(loads) / statistics.fmean(loads))
    return {name: {"median": statistics.median(ratios), "most": max(ratios)} for name, ratios in found.items()}


def percent(share: float) -> str:
    """As the table shows it."""
    return f"{share:.1%}"


if __name__ == "__main__":
    sys.exit(main())
