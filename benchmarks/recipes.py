"""What each recipe trains, what it leaves on disk, and what a step of it takes against full training.

Every recipe of conf/recipe trains the same batches of generated pictures, on the tiny checkpoint's classes with an LLM
of 66 M parameters. Its steps and those of `fft` are taken in turns in one process, so that whatever else the machine
does meets both; the ratio is that of the medians. On a CPU, quantised layers are unpacked in each pass: their ratio
says nothing of a GPU.

    python benchmarks/recipes.py            measure, print, write benchmarks/results/recipes.json
    python benchmarks/recipes.py --readme   write what that file holds into README.md; measure nothing
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
from common import Spread, composed, make_mid_size, provenance, show, write_result

ROUNDS, QUICK_ROUNDS = 7, 2
QUICK = ["lora_llm"]
BATCH = 8
PROJECT = Path(__file__).parents[1]
CONF = PROJECT / "conf/recipe"
README = PROJECT / "README.md"
BEGIN, END = "<!-- written by `python benchmarks/recipes.py --readme` -->", "<!-- end -->"
SHORT = {"vision_tower": "tower", "llm": "LLM"}


def main() -> int:
    """Measure, print, write benchmarks/results/recipes.json; or write README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"steps of each side (default: {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of {QUICK[0]}, no result file")
    parser.add_argument("--readme", action="store_true", help="write the last result into README.md, measure nothing")
    options = parser.parse_args()
    if options.readme:
        README.write_text(with_block(README.read_text(encoding="utf-8"), readme_block(read_result())), encoding="utf-8")
        return 0
    made = provenance()
    names = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "fft")
    names = QUICK if options.quick else names
    rounds = QUICK_ROUNDS if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        path = make_mid_size(Path(folder) / "model")
        found = measure(path, names, rounds)
    show_tables(found)
    if not options.quick:
        head = {"command": "python benchmarks/recipes.py", "unit": "ms", "samples_a_step": BATCH}
        write_result("recipes", head | {"recipes": found}, made)
    return 0


def measure(path: Path, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
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
        ratio = {"of_fft": spread.median / reference.median}
        found[name] = figures | {"step": asdict(spread), "fft_step": asdict(reference)} | ratio
        of_fft += times["fft"]
        del step
        gc.collect()
    spread = Spread.of(of_fft)
    return {"fft": described | {"step": asdict(spread), "fft_step": asdict(spread), "of_fft": 1.0}} | found


def prepare(path: Path, recipe: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """A function that takes one optimiser step, and what the recipe comes to."""
    import torch
    from peft.tuners import lora  # noqa: F401  # else bitsandbytes' tables, which it imports, would count as copies

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
    held = live_bytes()
    model = apply_recipe(model, config.recipe, family, torch.float32)
    adapters = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if ".lora_" in name)
    copies = live_bytes() - held - adapters
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
        "trains": {row.component: row.policy for row in rows if row.trainable},
        "parameters": parameters,
        "trainable_parameters": trained,
        "trainable_share": trained / parameters,
        "saved_bytes": saved,
        "copies_bytes": copies,
    }


def live_bytes() -> int:
    """What all tensors of this process hold, each storage once."""
    import torch

    gc.collect()
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def show_tables(found: dict[str, dict[str, Any]]) -> None:
    """Print what was found, in 80 columns."""
    show(
        "what each recipe trains",
        ("recipe", "tower / projector / LLM", "share", "saved", "copies"),
        [(name, " / ".join(policies(figures)), *sizes(figures)) for name, figures in found.items()],
        ["saved, copies: MiB of trained weights on disk, and of originals kept beside trained copies"],
    )
    show(
        "seconds a step",
        ("recipe", "median", "p10 to p90", "fft's median", "of fft's"),
        [(name, *seconds(figures)) for name, figures in found.items()],
        [f"{BATCH} samples a step, float32, {min(f['step']['n'] for f in found.values())} steps of each in turns"],
    )


def policies(figures: dict[str, Any]) -> list[str]:
    """What trains in each component; a dash where nothing does."""
    return [figures["trains"].get(component, "-") for component in ("vision_tower", "projector", "llm")]


def sizes(figures: dict[str, Any]) -> tuple[str, str, str]:
    """The trained share, and MiB of what is saved and of second copies."""
    copies = figures["copies_bytes"]
    return (
        f"{figures['trainable_share']:.1%}",
        f"{figures['saved_bytes'] / 2**20:.1f}",
        f"{copies / 2**20:.1f}" if copies else "-",
    )


def seconds(figures: dict[str, Any]) -> tuple[str, str, str, str]:
    """The recipe's step, its spread, and fft's in the same turns, in seconds; and the ratio."""
    step, fft = figures["step"], figures["fft_step"]
    spread = f"{step['p10'] / 1000:.2f} to {step['p90'] / 1000:.2f}"
    return f"{step['median'] / 1000:.2f}", spread, f"{fft['median'] / 1000:.2f}", f"{figures['of_fft']:.2f}"


def read_result() -> dict[str, Any]:
    """The last result."""
    result: dict[str, Any] = json.loads((common.RESULTS / "recipes.json").read_text(encoding="utf-8"))
    return result


def readme_block(result: dict[str, Any]) -> str:
    """What README.md says of a result."""
    found: dict[str, dict[str, Any]] = result["recipes"]
    steps = min(figures["step"]["n"] for figures in found.values())
    about = (
        f"A step of each recipe against one of `fft`, in turns in one process (medians of {steps}, p10 to p90 in "
        "brackets): the tiny checkpoint's classes with an LLM of "
        f"{found['fft']['parameters'] / 1e6:.0f} M parameters, {result['samples_a_step']} samples, float32. A CPU says "
        "little of a GPU here: quantised layers are unpacked in each pass. Second copies are the originals that PEFT "
        "keeps of what trains in full beside adapters, measured as memory that tensors take."
    )
    lines = [
        textwrap.fill(about, 120, break_long_words=False),
        "",
        "| recipe | what trains | trained | saved, MiB | second copies, MiB | seconds a step | of `fft`'s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figures in found.items():
        trains = ", ".join(
            f"{SHORT.get(component, component)} {policy}" for component, policy in figures["trains"].items()
        )
        share, saved, copies = sizes(figures)
        median, spread, _, ratio = seconds(figures)
        lines.append(f"| `{name}` | {trains} | {share} | {saved} | {copies} | {median} ({spread}) | {ratio} |")
    return "\n".join(lines)


def with_block(text: str, block: str) -> str:
    """README.md's text with `block` between its two marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README.name} has no {BEGIN} followed by {END}")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
