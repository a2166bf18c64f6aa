"""The layers of CONTRIBUTING.md, kept by import-linter's contracts in pyproject.toml, and lightness at import."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "transformers", "accelerate", "peft", "trl", "datasets", "PIL", "av", "scipy"}


def lint(folder: Path) -> tuple[int, str]:
    """Run import-linter on the vlmft package in `folder`, which comes before any installed one."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_every_import_goes_down_the_layers() -> None:
    code, report = lint(ROOT)
    assert code == 0, report


LAYERS, HYDRA, TORCH = "layers", "only vlmft.config knows Hydra and OmegaConf", "no torch below the models"


@pytest.mark.parametrize(
    ("module", "line", "contract", "named"),
    [
        ("errors", "import vlmft.config.hints", LAYERS, "vlmft.config"),
        ("config/hints", "import vlmft.data.spec", LAYERS, "vlmft.data"),
        ("data/spec", "def f():\n    import vlmft.encoding.chat", LAYERS, "vlmft.encoding"),
        ("models/spec", "from vlmft import data", LAYERS, "vlmft.data"),
        ("recipes/recipe", "import vlmft.encoding.collate", LAYERS, "vlmft.encoding"),
        ("evaluation/specs", "from vlmft.training import ranks", LAYERS, "vlmft.training"),
        ("training/ranks", "from vlmft import launch", LAYERS, "vlmft.launch"),
        ("new_module", "import json", LAYERS, "new_module"),
        ("training/ranks", "from omegaconf import OmegaConf", HYDRA, "omegaconf"),
        ("train", "def f():\n    import hydra.utils", HYDRA, "hydra"),
        ("data/run_data", "def f():\n    import torch", TORCH, "torch"),
        ("sweeps/table", "def f():\n    import vlmft.worker", TORCH, "torch"),
    ],
)
def test_an_import_against_the_layers_is_found(
    tmp_path: Path, module: str, line: str, contract: str, named: str
) -> None:
    shutil.copytree(ROOT / "vlmft", tmp_path / "vlmft", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "vlmft" / f"{module}.py").open("a") as file:
        file.write(f"\n\n{line}\n")
    code, report = lint(tmp_path)
    assert code == 1, report
    assert f"{contract} BROKEN" in report
    assert module.rpartition("/")[2] in report and named in report


def test_specs_and_driver_load_nothing_heavy() -> None:
    """One process imports every package, and every command the driver runs, and names what came with them."""
    packages = sorted(path.parent.name for path in ROOT.glob("vlmft/*/__init__.py"))
    commands = ("annotate", "clips", "merge", "plan", "preview", "report", "train", "validate", "worker")
    commands += ("launch", "run_folder", "summary")
    modules = [f"vlmft.{name}" for name in (*packages, *commands)]
    code = "import sys; [__import__(name) for name in sys.argv[1:]]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert set(modules) <= loaded
    assert loaded & HEAVY == set()
