"""Record the first losses of the default run anew, after a change that is meant to move them.

    python -m tests.e2e.record_losses

writes tests/e2e/recorded_losses.json, which test_default_run.py compares with. Say in the commit why they moved.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RECORDED = Path(__file__).with_name("recorded_losses.json")
NUM_LOSSES = 20


def record() -> None:
    """Run the embedded default and keep its first losses."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "vlmft.train", f"run.dir={run}", "evaluation=none"]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    RECORDED.write_text(json.dumps(losses[:NUM_LOSSES], indent=1) + "\n")


if __name__ == "__main__":
    record()
