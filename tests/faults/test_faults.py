"""Numbers that are none, memory and disk used up, killed helpers, readers that have gone."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import copy_checkpoint, losses, read_lines, read_result
from tests.faults.conftest import STEPS, Type, outcome
from vlmft.training import commit

Injected = Callable[[str], dict[str, str]]


@pytest.mark.slow
def test_a_loss_that_is_no_number(type_: Type, work: Path) -> None:
    """One weight of the checkpoint is NaN."""
    from safetensors.torch import load_file, save_file

    folder = copy_checkpoint(work / "model")
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    next(weight for name, weight in weights.items() if "embed_tokens" in name).fill_(float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    driver = type_("model=qwen25vl", f"model.path={folder}", "precision=fp32", "recipe=lora_llm")
    code, err = driver.ended()
    assert code == 3, err
    assert outcome(work / "run") == ("failed", 3)
    bad_step = json.loads((work / "run" / "bad_step.json").read_text())
    reason = read_result(work / "run")["reason"]
    assert reason.startswith("the loss of step 1 is nan; the weights were not updated. The samples: shapes/")
    assert f"error: {reason}" in err
    assert (bad_step["step"], bad_step["reason"], len(bad_step["samples"])) == (1, reason, 2)
    assert all(sample_id.startswith("shapes/") and sample_id in reason for sample_id in bad_step["samples"])
    assert not (work / "run" / "checkpoints").exists() and not (work / "run" / "final").exists()


@pytest.mark.slow
def test_out_of_memory_on_the_device(type_: Type, work: Path, injected: Injected) -> None:
    full = injected(
        """
        import torch
        from vlmft.training import sft

        def supervised_loss(*args):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        sft.supervised_loss = supervised_loss
        """
    )
    code, err = type_(**full).ended()
    assert code == 4, err
    assert outcome(work / "run") == ("failed", 4)
    assert read_result(work / "run")["reason"].splitlines() == [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "change, in order of effect: batching.max_tokens (lower), trainer.gradient_checkpointing=true, "
        "model.image.max_pixels (lower), recipe=lora_llm, optim=adamw_8bit",
        "on a single rank, trainer.oom_retries=3 lowers what is computed at once by itself where it has to",
    ]
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_second_checkpoint(type_: Type, work: Path, injected: Injected) -> None:
    words = ("trainer.max_steps=9", "trainer.save_every=3", "trainer.keep=1")
    full = injected(
        """
        import resource
        from vlmft.training import commit
        begin = commit.begin

        def full(folder):
            if folder.name.endswith("6"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            return begin(folder)

        commit.begin = full
        """
    )
    code, err = type_(*words, **full).ended()
    assert code == 5, err
    assert outcome(work / "run") == ("failed", 5)
    assert "step-00000006.partial" in read_result(work / "run")["reason"]
    assert "Traceback" not in err
    found, rejected = commit.newest(work / "run" / "checkpoints")
    assert found is not None and found.step == 3 and rejected == []
    assert type_(*words).ended()[0] == 0
    assert outcome(work / "run") == ("done", 0) and len(losses(work / "run")) == 9


@pytest.mark.slow
def test_a_loader_process_that_is_killed(type_: Type, work: Path) -> None:
    """As the kernel does where the machine's memory runs out. Meanwhile a second command on the folder is refused."""
    driver = type_("trainer.max_steps=100000")
    driver.trained(1)
    second = type_("trainer.max_steps=100000")
    code, err = second.ended()
    assert code == 2
    assert f"run.dir={work / 'run'} is in use by process {driver.process.pid} on " in err
    (rank,) = driver.ranks()
    (loader,) = [child for child in rank.children() if child.cmdline() == rank.cmdline()]
    loader.send_signal(signal.SIGKILL)
    code, err = driver.ended()
    assert code == 1, err
    assert outcome(work / "run") == ("failed", 1)
    reason = read_result(work / "run")["reason"]
    assert reason.startswith(f"DataLoader worker (pid {loader.pid}) is killed by signal: Killed."), reason + err
    first, hint = reason.splitlines()
    assert first == f"DataLoader worker (pid {loader.pid}) is killed by signal: Killed."
    assert hint.startswith("a loader process that is killed has mostly used up the machine's memory: lower")
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_decoder_that_hangs(type_: Type, work: Path, injected: Injected) -> None:
    """Its sample is a bad one, and the others are trained on; with no bad sample allowed the run ends there."""
    hang = injected(
        """
        import threading
        from vlmft.encoding import media
        original = media.open_pixels

        def open_pixels(image):
            if image.path.name == "train-00007.png":
                threading.Event().wait()
            return original(image)

        media.open_pixels = open_pixels
        """
    )
    words = ("sample_timeout_s=1", "trainer.max_steps=32")  # every sample once
    code, err = type_(*words, "max_bad_samples=1", **hang).ended()
    assert code == 0, err
    (bad,) = [line for line in read_lines(work / "run") if "bad_sample" in line]
    assert bad["reason"] == (
        f"{bad['bad_sample']}: was not read and decoded within 1 s; look at its files, "
        "or raise sample_timeout_s where the storage is slow"
    )
    assert len(losses(work / "run")) == 32
    code, err = type_(*words, "run.dir=strict", **hang).ended()
    assert code == 2, err
    assert outcome(work / "strict") == ("failed", 2)
    assert read_result(work / "strict")["reason"] == bad["reason"] + "\n1 bad samples, max_bad_samples=0"


@pytest.mark.slow
def test_a_reader_that_has_gone(type_: Type, work: Path) -> None:
    """`| head -1`: the run trains on, and ends well."""
    driver = type_()
    assert driver.process.stdout is not None
    driver.process.stdout.readline()
    driver.process.stdout.close()
    code = driver.process.wait(timeout=180)
    assert code == 0
    assert outcome(work / "run") == ("done", 0) and len(losses(work / "run")) == STEPS


@pytest.mark.slow
def test_a_reader_that_reads_nothing(type_: Type, work: Path, injected: Injected) -> None:
    """A flood of lines into a pipe that is full: lines are lost, steps are not."""
    flood = injected(
        """
        from vlmft.training import sft
        original = sft.supervised_loss

        def supervised_loss(*args):
            print("x" * 100_000)
            return original(*args)

        sft.supervised_loss = supervised_loss
        """
    )
    read, written = os.pipe()
    try:
        driver = type_("trainer.max_steps=5", out=written, **flood)
        os.close(written)
        assert driver.process.wait(timeout=180) == 0
    finally:
        os.close(read)
    assert outcome(work / "run") == ("done", 0) and len(losses(work / "run")) == 5


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(type_: Type, work: Path) -> None:
    words = ("trainer.save_every=5", "trainer.max_steps=100000")
    driver = type_(*words)
    driver.trained(11)
    driver.ranks()[0].kill()
    assert driver.ended()[0] == 137
    found, _ = commit.newest(work / "run" / "checkpoints")
    assert found is not None
    weights = found.folder / "trained.safetensors"
    os.truncate(weights, 1000)
    driver = type_(*words)
    driver.until(lambda: "passed_over" in read_result(work / "run"), "the older checkpoint")
    driver.process.send_signal(signal.SIGTERM)
    assert driver.ended()[0] == 75
    (reason,) = read_result(work / "run")["passed_over"]
    assert reason.startswith(f"{weights}: has 1000 bytes, ")


@pytest.mark.slow
def test_a_driver_that_is_killed_while_its_rank_saves(type_: Type, work: Path, injected: Injected) -> None:
    """The folder stays taken until the rank is gone."""
    slow_save = injected(
        """
        import time
        from vlmft.training import commit
        begin = commit.begin

        def slow(folder):
            while not os.path.exists("go"):
                time.sleep(0.1)
            return begin(folder)

        commit.begin = slow
        """
    )
    driver = type_("strategy.shutdown_timeout_s=200", **slow_save)
    driver.trained()
    (rank,) = driver.ranks()
    driver.process.kill()
    driver.process.wait()  # not communicate(): the rank holds the other end of the pipes as well
    second = subprocess.run([*driver.process.args], cwd=work, capture_output=True, text=True, timeout=180)  # type: ignore[misc]
    assert second.returncode == 2
    assert f"is in use by process {rank.pid} on " in second.stderr
    (work / "go").touch()
    psutil.wait_procs([rank], timeout=60)
    found, _ = commit.newest(work / "run" / "checkpoints")
    assert found is not None and outcome(work / "run") == ("preempted", 75)
