"""What GRPO adds to a tiny model in minutes: its reward on held-out pictures, base against tuned, for three seeds.

For each seed two commands are typed. The first is a short supervised run on the generated shapes, after which the model
answers with some colour, right in a third of the cases; guessing the likeliest answer to each question is as good. The
second goes on from there by rewards alone: `trainer=grpo reward=correctness`. Both look at the same 300 held-out
samples, greedily. The picture shows the mean reward of each step's completions, which are sampled.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, provenance, show, write_result

SEEDS = (0, 1, 2)
WITHIN_S = 240.0
LEAST_GAIN = 0.1
FIRST_STEPS, THEN_STEPS, QUICK_STEPS = 40, 60, 2
THEN = (
    *("trainer=grpo", "dataset=shapes", "reward=correctness", "metric=none"),
    *("trainer.max_new_tokens=4", "evaluation.max_new_tokens=4", "optim.lr=1e-3", "optim.schedule=constant"),
    "trainer.num_generations=16",
)
_SMOOTH = 5  # steps that a point of the picture is the mean of


def main() -> int:
    """Measure, print, write benchmarks/results/grpo.json and grpo.png; return 1 where a seed gains too little."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and two steps, and no result file")
    options = parser.parse_args()
    made = provenance()
    with tempfile.TemporaryDirectory() as folder:
        seeds = SEEDS[:1] if options.quick else SEEDS
        found = {seed: measure(Path(folder), seed, options.quick) for seed in seeds}
    show(
        "mean reward on held-out pictures, 95 % intervals",
        ("seed", "base", "tuned", "p", "seconds of training"),
        [
            (str(seed), interval(f["base"]), interval(f["tuned"]), f"{f['p_value']:.1e}", f"{f['seconds']:.0f}")
            for seed, f in found.items()
        ],
        [f"each has to gain {LEAST_GAIN} with p < 0.001, within {WITHIN_S:.0f} s"],
    )
    if not options.quick:
        bound = {"command": "python benchmarks/grpo.py", "least_gain": LEAST_GAIN, "within_s": WITHIN_S}
        write_result(
            "grpo",
            bound | {"words": " ".join(THEN), "steps": THEN_STEPS} | {f"seed_{s}": f for s, f in found.items()},
            made,
        )
        draw(found, RESULTS / "grpo.png")
    return int(not options.quick and not all(map(keeps, found.values())))


def keeps(figures: dict[str, Any]) -> bool:
    """Whether a seed's figures keep the bounds."""
    gain = figures["tuned"]["value"] - figures["base"]["value"]
    return bool(gain >= LEAST_GAIN and figures["p_value"] < 0.001 and figures["seconds"] <= WITHIN_S)


def measure(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Both runs of a seed; what the second came to."""
    first, then = folder / f"sft-{seed}", folder / f"grpo-{seed}"
    common = (f"seed={seed}", "preview=0", "logger=none")
    steps = (QUICK_STEPS, QUICK_STEPS) if quick else (FIRST_STEPS, THEN_STEPS)
    train(first, f"trainer.max_steps={steps[0]}", "evaluation=none", *common)
    began = time.perf_counter()
    words = (f"trainer.max_steps={steps[1]}", f"model.adapter={first}", "trainer.save_completions=null")
    train(then, *THEN, *common, *words)
    seconds = time.perf_counter() - began
    result = json.loads((then / "result.json").read_text())["eval"]
    lines = [json.loads(line) for line in (then / "metrics.jsonl").read_text().splitlines()]
    sides = {
        side: {"value": result[side]["reward"], "interval": result["intervals"][side]["reward"]}
        for side in ("base", "tuned")
    }
    rewards = [round(line["reward"], 4) for line in lines if "reward" in line]
    return {**sides, "p_value": result["p_value"], "n": result["n"], "seconds": seconds, "rewards": rewards}


def train(run: Path, *words: str) -> None:
    """Type the command; raise where it fails, with what it said."""
    command = [sys.executable, "-m", "vlmft.train", f"run.dir={run}", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


def interval(side: dict[str, Any]) -> str:
    """A score as a table shows it."""
    low, high = side["interval"]
    return f"{side['value']:.3f} [{low:.3f}, {high:.3f}]"


def draw(found: dict[int, dict[str, Any]], path: Path) -> None:
    """The reward of each step's completions, smoothed, and the held-out reward before and after, a colour a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    panel: Any = figure.subplots()
    for number, (seed, figures) in enumerate(found.items()):
        rewards = figures["rewards"]
        smooth = [statistics.fmean(rewards[max(0, i - _SMOOTH + 1) : i + 1]) for i in range(len(rewards))]
        colour = f"C{number}"
        panel.plot(range(1, len(rewards) + 1), smooth, color=colour, label=f"seed {seed}: completions, sampled")
        sides = [figures["base"], figures["tuned"]]
        values = [side["value"] for side in sides]
        errors = [[abs(side["value"] - side["interval"][end]) for side in sides] for end in (0, 1)]
        at = [0, len(rewards) + 1]
        panel.errorbar(at, values, errors, fmt="o", capsize=3, color=colour, label=f"seed {seed}: held out, greedy")
    panel.set(xlabel="optimiser step", ylabel="mean reward", ylim=(0, 1))
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small", ncols=2, loc="lower right")
    figure.savefig(path, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    sys.exit(main())
