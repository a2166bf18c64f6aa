"""GRPO whose completions a server makes, as a user types it."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import read_lines, read_result, run_here
from tests.training.standin import serving

RUN = (
    *("trainer=grpo", "trainer/rollouts=vllm", "trainer.rollouts.model=tiny", "trainer.rollouts.wait_s=5"),
    *("dataset=demo_grpo", "reward=length", "reward.length.unit=characters", "reward.length.least=20", "metric=none"),
    *("trainer.max_new_tokens=3", "trainer.save_completions=1", "trainer.log_every=1", "evaluation=none"),
    *(
        "global_batch_size=4",
        "trainer.num_generations=3",
        "preview=0",
        "trainer.num_workers=0",
        "logger=none",
        "strategy.device=cpu",
    ),
)


@pytest.mark.slow
def test_two_ranks_train_by_one_server(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with serving() as server:
        words = (f"trainer.rollouts.urls=[{server.url}]", f"run.dir={run}", "recipe=lora_llm", "strategy.ranks=2")
        assert run_here(*RUN, *words, "trainer.max_steps=2", "trainer.steps_per_generation=1") == 0
    lines = [line for line in read_lines(run) if "reward" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["sampling/logp_difference"] < 0.02 for line in lines)
    reloads = [body["kwargs"]["weights_path"] for path, body in server.asked if path == "/collective_rpc"]
    assert len(reloads) == 2 and all(
        path.startswith(str(run / "weights")) for path in reloads
    )  # rank 0 alone gives them
    asked = [body for path, body in server.asked if path.endswith("generate") and body["sampling_params"]["n"] == 3]
    assert len(asked) == 2 * 4 and len({json.dumps(body) for body in asked}) == 8
    assert read_result(run)["steps"] == 2


@pytest.mark.slow
def test_a_server_that_dies_ends_the_run_and_the_same_words_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = (*RUN, f"run.dir={run}", "trainer.max_steps=2", "trainer.save_every=1", "global_batch_size=2")
    with serving(dies_after=3) as server:  # a step is one look, and two prompts
        assert run_here(*words, f"trainer.rollouts.urls=[{server.url}]") == 1
        said = capfd.readouterr().err
        assert f"error: step 2: {server.url}/inference/v1/generate: not reachable" in said
        assert read_result(run)["exit_code"] == 1
    with serving() as other:
        assert run_here(*words, f"trainer.rollouts.urls=[{other.url}]") == 0
    assert read_result(run)["steps"] == 2
    assert [line["step"] for line in read_lines(run) if "reward" in line] == [1, 2]
