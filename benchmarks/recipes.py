"""What each recipe trains, what it leaves on disk, and what a step of it takes against full training.

Every recipe of conf/recipe trains the same batches of generated pictures, on the tiny checkpoint's classes with an LLM
of 66 M parameters. Its steps and those of `fft` are taken in turns in one process, so that whatever else the machine
does meets both; the ratio is that of the medians. On a CPU, quantised layers are unpacked in each pass: their ratio
says nothing of a GPU.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Spread, composed, make_mid_size, provenance, show, write_result

ROUNDS, QUICK_ROUNDS = 7, 2
BATCH = 8
CONF = Path(__file__).parents[1] / "conf/recipe"


def main() -> int:
    """Measure, print, write benchmarks/results/recipes.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"steps of each side (default: {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of two recipes, no result file")
    options = parser.parse_args()
    made = provenance()
    names = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "fft")
    names = ["lora_llm", "lora_llm_nf4"] if options.quick else names
    rounds = QUICK_ROUNDS if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        path = make_mid_size(Path(folder) / "model")
        found = measure(path, names, rounds)
    show(
        "a recipe's step against one of fft",
        ("recipe", "trains", "share", "saved, MiB", "ms a step", "of fft", "p10 to p90, ms"),
        [row(name, figures) for name, figures in found.items()],
        [f"{BATCH} samples a step, float32, {rounds} steps of each in turns"],
    )
    if not options.quick:
        write_result("recipes", {"command": "python benchmarks/recipes.py", "unit": "ms"} | found, made)
    return 0


def row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    step: Spread = figures["step"]
    return (
        name,
        figures["trains"],
        f"{figures['trainable_share']:.2%}",
        f"{figures['saved_bytes'] / 2**20:.1f}",
        f"{step.median:.0f}",
        f"{figures['of_fft']:.2f}",
        f"{step.p10:.0f} to {step.p90:.0f}",
    )


def measure(path: Path, names: list[str], rounds: int) -> dict[str, Any]:
    """Take the steps of each recipe and of fft in turns."""
    baseline, described = prepare(path, "fft")
    found: dict[str, Any] = {}
    of_fft: list[float] = []
    for name in names:
        step, figures = prepare(path, name)
        times: dict[str, list[float]] = {"fft": [], name: []}
        for number in range(rounds + 1):
            for side, take in (("fft", baseline), (name, step)):
                started = time.perf_counter()
                take()
                if number:  # the first one allocates
                    times[side].append((time.perf_counter() - started) * 1000)
        spread, reference = Spread.of(times[name]), Spread.of(times["fft"])
        found[name] = figures | {"step": spread, "fft_step": reference, "of_fft": spread.median / reference.median}
        of_fft += times["fft"]
        del step
        gc.collect()
    return {"fft": described | {"step": Spread.of(of_fft), "of_fft": 1.0}} | found


def prepare(path: Path, recipe: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """A function that takes one optimiser step, and what the recipe comes to."""
    import torch

    from vlmft.encoding.collate import Collator
    from vlmft.encoding.encoder import Encoder
    from vlmft.recipes.apply import apply_recipe
    from vlmft.recipes.base import load_base, num_weights
    from vlmft.recipes.groups import parameter_groups
    from vlmft.recipes.saved import save
    from vlmft.recipes.table import component_rows
    from vlmft.training.loss import supervised_loss

    config = composed("model=qwen25vl", f"model.path={path}", "precision=fp32", f"recipe={recipe}")
    cpu, family = torch.device("cpu"), config.model
    torch.manual_seed(0)
    model = load_base(family, config.recipe, torch.float32, cpu)
    parameters = sum(num_weights(parameter) for parameter in model.parameters())
    model = apply_recipe(model, config.recipe, family, torch.float32)
    processor = family.load_processor()
    encoder, collator = Encoder(family, processor), Collator(family, processor)
    source = next(iter(config.dataset.values())).open("shapes")
    batch = collator([encoder.encode(source[number]) for number in range(BATCH)])
    optimizer = config.optim.build(parameter_groups(model, config.recipe, family, config.optim.lr, 0.0))
    model.train()

    def step() -> None:
        supervised_loss(model, family.model_inputs(processor, batch.inputs), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    rows = component_rows(model, config.recipe, family, config.optim.lr, config.optim.state_bytes)
    trained = sum(row.trainable for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), model, processor, family, config.recipe, "fp32", {}, [], {})
        saved = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return step, {
        "trains": ", ".join(f"{short(row.component)} {row.policy}" for row in rows if row.trainable),
        "parameters": parameters,
        "trainable_parameters": trained,
        "trainable_share": trained / parameters,
        "saved_bytes": saved,
    }


def short(component: str) -> str:
    """A component's name in a narrow table."""
    return {"vision_tower": "tower"}.get(component, component)


if __name__ == "__main__":
    sys.exit(main())
