"""Whether the Python code in a checkpoint's folder is that of one commit: what `model.trust_remote_code` rests on.

A commit's hash names its folders and files by what is in them, so all is compared by hash, from the commit's own down.
The repository is not trusted before that: nothing that its config can name (fsmonitor, hooks, filters, a diff or fetch
program) is started, and no object is believed under a hash that is not its own.

What counts is every tracked file but the weights, which are data: a run hashes them for itself (`recipes/saved.py`).
"""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

from vlmft.errors import ConfigError

FULL_HASH = re.compile("[0-9a-f]{40}")
"""A commit in full. An abbreviation, or capitals, may as well be the name of a branch."""

_WEIGHTS = ".safetensors"
_CODE = (*all_suffixes(), ".json")  # what Python imports, and what says which of it is used
_LINK, _MODULE, _FOLDER = "120000", "160000", "40000"  # modes in a git tree


def check_pinned(folder: Path, revision: str) -> None:
    """Check that `folder` holds the code of commit `revision`, and names no code beyond it.

    `folder` is a git checkout or a folder tracked in one, with `revision` checked out; or a snapshot in the Hugging
    Face cache, which is named after its commit and whose files are named after their content.

    Raises:
        ConfigError: it is neither, is at another commit, has a file changed, missing or added, or refers to code
            outside it; lists what differs.
    """
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        problems = _changed_in_cache(folder, revision)
        mend = f"remove {folder} and let it be fetched again"
    else:
        top = next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), None)
        if top is None:
            raise ConfigError(
                f"model.trust_remote_code: {folder} is neither a git checkout nor a snapshot in the Hugging Face "
                "cache, so nothing says which commit its Python code is of",
                f"  clone its repository, check out {revision}, and point model.path there; or give its hub id",
            )
        problems = _changed_in_checkout(folder, top, revision)
        mend = f"clone it anew and check out {revision}; or, if this is your own work, commit it and give that commit"
    if problems:
        raise ConfigError(
            f"model.trust_remote_code: {folder} is not what commit {revision} (model.revision) holds, "
            "so its Python code is not run:",
            *_listed(problems),
            f"  {mend}",
        )
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.path: {folder} is an adapter without its base (it has no config.json), whose code model.revision "
            "would not pin; point model.path at the base"
        )
    _check_references(folder)


def check_copied(folder: Path, origin: Path) -> None:
    """Check that the code in `folder`, saved with a processor, is that of the checked folder `origin`, file by file.

    Raises:
        ConfigError: lists the files that are not, or refer to code outside `folder`.
    """
    known = {digest(path) for path in _files(origin) if not _is_weights(path)}
    problems = [
        f"{path.relative_to(folder)}: is not a file of {origin}"
        for path in _files(folder)
        if path.suffix.lower() in all_suffixes() and (path.is_symlink() or digest(path) not in known)
    ]
    if problems:
        raise ConfigError(
            f"{folder}: holds Python code that its base does not, so it is not run:",
            *_listed(problems),
            "  copy the saved model again, or train it again",
        )
    _check_references(folder)


def digest(path: Path, kind: str = "blob") -> str:
    """The name that git gives to a regular file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(f"{kind} {path.stat().st_size}\0".encode())).hexdigest()


def _changed_in_cache(folder: Path, revision: str) -> list[str]:
    if folder.name != revision:
        return [f"it is the snapshot of commit {folder.name}"]
    problems = []
    for path in _files(folder):
        blob = path.resolve()
        if _is_weights(path):
            continue
        if not path.is_symlink() or blob.parent != folder.parents[1] / "blobs" or not blob.is_file():
            problems.append(f"{path.relative_to(folder)}: is no link to a file that was fetched")
        elif blob.name != (digest(blob) if FULL_HASH.fullmatch(blob.name) else _sha256(blob)):
            problems.append(f"{path.relative_to(folder)}: has changed since it was fetched")
    return problems


def _changed_in_checkout(folder: Path, top: Path, revision: str) -> list[str]:
    head, objects = _head_and_objects(top)
    if head != revision:
        raise ConfigError(
            f"model.revision: is {revision}, but the git checkout {top} is at {head or 'no commit'}",
            f"  check out {revision}; or give the other commit, if that is the one whose code you have read and trust",
        )
    with tempfile.TemporaryDirectory(prefix="vlmft-git-") as bare:
        store = _Objects(Path(bare), objects)
        tracked = dict(store.files(revision, folder.relative_to(top).parts))
        problems = []
        for name, (mode, blob) in sorted(tracked.items()):
            path = folder / name
            if mode == _MODULE or _is_weights(path):
                continue
            if mode == _LINK or path.is_symlink():
                problems.append(f"{name}: is a symlink, and what it leads to belongs to no commit")
            elif not path.exists():
                problems.append(f"{name}: is missing")
            elif not stat.S_ISREG(path.lstat().st_mode):
                problems.append(f"{name}: is no regular file")
            elif digest(path) != blob and not _is_fetched_by_lfs(path, store.read("blob", blob)):
                problems.append(f"{name}: has changed")
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if name not in tracked and not _is_weights(path) and (path.is_symlink() or path.suffix.lower() in _CODE):
            problems.append(f"{name}: is not part of the commit")
    return problems


def _head_and_objects(top: Path) -> tuple[str | None, Path]:
    """The commit that is checked out, and the folder of the repository's objects; rev-parse starts no program."""
    where = ["rev-parse", "--path-format=absolute", "--git-path", "objects"]
    objects = Path(os.fsdecode(_git(where, GIT_DIR=str(top / ".git")).rstrip(b"\n")))
    try:
        head = _git(["rev-parse", "--verify", "HEAD"], GIT_DIR=str(top / ".git")).decode().strip()
    except ConfigError:
        head = None  # no commit yet
    return head, objects


class _Objects:
    """The objects of a repository, read through an empty repository beside it: nothing of its config applies."""

    def __init__(self, bare: Path, objects: Path) -> None:
        (bare / "HEAD").write_text("ref: refs/heads/none\n")
        (bare / "refs").mkdir()
        self.environment = {"GIT_DIR": str(bare), "GIT_OBJECT_DIRECTORY": str(objects)}

    def read(self, kind: str, name: str) -> bytes:
        content = _git(["cat-file", kind, name], **self.environment)
        if hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest() != name:
            raise ConfigError(
                f"model.path: the repository is damaged: its object {name} has another hash; clone it anew"
            )
        return content

    def files(self, commit: str, below: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, str]]]:
        """Each file of `commit` in the folder `below`: its path from there, its mode and its blob."""
        tree = self.read("commit", commit).split(b"\n", 1)[0].removeprefix(b"tree ").decode()
        for part in below:
            mode, tree = dict(self._entries(tree)).get(part, ("", ""))
            if mode != _FOLDER:
                return  # not tracked: then all that is there is not part of the commit
        yield from self._below(tree, "")

    def _below(self, tree: str, prefix: str) -> Iterator[tuple[str, tuple[str, str]]]:
        for name, (mode, found) in self._entries(tree):
            if mode == _FOLDER:
                yield from self._below(found, f"{prefix}{name}/")
            else:
                yield prefix + name, (mode, found)

    def _entries(self, tree: str) -> Iterator[tuple[str, tuple[str, str]]]:
        content = self.read("tree", tree)
        while content:
            mode, _, content = content.partition(b" ")
            name, _, content = content.partition(b"\0")
            yield os.fsdecode(name), (mode.decode(), content[:20].hex())
            content = content[20:]


def _git(arguments: list[str], **environment: str) -> bytes:
    """What a git command prints, without the user's own GIT_ variables and without any way to fetch.

    Raises:
        ConfigError: there is no git, or the command fails; says how.
    """
    git = shutil.which("git")
    if git is None:
        raise ConfigError("model.trust_remote_code: needs git, to check which commit the code is of; install it")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # A partial clone would fetch what it lacks, by a program of its config's choice.
    clean |= {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_NO_REPLACE_OBJECTS": "1", "LC_ALL": "C"}
    try:
        done = subprocess.run([git, *arguments], env=clean | environment, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        reason = said.decode(errors="replace").strip().splitlines()[0]
        raise ConfigError(
            f"model.trust_remote_code: git {arguments[0]} fails: {reason}; clone the repository anew"
        ) from None
    return done.stdout


def _is_fetched_by_lfs(path: Path, blob: bytes) -> bool:
    """Whether the commit holds git-lfs's pointer to exactly this content."""
    return blob.startswith(b"version https://git-lfs") and f"oid sha256:{_sha256(path)}\n".encode() in blob


def _check_references(folder: Path) -> None:
    """Refuse JSON files that make transformers run, with the same permission, code from outside the folder."""
    problems = []
    for path in _files(folder):
        if path.suffix != ".json" or path.name.endswith(".index.json"):
            continue
        try:
            values = json.loads(path.read_text("utf-8"))
        except ValueError:
            continue  # transformers cannot read it either
        for reference in _references(values):
            module, _, _ = reference.rpartition(".")
            file = folder / f"{module}.py"
            if "--" in reference:
                problems.append(f"{path.name}: auto_map names {reference}, which is code of another repository")
            elif ".." in file.parts or not file.is_relative_to(folder) or not file.is_file():
                problems.append(f"{path.name}: auto_map names {reference}, but there is no {module}.py in the folder")
    if problems:
        raise ConfigError(
            f"model.trust_remote_code: {folder} needs code that model.revision does not pin, so none is run:",
            *_listed(problems),
            "  use a checkpoint that brings all of its code, or copy that code into a clone, name it there without "
            "'repository--', and commit it",
        )


def _references(value: Any, named: bool = False) -> Iterator[str]:
    """Every class that some `auto_map` names, at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _references(item, named or key == "auto_map")
    elif isinstance(value, list):
        for item in value:
            yield from _references(item, named)
    elif named and isinstance(value, str):
        yield value


def _files(folder: Path) -> Iterator[Path]:
    """Every file and every symlink below `folder`, but for git's own."""
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name != ".git"]
            files = [name for name in files if name != ".git"]
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from (Path(parent) / name for name in sorted([*files, *links]))


def _is_weights(path: Path) -> bool:
    return path.suffix == _WEIGHTS


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(problems: list[str], most: int = 20) -> list[str]:
    more = [f"  and {len(problems) - most} more"] if len(problems) > most else []
    return [f"  {problem}" for problem in problems[:most]] + more
