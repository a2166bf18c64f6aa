"""A million samples: what a run waits for before its first step, and what it holds in memory.

The file has 1,000,000 LLaVA rows of about 275 bytes, as JSON Lines and as a JSON list. Each figure is of a process of
its own that does what a run's processes do with its data: open the entry, and make the order of training (the imports
are not counted). The driver starts with an empty cache folder, so it reads the file through and writes its index; a
rank comes after it and finds the index. Memory is the process's peak, less what it held after the imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Spread, provenance, show, write_result

ROWS = 1_000_000
BOUND_S = 5.0
BOUND_MB = 500.0


def main() -> int:
    """Measure, print, write benchmarks/results/million.json; return 1 where a bound is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="processes of each kind (default: 7)")
    parser.add_argument("--quick", action="store_true", help="20,000 rows, 2 rounds, and no result file")
    parser.add_argument("--process", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        print(json.dumps(measure_here(options.process)))
        return 0
    made = provenance()
    rows, rounds = (20_000, 2) if options.quick else (ROWS, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        lines, listed = write_rows(Path(folder), rows)
        size = lines.stat().st_size
        figures = {path.suffix[1:]: measure(path, Path(folder) / "cache", rounds) for path in (lines, listed)}
    show(
        f"{rows:,} samples: seconds until the order of training stands, and MB that the process grows by",
        ("process", "seconds", "p10 to p90", "MB", "p10 to p90"),
        [
            (f"{kind}, {process}", *seconds.cells()[:2], *megabytes.cells()[:2])
            for kind, processes in figures.items()
            for process, (seconds, megabytes) in processes.items()
        ],
        [f"at most {BOUND_S:g} s (JSON Lines) and {BOUND_MB:g} MB are allowed"],
    )
    if not options.quick:
        result = {
            kind: {process: {"seconds": s, "megabytes": mb} for process, (s, mb) in processes.items()}
            for kind, processes in figures.items()
        }
        bounds = {"bound_s": BOUND_S, "bound_mb": BOUND_MB}
        sizes = {"rows": rows, "bytes_a_row": round(size / rows, 1)}
        write_result("million", {"command": "python benchmarks/million.py", **sizes, **result, **bounds}, made)
    slow = any(seconds.median > BOUND_S for seconds, _ in figures["jsonl"].values())
    large = any(mb.median > BOUND_MB for processes in figures.values() for _, mb in processes.values())
    return int(slow or large)


def write_rows(folder: Path, rows: int) -> tuple[Path, Path]:
    """Write the same rows as JSON Lines and as a list, one row a line."""
    lines, listed = folder / "rows.jsonl", folder / "rows.json"
    with lines.open("w") as a, listed.open("w") as b:
        for number in range(rows):
            question = f"<image>\nWhat is shown in this picture, number {number}?"
            answer = "A red kite over the hills on a windy day, somewhat to the left of the tree."
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            row = {"id": f"sample-{number:09d}", "image": f"images/{number % 1000:04d}/{number:09d}.jpg"}
            text = json.dumps(row | {"conversations": turns})
            a.write(f"{text}\n")
            b.write(f"{',' if number else '['}\n{text}")
        b.write("\n]\n")
    return lines, listed


def measure(path: Path, cache: Path, rounds: int) -> dict[str, tuple[Spread, Spread]]:
    """Seconds and megabytes of a driver, with an empty cache folder, and of a rank after it, in turns."""
    found: dict[str, list[dict[str, float]]] = {"driver": [], "rank": []}
    for number in range(rounds):
        environment = os.environ | {"XDG_CACHE_HOME": str(cache / f"{path.suffix}{number}")}
        for process in found.values():
            command = [sys.executable, __file__, "--process", str(path)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            process.append(json.loads(done.stdout))
    return {
        name: (Spread.of([one["seconds"] for one in each]), Spread.of([one["megabytes"] for one in each]))
        for name, each in found.items()
    }


def measure_here(path: Path) -> dict[str, float]:
    """Do with the data what every process of a run does."""
    import vlmft.data.sources.conversation
    import vlmft.data.sources.jsonrows  # noqa: F401
    from vlmft.data import LLaVADataset
    from vlmft.data.run_data import open_run_data

    before = memory("VmRSS")
    start = time.perf_counter()
    data = open_run_data({"mine": LLaVADataset(data_path=path)}, {}, holdout=0.0, seed=0)
    data.mixture.at(0)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "megabytes": (memory("VmHWM") - before) / 1e6}


def memory(what: str) -> int:
    """Bytes that this process holds (VmRSS), or has held at most (VmHWM). Linux alone says so."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what))


if __name__ == "__main__":
    sys.exit(main())
