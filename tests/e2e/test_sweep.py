"""`-m`: each job in its own processes; one that fails does not hurt the others."""

from pathlib import Path

from tests.e2e.conftest import Typed, losses, read_result

SHORT = ("trainer.max_steps=3", "evaluation=none", "optim.warmup=0", "trainer.num_workers=0")
SMALL = ("dataset.shapes.train_samples=64", "dataset.shapes.eval_samples=8")


def test_a_failed_job_is_reported_and_the_next_one_runs(typed: Typed, work: Path) -> None:
    ended = typed("-m", "optim.lr=1e+30,0.001", "run.dir=sweep", *SHORT, *SMALL)
    assert ended.code == 3
    sweep = work / "sweep"
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1"]
    failed, done = read_result(sweep / "0"), read_result(sweep / "1")
    assert (failed["state"], failed["exit_code"]) == ("failed", 3)
    assert (done["state"], done["exit_code"], done["steps"]) == ("done", 0, 3)
    assert len(losses(sweep / "1")) == 3 and (sweep / "1" / "final" / "trained.safetensors").is_file()
    assert not (sweep / "0" / "final").exists()

    table = ended.out[ended.out.index(f"sweep {sweep}") :]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]
    first, second = (row for row in rows if row[0] in ("0", "1"))
    assert first[1] == "optim.lr=1e+30" and first[2].startswith("failed: the loss of step 2 is nan")
    assert second[1:3] == ["optim.lr=0.001", "done"]
    assert second[3] == f"{losses(sweep / '1')[-1]:.3f}"
    assert "error: the loss of step 2 is nan" in ended.err


def test_a_misspelt_value_ends_it_before_the_first_job(typed: Typed, work: Path) -> None:
    ended = typed("-m", "recipe=fft,lora_lm", "run.dir=sweep", *SHORT, *SMALL)
    assert ended.code == 2
    assert "recipe: there is no option lora_lm; did you mean lora_llm?" in ended.err
    assert not (work / "sweep").exists()
