import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmft.config import targets
from vlmft.config.roots import activate, builtin_folder, find_roots
from vlmft.errors import ConfigError

from .conftest import write


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what activating a root changes in this process."""
    monkeypatch.setattr(targets, "_allowed_packages", set(targets._allowed_packages))
    path = list(sys.path)
    yield
    sys.path[:] = path


def path_variable(*folders: Path) -> dict[str, str]:
    return {"VLMFT_PATH": os.pathsep.join(str(folder) for folder in folders)}


def test_the_built_in_root_is_the_checkout_here() -> None:
    assert builtin_folder() == Path(__file__).parents[2]
    assert (builtin_folder() / "conf").is_dir()


def test_roots_come_in_the_order_given(home: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first", {"registry/datasets/x.yaml": ""})
    second = write(tmp_path / "second", {"conf/model/mine.yaml": ""})
    roots = find_roots(home, path_variable(first, second, first))
    assert [root.folder for root in roots] == [home, first, second]


def test_empty_parts_and_home_folders_in_the_path(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write(tmp_path / "mine", {"conf/model/mine.yaml": ""})
    monkeypatch.setenv("HOME", str(tmp_path))
    roots = find_roots(home, {"VLMFT_PATH": f"{os.pathsep}~/mine{os.pathsep}"})
    assert [root.folder for root in roots] == [home, mine]


def test_every_problem_is_listed(home: Path, tmp_path: Path) -> None:
    write(tmp_path / "bare", {"readme.txt": ""})
    write(tmp_path / "odd", {"conf/a.yaml": "", "root.yaml": "package: [x]\n"})
    with pytest.raises(ConfigError) as caught:
        find_roots(home, path_variable(tmp_path / "gone", tmp_path / "bare", tmp_path / "odd"))
    assert caught.value.problems == (
        f"{tmp_path}/gone: there is no such folder (from VLMFT_PATH)",
        f"{tmp_path}/bare: has neither a conf/ nor a registry/ folder (from VLMFT_PATH)",
        f"{tmp_path}/odd/root.yaml: package: unknown key; did you mean packages?",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("packages: my_project\n", r"should be a list of package names; found 'my_project'"),
        ("packages: [a.b]\n", r"should be top-level package names; found 'a\.b'"),
        ("packages: [3]\n", r"should be top-level package names; found 3"),
        ("packages: [os]\n", r"os is no package of yours"),
        ("packages: [torch]\n", r"torch is no package of yours"),
        ("packages: [a\n", r"root\.yaml:2:1: bad YAML"),
    ],
)
def test_a_bad_root_file_is_refused(home: Path, tmp_path: Path, text: str, message: str) -> None:
    mine = write(tmp_path / "mine", {"conf/a.yaml": "", "root.yaml": text})
    with pytest.raises(ConfigError, match=message):
        find_roots(home, path_variable(mine))


def test_an_option_in_two_roots_names_both_files(home: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", {"conf/model/tiny.yaml": ""})
    with pytest.raises(ConfigError) as caught:
        find_roots(home, path_variable(mine))
    there = home / "conf/model/tiny.yaml"
    assert caught.value.problems == (f"{mine}/conf/model/tiny.yaml: there is already {there}; rename one of them",)


def test_a_declared_package_in_the_root_becomes_a_target(home: Path, tmp_path: Path) -> None:
    name = f"project_{tmp_path.name.replace('-', '_')}"
    mine = write(
        tmp_path / "mine",
        {
            "conf/a.yaml": "",
            "root.yaml": f"packages: [{name}]\n",
            f"{name}/__init__.py": "from vlmft.config.spec import Spec\n\n\nclass Mine(Spec):\n    x: int\n",
        },
    )
    roots = find_roots(home, path_variable(mine))
    with pytest.raises(ValueError, match="is not allowed: targets may come from vlmft;"):
        targets.resolve_target(f"{name}.Mine", object)
    activate(roots)
    assert targets.resolve_target(f"{name}.Mine", object).__name__ == "Mine"
    assert sys.path[-1] == str(mine)


def test_a_declared_package_that_is_nowhere_is_refused(home: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", {"conf/a.yaml": "", "root.yaml": "packages: [nowhere_at_all]\n"})
    with pytest.raises(ConfigError, match=r"root\.yaml: package nowhere_at_all is neither in .*mine nor installed"):
        activate(find_roots(home, path_variable(mine)))


def test_a_root_without_code_stays_off_the_import_path(home: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", {"conf/a.yaml": "", "datasets/__init__.py": ""})
    activate(find_roots(home, path_variable(mine)))
    assert str(mine) not in sys.path


def entry_point(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    points = [importlib.metadata.EntryPoint("mine", value, "vlmft.roots")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)


def test_an_installed_package_is_a_root(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"installed_{tmp_path.name.replace('-', '_')}"
    write(tmp_path / "site", {f"{name}/__init__.py": "raise RuntimeError", f"{name}/choices/conf/m/x.yaml": ""})
    monkeypatch.syspath_prepend(tmp_path / "site")
    entry_point(monkeypatch, f"{name}.choices")
    roots = find_roots(home, {})
    assert [root.folder for root in roots] == [home, tmp_path / "site" / name / "choices"]
    assert roots[1].origin == f"entry point mine = {name}.choices"


def test_an_entry_point_to_nothing_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(monkeypatch, "nowhere_at_all")
    with pytest.raises(ConfigError, match="entry point mine = nowhere_at_all: there is no package nowhere_at_all"):
        find_roots(home, {})


def test_in_a_wheel_the_package_itself_is_the_root(tmp_path: Path) -> None:
    package = tmp_path / "vlmft"
    source = Path(__file__).parents[2] / "vlmft"
    for name in ("__init__.py", "errors.py", *(str(p.relative_to(source)) for p in (source / "config").glob("*.py"))):
        write(package, {name: (source / name).read_text()})
    write(package, {"conf/train.yaml": "", "registry/mixtures.yaml": ""})
    (tmp_path / "conf").mkdir()  # another distribution's
    code = "from vlmft.config.roots import builtin_folder; print(builtin_folder())"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(package)
