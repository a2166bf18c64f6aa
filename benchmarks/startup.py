"""What a user waits for before vlmft answers: `python -m vlmft.train --cfg job` beside `python -c "import hydra"`.

Whole processes, from start to exit, taken in turns so that what else the machine does falls on both alike. The
difference is what vlmft itself adds to Python and Hydra; a run's own checks and torch come only after this answer.
"""

import argparse
import subprocess
import sys
import tempfile
import time

from common import Spread, provenance, show, write_result

BOUND_S = 0.6
COMMANDS = {
    "import hydra": [sys.executable, "-c", "import hydra"],
    "vlmft.train --cfg job": [sys.executable, "-m", "vlmft.train", "--cfg", "job"],
}


def main() -> int:
    """Measure, print, write benchmarks/results/startup.json; return 1 where the bound is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="times each command is run (default: 21)")
    parser.add_argument("--quick", action="store_true", help="3 rounds, and no result file")
    options = parser.parse_args()
    made = provenance()
    seconds = measure(3 if options.quick else options.rounds)
    plain, vlmft = (Spread.of(taken) for taken in seconds.values())
    added = vlmft.median - plain.median
    show(
        "seconds from start to exit",
        ("command", "median", "p10 to p90", "mean"),
        [(name, *Spread.of(taken).cells()) for name, taken in seconds.items()],
        [f"vlmft adds {added:.2f} s to Hydra; at most {BOUND_S} s are allowed"],
    )
    if not options.quick:
        write_result(
            "startup",
            {
                "command": "python benchmarks/startup.py",
                "unit": "s",
                "import_hydra": plain,
                "vlmft_cfg_job": vlmft,
                "added_s": added,
                "bound_s": BOUND_S,
            },
            made,
        )
    return int(added > BOUND_S)


def measure(rounds: int) -> dict[str, list[float]]:
    """Run the commands in turns, once unmeasured (the disk cache fills), then `rounds` times; return seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name, command in COMMANDS.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
                if number:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
