"""`python -m vlmft.validate` as a user types it, and the run that it speaks of."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.data.making import qa
from tests.e2e.conftest import environment, read_lines, typed_in, until
from tests.support import save_noise


def write(root: Path, rows: list[dict[str, Any]]) -> None:
    """The dataset `mine`, with its media in <root>/data."""
    (root / "data").mkdir(exist_ok=True)
    (root / "data/mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = "mine:\n  _target_: vlmft.data.LLaVADataset\n  data_path: data/mine.jsonl\n"
    (root / "registry/datasets/mine.yaml").write_text(entry)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("word", ["dataset=shaeps", "show=many"])
def test_a_typo_is_answered_before_anything_is_loaded(work: Path, word: str) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
        f"sys.argv[1:] = [{word!r}]\n"
        "from vlmft.validate import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, env=environment())
    *errors, loaded = done.stderr.splitlines()
    assert done.returncode == 2 and [line.partition(word.partition("=")[0])[0] for line in errors] == ["error: "]
    assert not {"torch", "transformers", "numpy", "PIL"} & set(loaded.split())
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_it_and_all_its_processes(
    started: Callable[..., "subprocess.Popen[str]"], work: Path, root: Path, number: signal.Signals, code: int
) -> None:
    write(root, [qa(f"Q{n}", "") for n in range(30_000)])
    words = ("dataset=mine", "tokens=false", "num_workers=2", "out=out", "show=0")
    process = started(*words, module="vlmft.validate", VLMFT_PATH=str(root))
    found = work / "out/problems.jsonl"
    until(lambda: found.exists() and found.stat().st_size > 0, "the first problems")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.send_signal(number)
    at = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - at < 5
    assert (process.returncode, out) == (code, "")
    assert err == {130: "error: interrupted\n", 75: "error: stopped by SIGTERM\n"}[code]
    assert not any(child.is_running() for child in children)
    assert read(found)[0]["id"] == "mine/0" and not (work / "out/summary.json").exists()


@pytest.fixture
def forty(root: Path) -> Path:
    """Forty samples, three of which training cannot use: one cannot be found, one is cut off, one is too long."""
    for n in range(4):
        save_noise(root / f"data/{n}.png", 56, 56, seed=n)
    whole = (root / "data/0.png").read_bytes()
    (root / "data/cut.png").write_bytes(whole[: len(whole) // 2])
    rows = [qa("<image>\nName the colour.", "red", id=n, image=f"{n % 4}.png") for n in range(40)]
    rows[7]["image"], rows[31]["image"] = "gone.png", "cut.png"
    rows[20]["conversations"][1]["value"] = "word " * 200
    write(root, rows)
    return root


@pytest.mark.slow
def test_what_it_lists_is_what_training_leaves_out(
    forty: Path, work: Path, started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    run = ("dataset=mine", "batching.max_tokens=150", "global_batch_size=4", "max_bad_samples=3")
    checked = typed_in(work, *run, "decode=true", "out=out", module="vlmft.validate", VLMFT_PATH=str(forty))
    assert (checked.code, checked.err) == (0, "")
    problems = {problem["id"]: problem for problem in read(work / "out/problems.jsonl")}
    assert {name: problem["line"] for name, problem in problems.items()} == {"mine/7": 8, "mine/20": 21, "mine/31": 32}
    refused = typed_in(work, *run, "max_bad_samples=2", "decode=true", module="vlmft.validate", VLMFT_PATH=str(forty))
    assert refused.code == 2 and refused.errors[0].startswith("3 of 40 training samples cannot be used")

    words = (*run, "trainer.max_steps=60", "trainer.save_every=10", "trainer.log_every=1", "check_s=0")
    undisturbed = typed_in(work, *words, "run.dir=whole", VLMFT_PATH=str(forty))
    assert undisturbed.code == 0, undisturbed.err
    left_out = read(work / "whole/quarantine.jsonl")
    assert {line["id"]: line["reason"] for line in left_out} == {n: p["message"] for n, p in problems.items()}
    assert [line["place"] for line in left_out] == [
        f"{problems[line['id']]['file']}:{problems[line['id']]['line']}, row {problems[line['id']]['row']}"
        for line in left_out
    ]
    assert all(1 <= line["step"] <= 10 for line in left_out)

    process = started(*words, "run.dir=resumed", VLMFT_PATH=str(forty))
    metrics = work / "resumed/metrics.jsonl"
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 6, "some steps")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    resumed = typed_in(work, *words, "run.dir=resumed", VLMFT_PATH=str(forty))
    assert resumed.code == 0, resumed.err
    assert max(line["step"] for line in read_lines(work / "resumed")) == 60
    assert (work / "resumed/quarantine.jsonl").read_bytes() == (work / "whole/quarantine.jsonl").read_bytes()
