import io

import pytest
from rich.console import Console

from vlmft.training.progress import TrainingProgress

LINE = {"step": 2, "loss": 0.5, "learning_rate": 1e-4, "samples_per_s": 3.0, "supervised_tokens_per_s": 40.0}


@pytest.mark.parametrize(
    ("more", "said"), [({}, "loss 0.5000  lr"), ({"reward": 4.25}, "reward 4.250  loss 0.5000  lr")]
)
def test_without_a_terminal_the_last_step_is_a_line(more: dict[str, float], said: str) -> None:
    stream = io.StringIO()
    with TrainingProgress(2, Console(file=stream, width=200)) as progress:
        progress.show(LINE | {"step": 1})
        progress.show({"step": 1, "eval/reward": 1.0})
        progress.show(LINE | more)
    lines = [line for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[-1] == f"step 2/2  {said} 1.00e-04  3.0 samples/s  40 supervised tokens/s"
