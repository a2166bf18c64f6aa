"""`-m`: each job in its own processes; one that fails does not hurt the others."""

import csv
import os
import signal
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Typed, losses, read_result, until

SHORT = ("trainer.max_steps=3", "evaluation=none", "optim.warmup=0", "trainer.num_workers=0")
SMALL = ("dataset.shapes.train_samples=64", "dataset.shapes.eval_samples=8")


def injected(folder: Path, code: str) -> dict[str, str]:
    """The environment in which every rank carries out `code` before its own."""
    lines = f"import os\nif os.environ.get('RANK'):\n{textwrap.indent(textwrap.dedent(code), '    ')}"
    (folder / "sitecustomize.py").write_text(lines)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def rows_of(out: str) -> list[list[str]]:
    """The rows of the sweep's table."""
    lines = out[out.index("\nsweep ") :].splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    return [row for row in rows if row[0]]


def test_a_failed_job_is_reported_the_next_one_runs_and_a_second_start_does_what_is_missing(
    typed: Typed, work: Path, tmp_path: Path
) -> None:
    """Of three jobs one is misconfigured, one is done, and one is killed by the kernel in its second step."""
    words = ("-m", "seed=x,0,1", "run.dir=sweep", *SHORT, *SMALL)
    code = """
    import os, signal, sys
    from vlmft.training import sft

    if sys.orig_argv[-1].endswith("/2"):  # job 2: its rank is killed in its second step, as for want of memory
        loss, calls = sft.supervised_loss, []

        def supervised_loss(*args):
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss(*args)

        sft.supervised_loss = supervised_loss
    """
    ended = typed(*words, "trainer.save_every=1", **injected(tmp_path, code))
    assert ended.code == 2
    sweep = work / "sweep"
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["1", "2"]
    done, killed = read_result(sweep / "1"), read_result(sweep / "2")
    assert (done["state"], done["exit_code"], done["steps"]) == ("done", 0, 3)
    assert (killed["state"], killed["exit_code"]) == ("failed", 137)
    assert len(losses(sweep / "1")) == 3 and (sweep / "1" / "final" / "trained.safetensors").is_file()
    assert done["parameters"] == done["trainable_parameters"] > 300_000
    assert 100e6 < done["peak_memory_bytes"] < 8e9
    assert done["overrides"][0] == "seed=0" and not (sweep / "2" / "final").exists()

    wrong, second, third = rows_of(ended.out)
    assert wrong[:2] == ["0", "seed=x"] and wrong[2].startswith("failed: seed: Input should be a valid integer")
    assert second[:4] == ["1", "seed=0", "done", f"{losses(sweep / '1')[-1]:.3f}"]
    assert third[:3] == ["2", "seed=1", "failed: rank 0 was killed by signal SIGKILL"]
    assert (sweep / "summary.png").read_bytes().startswith(b"\x89PNG")
    before = (sweep / "1" / "result.json").read_bytes()

    again = typed(*words, "trainer.save_every=1")
    assert again.code == 2  # seed=x still is no number
    assert f"run      {sweep / '1'} is finished already; nothing was changed" in again.out
    assert (sweep / "1" / "result.json").read_bytes() == before
    assert f"resumed  {sweep / '2' / 'checkpoints' / 'step-00000001'}" in again.out
    assert [row[2] for row in rows_of(again.out)][1:] == ["done", "done"]
    with (sweep / "summary.csv").open() as file:
        assert [(row["job"], row["seed"], row["state"]) for row in csv.DictReader(file)] == [
            ("0", "x", "failed"),
            ("1", "0", "done"),
            ("2", "1", "done"),
        ]


@pytest.mark.slow
def test_a_job_that_diverges_and_one_without_memory_leave_the_third_unharmed(
    typed: Typed, work: Path, tmp_path: Path
) -> None:
    code = """
    import sys
    import torch
    from vlmft.training import sft

    def supervised_loss(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if sys.orig_argv[-1].endswith("/0"):
        sft.supervised_loss = supervised_loss
    """
    ended = typed("-m", "optim.lr=1e-4,1e+30,0.001", "run.dir=sweep", *SHORT, *SMALL, **injected(tmp_path, code))
    assert ended.code == 4
    assert [read_result(work / "sweep" / str(number))["exit_code"] for number in range(3)] == [4, 3, 0]
    first, second, third = rows_of(ended.out)
    assert first[:3] == ["0", "optim.lr=0.0001", "failed: CUDA out of memory. Tried to allocate 2.00 GiB."]
    assert second[2].startswith("failed: the loss of step 2 is nan")
    assert third[1:3] == ["optim.lr=0.001", "done"]
    assert "error: the loss of step 2 is nan" in ended.err


POOL = ("-m", "hydra/launcher=pool", "hydra.launcher.slots=2")


@pytest.mark.slow
def test_jobs_beside_each_other(typed: Typed, work: Path, tmp_path: Path) -> None:
    """One is misconfigured, one runs out of memory, one is done; each says so in the table, and prints to its log."""
    code = """
    import sys
    import torch
    from vlmft.training import sft

    def supervised_loss(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if sys.orig_argv[-1].endswith("/2"):
        sft.supervised_loss = supervised_loss
    """
    ended = typed(*POOL, "seed=x,0,1", "run.dir=sweep", *SHORT, *SMALL, **injected(tmp_path, code))
    assert ended.code == 2
    assert [row[:3] for row in rows_of(ended.out)][1:] == [
        ["1", "seed=0", "done"],
        ["2", "seed=1", "failed: CUDA out of memory. Tried to allocate 2.00 GiB."],
    ]
    assert "pool     2 jobs on 2 x cpu" in ended.out and "job 1 started on cpu slot 0: seed=0" in ended.out
    assert "steps    " not in ended.out  # the jobs' own words are in their logs
    assert "tuned model  " in (work / "sweep" / "1" / "log.txt").read_text()
    assert "error: CUDA out of memory." in (work / "sweep" / "2" / "log.txt").read_text()
    assert read_result(work / "sweep" / "2")["exit_code"] == 4
    assert ended.err.splitlines() == [line for line in ended.err.splitlines() if line.startswith("error: seed: Input")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "state"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "stopped")]
)
def test_a_signal_reaches_every_job_none_is_left_and_the_same_words_go_on(
    started: Callable[..., "subprocess.Popen[str]"],
    typed: Typed,
    work: Path,
    number: signal.Signals,
    code: int,
    state: str,
) -> None:
    words = (*POOL, "seed=0,1,2", "run.dir=sweep", *SMALL, "evaluation=none", "trainer.num_workers=1")
    process = started(*words, "trainer.max_steps=200", "global_batch_size=2")
    logged = [work / "sweep" / str(job) / "metrics.jsonl" for job in (0, 1)]
    until(lambda: all(path.exists() and path.stat().st_size for path in logged), "the first steps of two jobs")
    below = psutil.Process(process.pid).children(recursive=True)
    assert len([child for child in below if "vlmft.worker" in child.cmdline()]) >= 2
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    _, alive = psutil.wait_procs(below, timeout=5)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    assert [read_result(work / "sweep" / str(job))["state"] for job in (0, 1)] == [state, state]
    assert not (work / "sweep" / "2").exists()
    assert [row[2].partition(":")[0] for row in rows_of(out)] == [state, state]
    ended = typed(*words, "trainer.max_steps=200", "global_batch_size=2")
    assert ended.code == 0, ended.out + ended.err
    assert [len(losses(work / "sweep" / str(job))) for job in range(3)] == [200, 200, 200]
    assert "resumed  " in (work / "sweep" / "0" / "log.txt").read_text()


@pytest.mark.slow
def test_a_killed_sweep_takes_its_jobs_along(started: Callable[..., "subprocess.Popen[str]"], work: Path) -> None:
    words = (*POOL, "seed=0,1", "run.dir=sweep", *SMALL, "evaluation=none", "trainer.num_workers=1")
    process = started(*words, "trainer.max_steps=2000")
    logged = [work / "sweep" / str(job) / "metrics.jsonl" for job in (0, 1)]
    until(lambda: all(path.exists() and path.stat().st_size for path in logged), "the first steps of two jobs")
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    assert [read_result(work / "sweep" / str(job))["state"] for job in (0, 1)] == ["preempted", "preempted"]


@pytest.mark.slow
def test_a_search_stops_what_lags_names_the_best_and_goes_on(typed: Typed, work: Path) -> None:
    """A rate of 1e-9 learns nothing: the third trial, which this seed gives it, is stopped. Then one more is asked."""
    words = (
        *("-m", "hydra/sweeper=optuna", "hydra/launcher=pool", "hydra.launcher.slots=1", "run.dir=sweep"),
        *("hydra.sweeper.objective=train.loss", "hydra.sweeper.direction=minimize", "hydra.sweeper.startup_trials=1"),
        *("hydra.sweeper.prune_by=loss", "hydra.sweeper.prune_every_steps=20", "hydra.sweeper.seed=4"),
        *("trainer.max_steps=800", "global_batch_size=2", "trainer.num_workers=0", "logger=none", "evaluation=none"),
        *("optim.lr=choice(1e-3,1e-9)", *SMALL),
    )
    first = typed(*words, "hydra.sweeper.trials=3")
    assert first.code == 0, first.out + first.err
    assert "best     trial " in first.out and "with optim.lr=0.001" in first.out
    assert [(chose, status.partition(":")[0]) for _, chose, status, *_ in rows_of(first.out)] == [
        ("optim.lr=0.001", "done"),
        ("optim.lr=0.001", "done"),
        ("optim.lr=1e-09", "pruned"),
    ]
    assert len(losses(work / "sweep" / "2")) < 800 and (work / "sweep" / "study.png").is_file()
    again = typed(*words, "hydra.sweeper.trials=4")
    assert again.code == 0, again.out + again.err
    started_again = [line.partition(" on ")[0] for line in again.out.splitlines() if " started on " in line]
    assert started_again == ["job 3 started"]
    assert [row[0] for row in rows_of(again.out)] == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_the_experiment_on_ranks_and_targets_says_which_is_fastest_and_which_ends_best(
    typed: Typed, work: Path
) -> None:
    short = ("trainer.max_steps=30", "trainer.num_workers=0", "evaluation.every_steps=15", "run.dir=sweep")
    ended = typed(*POOL, "+experiment=lora_rank_targets", *short, *SMALL)
    assert ended.code == 0, ended.out + ended.err
    rows = rows_of(ended.out)
    assert [row[2] for row in rows] == ["done"] * 6
    assert rows[0][1] == "recipe.llm.rank=4 recipe.llm.targets=[q_proj,v_proj]"
    trained = [int(row[6].replace(",", "")) for row in rows]
    assert sorted(trained[::2]) == trained[::2] and all(a < b for a, b in zip(trained[::2], trained[1::2], strict=True))
    (fastest,) = [line for line in ended.out.splitlines() if line.startswith("fastest: ")]
    (best,) = [line for line in ended.out.splitlines() if line.startswith("ends best: ")]
    assert " steps to a mean loss of " in fastest and ": exact_match " in best and "recipe.llm.targets=[" in best


def test_a_misspelt_value_ends_it_before_the_first_job(typed: Typed, work: Path) -> None:
    ended = typed("-m", "recipe=fft,lora_lm", "run.dir=sweep", *SHORT, *SMALL)
    assert ended.code == 2
    assert "recipe: there is no option lora_lm; did you mean lora_llm?" in ended.err
    assert not (work / "sweep").exists()
