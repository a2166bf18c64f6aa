"""The entries of `registry/`: many a file, one mapping each, combined on the command line by name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmft.config.files import read_mapping
from vlmft.config.grammar import NAME, NONE, MixtureValue, expand
from vlmft.config.hints import did_you_mean
from vlmft.config.roots import Root
from vlmft.errors import ConfigError

MIXTURES = "mixtures.yaml"


@dataclass(frozen=True)
class Kind:
    """One folder of `registry/`. `word` names an entry in messages."""

    folder: str
    word: str
    mixes: bool = False
    """Whether entries are files of samples: they stand in mixtures, and have paths to be found."""
    factor_key: str | None = None
    """The field of a chosen entry that holds its factor, the number of A*3 or A@0.25; None: entries take none."""


KINDS = {
    kind.folder: kind
    for kind in (
        Kind("datasets", "dataset", mixes=True, factor_key="factor"),
        Kind("metrics", "metric"),
        Kind("rewards", "reward", factor_key="weight"),
    )
}

_RESERVED = (NONE, "defaults")  # the empty choice; and what Hydra takes for a defaults list


@dataclass(frozen=True)
class Registry:
    """Every entry and mixture of all roots."""

    entries: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Kind -> name -> the entry's fields."""
    mixtures: dict[str, MixtureValue] = field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        """Everything that may be chosen in `kind`, mixtures included."""
        mixtures = self.mixtures if KINDS[kind].mixes else {}
        return sorted([*self.entries.get(kind, {}), *mixtures])

    def select(self, kind: str, expression: str) -> dict[str, dict[str, Any]]:
        """Return the entries that `expression` chooses, in its order, datasets with their `factor`, rewards `weight`.

        Raises:
            ConfigError: the expression is wrong, or gives a factor to what takes none.
        """
        if expression == NONE:
            return {}
        known, rules = self.entries.get(kind, {}), KINDS[kind]
        factors = expand(expression, known, self.mixtures if rules.mixes else None, rules.word)
        if rules.factor_key:
            return {name: {**known[name], rules.factor_key: factor} for name, factor in factors.items()}
        ConfigError.raise_if(
            f"{name}: a {rules.word} takes no factor; found {factor:g}"
            for name, factor in factors.items()
            if factor != 1
        )
        return {name: dict(known[name]) for name in factors}


def load_registry(roots: Sequence[Root]) -> Registry:
    """Read the registries of all roots.

    Raises:
        ConfigError: lists every file that cannot be read, entry that is no mapping, bad name, and name given twice.
    """
    reader = _Reader()
    for root in roots:
        reader.read_root(root)
    reader.check_mixture_names()
    ConfigError.raise_if(reader.problems)
    return Registry(reader.entries, reader.mixtures)


class _Reader:
    def __init__(self) -> None:
        self.entries: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self.mixtures: dict[str, MixtureValue] = {}
        self.files: dict[tuple[str, str], Path] = {}  # (kind, name) -> where it is defined
        self.problems: list[str] = []

    def read_root(self, root: Root) -> None:
        if not root.registry.is_dir():
            return
        for path in sorted(root.registry.iterdir()):
            if path.name.startswith("."):
                continue
            if path.name == MIXTURES:
                self._read_mixtures(path)
            elif path.is_dir() and path.name in KINDS:
                self._read_kind(path, root)
            else:
                hint = did_you_mean(path.name, [*KINDS, MIXTURES])
                self.problems.append(
                    f"{path}: has no meaning in a registry{hint or '; expected ' + ', '.join([*KINDS, MIXTURES])}"
                )

    def check_mixture_names(self) -> None:
        for name in self.mixtures:
            dataset = self.files.get(("datasets", name))
            if dataset is not None:
                self.problems.append(
                    f"{self.files['mixtures', name]}: {name}: is a dataset's name already, in {dataset}"
                )

    def _read_kind(self, folder: Path, root: Root) -> None:
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.suffix != ".yaml":
                self.problems.append(f"{path}: is no .yaml file")
                continue
            for name, entry in self._read(path, folder.name):
                if not isinstance(entry, dict):
                    self.problems.append(f"{path}: {name}: should be a mapping (_target_: ..., ...); found {entry!r}")
                elif (key := KINDS[folder.name].factor_key) in entry:
                    self.problems.append(
                        f"{path}: {name}: {key} is given where the entry is chosen ({name}*3, {name}@0.25)"
                    )
                else:
                    located = {"root": str(root.folder)} if KINDS[folder.name].mixes else {}
                    self.entries[folder.name][name] = {**located, **entry}

    def _read_mixtures(self, path: Path) -> None:
        for name, value in self._read(path, "mixtures"):
            if isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value)):
                self.mixtures[name] = value
            else:
                self.problems.append(
                    f"{path}: {name}: should be text such as A+B*2, or a list of such texts; found {value!r}"
                )

    def _read(self, path: Path, kind: str) -> list[tuple[str, Any]]:
        """Return the entries of one file whose names are well-formed and new."""
        try:
            values = read_mapping(path)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return []
        fresh = []
        for name, value in values.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.problems.append(
                    f"{path}: {name!r}: a name is text of letters, digits, '_' and '-' (quote a number)"
                )
            elif name in _RESERVED:
                self.problems.append(f"{path}: {name}: is a reserved name")
            elif self.files.setdefault((kind, name), path) != path:
                self.problems.append(f"{path}: {name}: is defined already in {self.files[kind, name]}")
            else:
                fresh.append((name, value))
        return fresh
