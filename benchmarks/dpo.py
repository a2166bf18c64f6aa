"""What it saves that a preference pair's two answers share one pass of the vision tower.

The same pairs go forward and backward with the shared pass and with one pass for each answer, in turns in one process,
so that whatever else the machine does meets both; the ratio is that of the medians. Both must give the same loss. The
model is of the tiny checkpoint's classes, with an LLM of 66 M parameters and a tower of a tenth of that, as in
Qwen2.5-VL-7B; a picture of 224 x 224 pixels is 64 tokens, and an answer a few. How much is saved elsewhere depends on
these proportions: the longer the texts, and the larger the LLM beside its tower, the less.
"""

import argparse
import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import Spread, composed, make_mid_size, provenance, show, write_result

TOWER = {"hidden_size": 256, "depth": 8, "intermediate_size": 704, "num_heads": 4, "out_hidden_size": 640}
RECIPES = ("fft", "lora_llm")
ROUNDS, QUICK_ROUNDS = 7, 2
PAIRS, SIDE, QUICK_SIDE = 2, 224, 56


def main() -> int:
    """Measure, print, write benchmarks/results/dpo.json; return 1 where nothing is saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"passes of each side (default: {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of one recipe, no result file")
    options = parser.parse_args()
    made = provenance()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        path = make_mid_size(Path(folder) / "model", TOWER)
        how = (QUICK_ROUNDS, QUICK_SIDE) if options.quick else (options.rounds, SIDE)
        found = {name: measure(path, name, *how) for name in RECIPES[: 1 if options.quick else None]}
    show(
        f"seconds of a forward and backward pass over {PAIRS} pairs about a picture of {how[1]} x {how[1]} pixels",
        ("recipe", "a pass a pair", "p10 to p90", "a pass an answer", "p10 to p90", "ratio"),
        [
            (name, *figures["shared"].cells()[:2], *figures["apart"].cells()[:2], f"{figures['ratio']:.2f}")
            for name, figures in found.items()
        ],
        [],
    )
    if not options.quick:
        head = {"command": "python benchmarks/dpo.py", "unit": "s", "pairs": PAIRS, "picture": SIDE}
        write_result("dpo", head | {"recipes": found, "bound_ratio": 1.0}, made)
    return int(not options.quick and max(figures["ratio"] for figures in found.values()) >= 1)


def measure(path: Path, recipe: str, rounds: int, side: int) -> dict[str, Any]:
    """Both sides' seconds, and the shared one's as a share of the other's."""

    from vlmft.training.pairs import PairReader

    step = prepared(path, recipe, side)
    apart = patch.object(PairReader, "apart_because", lambda self, model: "it is measured")
    sides: dict[str, Callable[[], Any]] = {"shared": contextlib.nullcontext, "apart": lambda: apart}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):  # the first warms up
        losses = {}
        for name, as_it_is in sides.items():
            with as_it_is():
                start = time.perf_counter()
                losses[name] = step()
                if number:
                    seconds[name].append(time.perf_counter() - start)
        if not math.isclose(losses["shared"], losses["apart"], rel_tol=1e-5):
            raise RuntimeError(f"{recipe}: the two sides compute different losses: {losses}")
    spreads = {name: Spread.of(values) for name, values in seconds.items()}
    return {**spreads, "ratio": spreads["shared"].median / spreads["apart"].median}


def prepared(path: Path, recipe: str, side: int) -> Callable[[], float]:
    """One forward and backward pass over the pairs, which returns the loss."""
    import numpy as np
    import PIL.Image
    import torch

    from vlmft.encoding.collate import Collator
    from vlmft.encoding.encoder import Encoder
    from vlmft.recipes.apply import apply_recipe
    from vlmft.recipes.base import load_base
    from vlmft.training.dpo import PreferenceObjective, Uniform
    from vlmft.training.pairs import PairReader
    from vlmft.types import Image, Message, Preference, Sample

    pixels = side * side
    config = composed("trainer=dpo", "trainer.reference=none", f"model.path={path}", f"recipe={recipe}")
    family = config.model.model_copy(
        update={"image": config.model.image.model_copy(update={"min_pixels": pixels, "max_pixels": pixels})}
    )
    model = apply_recipe(
        load_base(family, config.recipe, torch.float32, torch.device("cpu")), config.recipe, family, None
    )
    processor = family.load_processor()
    encoder = Encoder(family, processor, learns=Preference)
    pairs = []
    for number in range(PAIRS):
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        file = Path(f"{number}.png").absolute()
        PIL.Image.fromarray(noise).save(file)
        question = Message("user", (Image(file), "What colour is the shape?"))
        pairs.append(encoder.encode(Sample(f"pair/{number}", (question,), target=Preference("red", "black"))))
    objective = PreferenceObjective(PairReader(Collator(family, processor)), config.trainer, Uniform())
    weights = objective.weights(pairs)
    model.train()

    def step() -> float:
        model.zero_grad(set_to_none=True)
        share = objective.share(model, pairs, weights)
        share.loss.backward()
        return float(share.loss.detach())

    return step


if __name__ == "__main__":
    sys.exit(main())
