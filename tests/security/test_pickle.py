"""No pickle is run, wherever one is put."""

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.conftest import run_here
from tests.recipes.training import save_trained, trained_recipe
from tests.security.canary import write_canary, write_plain_canary
from tests.support import CPU, literally, tiny
from vlmft import load
from vlmft.errors import ConfigError
from vlmft.models import Qwen25VL
from vlmft.training import commit

BRIEF = (
    "run.dir=run",
    "trainer.max_steps=4",
    "trainer.save_every=2",
    "trainer.num_workers=0",
    "evaluation=none",
    "dataset.shapes.train_samples=64",
    "dataset.shapes.eval_samples=8",
    "global_batch_size=4",
)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a canary that was run would have made."""
    return tmp_path / "executed"


@pytest.fixture(autouse=True)
def nothing_ran(marker: Path) -> Any:
    yield
    assert not marker.exists()


def test_the_canary_sings(tmp_path: Path) -> None:
    torch.load(write_canary(tmp_path / "file", tmp_path / "one"), weights_only=False)
    pickle.loads(write_plain_canary(tmp_path / "file", tmp_path / "two").read_bytes())
    assert (tmp_path / "one").exists() and (tmp_path / "two").exists()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint."""
    return Path(shutil.copytree(tiny().folder(), tmp_path / "base"))


def spec(folder: Path) -> Qwen25VL:
    return Qwen25VL(**(dict(tiny()) | {"path": str(folder)}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00001.bin"])
@pytest.mark.parametrize("write", [write_canary, write_plain_canary])
def test_pickled_weights_are_refused_with_the_command_that_converts_them(
    base: Path, marker: Path, name: str, write: Any
) -> None:
    (base / "model.safetensors").unlink()
    write(base / name, marker)
    with pytest.raises(ConfigError, match=literally("holds no *.safetensors")) as raised:
        spec(base).load_model(CPU)
    assert "convert them: python -c " in raised.value.problems[1]


@pytest.mark.slow
def test_the_command_converts_honest_weights_and_runs_no_canary(base: Path, marker: Path) -> None:
    expected = spec(base).load_model(CPU).state_dict()
    (base / "model.safetensors").unlink()
    torch.save(expected, base / "pytorch_model.bin")
    with pytest.raises(ConfigError) as raised:
        spec(base).load_model(CPU)
    words = shlex.split(raised.value.problems[1].partition("convert them: ")[2])
    activated = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def type_it() -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, capture_output=True, text=True, env=activated)

    done = type_it()
    assert done.returncode == 0, done.stderr
    found = spec(base).load_model(CPU).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    (base / "model.safetensors").unlink()
    write_canary(base / "pytorch_model.bin", marker)
    refused = type_it()
    assert refused.returncode != 0 and "weights_only" in refused.stderr, refused.stderr


def test_pickles_beside_safetensors_are_not_read(base: Path, marker: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"):
        write_canary(base / name, marker)
    assert sum(1 for _ in spec(base).load_model(CPU).parameters()) > 10
    spec(base).load_processor()


@pytest.mark.parametrize("recipe", ["lora_llm", "fft"])
def test_pickles_in_a_saved_model_are_not_read(recipe: str, tmp_path: Path, marker: Path) -> None:
    folder = save_trained(trained_recipe(recipe), tmp_path / "final")
    for name in ("adapter_model.bin", "trained.bin", "training_args.bin", "pytorch_model.bin"):
        write_canary(folder / name, marker)
    load(folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        load(folder)


def test_a_pickle_under_the_name_of_safetensors(base: Path, tmp_path: Path, marker: Path) -> None:
    folder = save_trained(trained_recipe("fft"), tmp_path / "final")
    write_plain_canary(folder / "trained.safetensors", marker)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a checkpoint in its folder."""
    folder = tmp_path_factory.mktemp("pickles")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_here(*BRIEF) == 0
    return folder / "run"


def test_what_a_run_writes_holds_no_pickle_but_plain_state(run: Path) -> None:
    found = {path for path in run.rglob("*") if path.is_file() and is_pickle(path)}
    assert {path.name for path in found} == {"state.pt", "rank-00000.pt"}
    assert {path.parent.parent for path in found} == {run / "checkpoints"}
    for path in found:
        torch.load(path, weights_only=True)


def is_pickle(path: Path) -> bool:
    """Whether torch, or pickle itself, would unpickle a file, by its name or by its first bytes."""
    named = path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
    first = path.read_bytes()[:2]
    return named or first == b"PK" or first[:1] == b"\x80"


@pytest.mark.parametrize(("name", "write"), [("state.pt", write_canary), ("rank-00000.pt", write_plain_canary)])
def test_a_pickle_in_a_checkpoint(
    run: Path,
    name: str,
    write: Any,
    tmp_path: Path,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"state": "preempted"}))
    (checkpoint,) = (folder / "checkpoints").iterdir()
    write(checkpoint / name, marker)
    sign_again(checkpoint)
    monkeypatch.chdir(tmp_path)
    assert run_here(*BRIEF) == 5
    assert f"{checkpoint / name}: is no state that vlmft wrote" in capfd.readouterr().err
    assert json.loads((folder / "result.json").read_text())["state"] == "failed"


def sign_again(checkpoint: Path) -> None:
    """Commit the changed files as a checkpoint, as whoever planted one would."""
    manifest = json.loads((checkpoint / commit.MANIFEST).read_text())
    (checkpoint / commit.MANIFEST).unlink()
    checkpoint.rename(commit.partial_folder(checkpoint))
    commit.commit(checkpoint, manifest["step"], manifest["facts"])
