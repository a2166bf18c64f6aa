"""What is shipped: the source distribution, the wheel made from it, and a command that runs from the wheel alone."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MB = 1_000_000


def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    done = run("-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = dist.glob("*.whl")
    done = run("-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel, cwd=dist)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def shipped(folder: str) -> set[str]:
    """The option files and registry entries of the checkout, relative to its root."""
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.yaml")}


def test_the_wheel_holds_the_choices_and_no_tests(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    chosen = {name for name in names if name.startswith(("vlmft/conf/", "vlmft/registry/"))}
    assert chosen == {f"vlmft/{name}" for name in shipped("conf") | shipped("registry")}
    assert {name.partition("/")[0] for name in names} == {"vlmft", wheel.name.split("-py3")[0] + ".dist-info"}
    files = {path for kind in ("py", "html", "css") for path in ROOT.glob(f"vlmft/**/*.{kind}")}
    assert {f"vlmft/{path.relative_to(ROOT / 'vlmft')}" for path in files} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_source_distribution_holds_the_tests_too(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert shipped("conf") | shipped("registry") | {"README.md", "LICENSE", "tests/test_packaging.py"} <= names


def test_a_command_runs_from_the_wheel_in_any_folder(site: Path, tmp_path: Path) -> None:
    where = run("-c", "import vlmft; print(vlmft.__file__)", cwd=tmp_path, PYTHONPATH=str(site))
    assert Path(where.stdout.strip()) == site / "vlmft/__init__.py"
    done = run("-m", "vlmft.train", "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(site), VLMFT_PATH="")
    assert (done.returncode, done.stderr) == (0, "")
    shown = yaml.safe_load(done.stdout)
    assert shown["model"]["_target_"] == "vlmft.models.TinyQwen25VL"
    assert shown["dataset"]["shapes"]["root"] == str(site / "vlmft")
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_takes_a_users_root(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mine/registry/datasets").mkdir(parents=True)
    (tmp_path / "mine/registry/datasets/mine.yaml").write_text(
        "mine:\n  _target_: vlmft.data.LLaVADataset\n  data_path: qa.json\n"
    )
    (tmp_path / "mine/conf/recipe").mkdir(parents=True)
    shutil.copy(ROOT / "conf/recipe/lora_llm.yaml", tmp_path / "mine/conf/recipe/my_recipe.yaml")
    (tmp_path / "elsewhere").mkdir()
    words = ("dataset=mine+shapes@0.5", "recipe=my_recipe")
    done = run(
        *("-m", "vlmft.train", "--cfg", "job", *words),
        cwd=tmp_path / "elsewhere",
        PYTHONPATH=str(site),
        VLMFT_PATH=str(tmp_path / "mine"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    dataset = yaml.safe_load(done.stdout)["dataset"]
    assert [(name, entry["factor"]) for name, entry in dataset.items()] == [("mine", 1.0), ("shapes", 0.5)]
    assert dataset["mine"]["root"] == str(tmp_path / "mine")


def test_every_command_is_a_script_too(site: Path) -> None:
    (points,) = site.glob("vlmft-*.dist-info/entry_points.txt")
    scripts = set(re.findall(r"^(vlmft-\w+) = vlmft\.(\w+):main$", points.read_text(), re.MULTILINE))
    with_main = {path.stem for path in ROOT.glob("vlmft/*.py") if "\ndef main(" in path.read_text()}
    assert scripts == {(f"vlmft-{name}", name) for name in with_main - {"worker"}}


def repository_files() -> list[Path]:
    """Every file that git tracks, or would track."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_of_the_repository_is_large() -> None:
    assert [str(path) for path in repository_files() if path.stat().st_size > MB] == []


def test_no_file_of_the_repository_knows_the_machine_it_was_made_on() -> None:
    """Neither this checkout's folder, nor the user's home, nor a package index."""
    folders = {str(folder) for folder in (ROOT, ROOT.parent, Path.home()) if folder != Path("/")}
    private = re.compile(
        rf"(?<![\w./-])(?:{'|'.join(map(re.escape, folders))})/"  # not part of a longer path
        r"|--(?:extra-)?index-url|--find-links|--trusted-host"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in repository_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if private.search(line)
    ]
    assert found == []
