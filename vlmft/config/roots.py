"""Where choices come from: vlmft's own folder, then the user's, each with `conf/` and/or `registry/`.

A root may hold a `root.yaml` that names the Python packages whose classes its entries may use as targets:

    packages: [my_project]
"""

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmft.config.files import read_mapping
from vlmft.config.hints import did_you_mean
from vlmft.config.targets import allow_package
from vlmft.errors import ConfigError

PATH_VARIABLE = "VLMFT_PATH"
ENTRY_POINTS = "vlmft.roots"


@dataclass(frozen=True)
class Root:
    """A folder of choices. `origin` says in messages how it was found."""

    folder: Path
    origin: str
    packages: tuple[str, ...] = ()

    @property
    def conf(self) -> Path:
        """The folder of option files; it need not exist."""
        return self.folder / "conf"

    @property
    def registry(self) -> Path:
        """The folder of registry entries; it need not exist."""
        return self.folder / "registry"


def builtin_folder() -> Path:
    """The folder that holds vlmft's own `conf/` and `registry/`: the package in a wheel, the checkout otherwise.

    The package comes first, because beside an installed package any other distribution may have left a `conf/`.
    """
    package = Path(__file__).resolve().parents[1]
    return package if (package / "conf").is_dir() else package.parent


def find_roots(home: Path | None = None, environ: Mapping[str, str] = os.environ) -> tuple[Root, ...]:
    """Return the built-in root (or `home` in its place), those of VLMFT_PATH, and those of installed packages.

    Raises:
        ConfigError: lists every missing folder, folder that is no root, bad `root.yaml`, and option file that
            stands in two roots.
    """
    problems: list[str] = []
    roots: dict[Path, Root] = {}
    for folder, origin in _candidates(home, environ, problems):
        folder = folder.resolve()
        if folder in roots:
            continue
        try:
            roots[folder] = _read_root(folder, origin)
        except ConfigError as error:
            problems.extend(error.problems)
    problems.extend(_shadowed(roots.values()))
    ConfigError.raise_if(problems)
    return tuple(roots.values())


def activate(roots: Sequence[Root]) -> None:
    """Let targets name the classes of the roots' declared packages, and make these packages importable.

    Raises:
        ConfigError: a declared package is neither in its root's folder nor installed.
    """
    problems = []
    for root in roots:
        for package in root.packages:
            inside = (root.folder / package).is_dir() or (root.folder / f"{package}.py").is_file()
            # Appended, not put first: a root's folder may hold others with the names of installed packages.
            if inside and str(root.folder) not in sys.path:
                sys.path.append(str(root.folder))
            if inside or importlib.util.find_spec(package) is not None:
                allow_package(package)
            else:
                problems.append(
                    f"{root.folder / 'root.yaml'}: package {package} is neither in {root.folder} nor installed"
                )
    ConfigError.raise_if(problems)


def _candidates(home: Path | None, environ: Mapping[str, str], problems: list[str]) -> Iterator[tuple[Path, str]]:
    yield (home or builtin_folder()), "built-in"
    for part in environ.get(PATH_VARIABLE, "").split(os.pathsep):
        if part.strip():
            yield Path(part.strip()).expanduser(), PATH_VARIABLE
    # Imported here: it costs 20 ms, and a rank that has its roots from VLMFT_PATH pays it only once.
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINTS):
        origin = f"entry point {point.name} = {point.value}"
        folder = _module_folder(point.value)
        if folder is None:
            problems.append(f"{origin}: there is no package {point.value}")
        else:
            yield folder, origin


def _module_folder(module: str) -> Path | None:
    # Only the top-level name is looked up, since looking for `a.b` would import `a`.
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]).joinpath(*below)


def _read_root(folder: Path, origin: str) -> Root:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder (from {origin})")
    root = Root(folder, origin)
    if not root.conf.is_dir() and not root.registry.is_dir():
        raise ConfigError(f"{folder}: has neither a conf/ nor a registry/ folder (from {origin})")
    description = folder / "root.yaml"
    return Root(folder, origin, _read_packages(description)) if description.exists() else root


def _read_packages(path: Path) -> tuple[str, ...]:
    values = read_mapping(path)
    problems = [
        f"{path}: {key}: unknown key{did_you_mean(str(key), ['packages'])}" for key in values if key != "packages"
    ]
    packages = values.get("packages", [])
    if not isinstance(packages, list):
        problems.append(f"{path}: packages: should be a list of package names; found {packages!r}")
        packages = []
    for package in packages:
        if not isinstance(package, str) or not package.isidentifier():
            problems.append(f"{path}: packages: should be top-level package names; found {package!r}")
        elif package in sys.stdlib_module_names or package == "torch":
            problems.append(f"{path}: packages: {package} is no package of yours, and its functions are no targets")
    ConfigError.raise_if(problems)
    return tuple(packages)


def _shadowed(roots: Iterable[Root]) -> list[str]:
    first: dict[Path, Path] = {}
    problems = []
    for root in roots:
        for path in sorted(root.conf.rglob("*.yaml")):
            other = first.setdefault(path.relative_to(root.conf), path)
            if other is not path:
                problems.append(f"{path}: there is already {other}; rename one of them")
    return problems
