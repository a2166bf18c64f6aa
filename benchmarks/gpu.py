"""What a GPU's step makes of its ceilings: random weights in the shapes of Qwen2.5-VL, synthetic samples, no loader.

First the ceilings: a bf16 matrix product and a copy. Then steps of 16 samples: `r1` (each a picture of 1036 x 1036
pixels and 300 tokens of text, 150 supervised: 26.7k tokens in all), `skewed` (the mix of waste.py) and `text`. Each
side of each recipe is a process of its own:

    vlmft   the collator's packs of at most 32,768 tokens, `supervised_loss`, the model as a run has it
    plain   transformers and PEFT in bf16, padded micro-batches of 8, the model's own loss
    trl     the same with TRL's fused head, its SFTTrainer's loss

Useful work is what the linear layers compute for tokens that are no padding: forward, the gradients of their inputs
where something before them trains, and of their own weights where these do. Attention, recomputing and everything else
count nothing, so the share of the ceiling is a lower bound. `exact` compares samples in a pack with themselves alone,
by the CUDA kernel. No figures of it are recorded yet.

    python benchmarks/gpu.py           both sizes; needs a GPU of 80 GB and 25 GB of disk
    python benchmarks/gpu.py --quick   the tiny Qwen2.5-VL, one recipe, on a CPU too; no result file
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import Spread, composed, provenance, show, write_result
from families import SIZES
from recipes_gpu import gpu_name, load_plain, load_vlmft, write_random
from waste import mix

from vlmft.assembly import quiet_libraries

RECIPES = {
    "Qwen/Qwen2.5-VL-7B-Instruct": ("lora_llm", "ln_vt_lora_llm", "lora_vt_llm"),
    "Qwen/Qwen2.5-VL-3B-Instruct": ("lora_llm", "fft_llm"),
}
CASES, SIDES = ("r1", "skewed", "text"), ("vlmft", "plain", "trl")
SAMPLES, BUDGET, PADDED, PATCHES, TEXT, SUPERVISED = 16, 32_768, 8, (74, 74), 300, 150
WARMUP, STEPS = 2, 5
BOUND_CEILING = 0.6
"""Of the measured matrix product's rate, on r1."""
BOUND_SKEWED = 2.0
"""Times the samples a second of TRL's side, on the skewed mix."""


@dataclass(frozen=True)
class Sample:
    """One sample's lengths: tokens of text and the grid of its picture in patches, if it has one."""

    text: int
    grid: tuple[int, int] | None
    supervised: int


def main() -> int:
    """Measure, print, write benchmarks/results/gpu.json; return 1 where a side failed by an error or a pack differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model, no result file")
    parser.add_argument("--one", nargs=4, metavar="WORD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.one:
        print(json.dumps(one(*options.one)))
        return 0
    made = provenance() | {"gpu": gpu_name()}
    top = ceilings(512 if options.quick else 8192)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            found["tiny"] = {
                "lora_llm": {side: child(composed().model.folder(), "lora_llm", side, "quick") for side in SIDES}
            }
        for size in [] if options.quick else [size for size in SIZES if size.checkpoint in RECIPES]:
            path = write_random(size, Path(folder) / "model")
            found[size.checkpoint] = {
                recipe: {side: child(path, recipe, side, "full") for side in SIDES}
                for recipe in RECIPES[size.checkpoint]
            }
    table = [
        (f"{name} {recipe} {case}: {side}", *cells(figures, top["matmul"]))
        for name, recipes in found.items()
        for recipe, sides in recipes.items()
        for side, cases in sides.items()
        for case, figures in cases.items()
        if case != "exact"
    ]
    note = f"ceilings: {top['matmul'] / 1e12:.1f} TFLOP/s in a matrix product, {top['copy'] / 1e9:.0f} GB/s in a copy"
    goal = f"meant: {BOUND_CEILING:.0%} of the matrix product on r1, {BOUND_SKEWED} times trl's samples/s on skewed"
    show("steps on a GPU", ("", "samples/s", "p10 to p90", "of matmul", "peak GB"), table, [note, goal])
    if not options.quick:
        write_result("gpu", {"command": "python benchmarks/gpu.py", "ceilings": top, "models": found}, made)
    sides = [cases for recipes in found.values() for one in recipes.values() for cases in one.values()]
    return int(any("error" in case for cases in sides for case in cases.values() if isinstance(case, dict)))


def ceilings(side: int) -> dict[str, float]:
    """FLOP/s of a bf16 matrix product of this side, and bytes/s of a copy, read and written."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    one = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    other, target = one.clone(), torch.empty_like(one)
    product = statistics_of(lambda: torch.mm(one, other, out=target), 10)
    copied = statistics_of(lambda: target.copy_(one), 10)
    return {"matmul": 2 * side**3 / product.median, "copy": 4 * side * side / copied.median}


def statistics_of(take: Callable[[], Any], times: int) -> Spread:
    """Seconds of each of so many calls, after two unmeasured ones."""
    import torch

    seconds = []
    for number in range(times + WARMUP):
        started = time.perf_counter()
        take()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number >= WARMUP:
            seconds.append(time.perf_counter() - started)
    return Spread.of(seconds)


def child(path: Path, recipe: str, side: str, size: str) -> dict[str, Any]:
    """What `one` finds, by case; an error under the case `r1` where it fails."""
    command = [sys.executable, __file__, "--one", str(path), recipe, side, size]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"r1": {"error": (done.stderr.strip().splitlines() or ["no word"])[-1]}}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(path: str, recipe: str, side: str, size: str) -> dict[str, Any]:
    """Every case of one side under one recipe."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = composed("model=qwen25vl", f"model.path={path}", "precision=bf16", f"recipe={recipe}")
    model = (load_vlmft if side == "vlmft" else load_plain)(config, device)
    if side == "trl":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model.get_base_model() if hasattr(model, "get_base_model") else model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    model.train()
    found: dict[str, Any] = {}
    for case in CASES:
        samples = samples_of(case, small=size == "quick")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            take = partial(step, model, config, side, *encoded(samples, model), optimizer)
            seconds = statistics_of(take, STEPS)
        except torch.OutOfMemoryError:
            found[case] = {"fits": False}
            continue
        found[case] = {
            "fits": True,
            "samples_per_s": Spread.of([len(samples) / seconds.p90, len(samples) / seconds.p10]).__dict__
            | {"median": len(samples) / seconds.median, "n": seconds.n},
            "useful_flops_per_s": useful_flops(model, samples) / seconds.median,
            "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        }
    if side == "vlmft":
        found["exact"] = exact(model, config, samples_of("skewed", small=size == "quick")[:4])
    return found


def samples_of(case: str, small: bool) -> list[Sample]:
    """The step's samples."""
    if case == "skewed":
        scale = 64 if small else 1
        # What media take is one picture.
        parts = [(max(20, text // scale), 2 * math.isqrt(media // scale)) for text, media in mix(SAMPLES)]
        return [Sample(text, (side, side) if side else None, text // 2) for text, side in parts]
    grid = (8, 8) if small else PATCHES
    text = TEXT // 8 if small else TEXT
    return [Sample(text, grid if case == "r1" else None, text // 2)] * (4 if small else SAMPLES)


def encoded(samples: list[Sample], model: Any) -> tuple[list[Any], Any]:
    """The samples as the encoder would give them, of noise, and what a collator needs of a processor."""
    import torch
    from transformers import Qwen2VLImageProcessor

    from vlmft.encoding.encoder import Encoded

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    token, made = base.config.image_token_id, []
    torch.manual_seed(0)
    for number, sample in enumerate(samples):
        media, picture = [], torch.empty(0, dtype=torch.int64)
        if sample.grid:
            patches = torch.randint(0, 256, (sample.grid[0] * sample.grid[1], 3, 196), dtype=torch.uint8)
            media = [{"patches": patches, "grid": torch.tensor([1, *sample.grid])}]
            picture = torch.full((len(patches) // 4,), token)
        words = torch.randint(0, min(token, 200), (sample.text,))
        ids = torch.cat([words[: -sample.supervised], picture, words[-sample.supervised :]])
        supervised = torch.zeros(len(ids), dtype=torch.bool)
        supervised[-sample.supervised :] = True
        made.append(Encoded(str(number), ids, supervised, media, len(picture), None))
    tokenizer = SimpleNamespace(pad_token_id=0)
    processor = SimpleNamespace(
        tokenizer=tokenizer, image_processor=Qwen2VLImageProcessor(), image_token_id=token, video_token_id=-1
    )
    return made, processor


def step(model: Any, config: Any, side: str, ready: list[Any], processor: Any, optimizer: Any) -> None:
    """One optimiser step."""
    import torch

    from vlmft.encoding import Packed
    from vlmft.encoding.collate import Collator
    from vlmft.training.loss import supervised_loss

    total = sum(sample.num_supervised for sample in ready)
    collator = Collator(config.model, processor, packs=side == "vlmft")
    if side == "vlmft":
        cuts = Packed(max_tokens=BUDGET).micro_batches([one.num_tokens for one in ready], kinds=collator.kinds(ready))
    else:
        cuts = [list(range(at, min(at + PADDED, len(ready)))) for at in range(0, len(ready), PADDED)]
    for cut in cuts:
        batch = [ready[number] for number in cut]
        if side == "vlmft":
            loss = supervised_loss(model, *collator.for_loss(batch, model))
        else:
            inputs, labels = collator.on_device(batch, model)
            extra = {"fused_lm_head": True} if side == "trl" else {}
            output = model(**inputs, labels=labels, use_cache=False, **extra)
            loss = -output.log_probs.sum() if side == "trl" else output.loss * labels[:, 1:].ne(-100).sum()
        (loss / total).backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def useful_flops(model: Any, samples: list[Sample]) -> float:
    """Of a step, by the linear layers."""
    from torch import nn

    patches = sum(sample.grid[0] * sample.grid[1] for sample in samples if sample.grid)
    tokens, total, trains = patches // 4 + sum(sample.text for sample in samples), 0.0, False
    # A tower's parts stand before the LLM's in the order of a Qwen-VL's modules, but for its merger.
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d) and "lora_" not in name and "original_module" not in name:
            rows = tokens if "language_model" in name else patches // 4 if "merger" in name else patches
            rows = sum(sample.supervised for sample in samples) if "lm_head" in name else rows
            own = module.weight.requires_grad
            total += 2 * module.weight.numel() * rows * (1 + trains + own)
        trains = trains or any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    return total


def exact(model: Any, config: Any, samples: list[Sample]) -> float:
    """The largest difference between logits of samples in a pack and alone, as a share of the largest logit."""
    import torch

    from vlmft.encoding.collate import Collator
    from vlmft.training.loss import supervised_logits

    ready, processor = encoded(samples, model)
    collator = Collator(config.model, processor, packs=True)
    with torch.no_grad():
        packed = supervised_logits(model, *collator.for_loss(ready, model))[0][0]
        alone = torch.cat([supervised_logits(model, *collator.on_device([one], model))[0][0] for one in ready])
    return float((packed - alone).abs().max() / alone.abs().max())


def cells(found: dict[str, Any], ceiling: float) -> tuple[str, ...]:
    """A case's figures, or why there are none."""
    if "error" in found:
        return found["error"][:40], "", "", ""
    if not found["fits"]:
        return "does not fit", "", "", ""
    rate, peak = found["samples_per_s"], found["peak_bytes"]
    spread = f"{rate['p10']:.2f} to {rate['p90']:.2f}"
    share = f"{found['useful_flops_per_s'] / ceiling:.0%}"
    return f"{rate['median']:.2f}", spread, share, "-" if peak is None else f"{peak / 1e9:.1f}"


if __name__ == "__main__":
    sys.exit(main())
