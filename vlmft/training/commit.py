"""How a folder of files becomes a checkpoint: all of it, or nothing.

The files are written into a sibling folder, each flushed to the device; then the manifest, which lists them with size
and sha256, is written last; then the folder is renamed. A reader believes a folder only where its manifest is there
and every listed file agrees with it, so a crash, a full disk or a flipped byte costs one checkpoint and never a run.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlmft.errors import StorageError

MANIFEST = "manifest.json"
_PREFIX = "step-"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Committed:
    """A checkpoint whose bytes agree with its manifest."""

    folder: Path
    step: int
    facts: Mapping[str, Any]
    """What its writer said of it: fingerprint, scores."""


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimiser steps lies."""
    return checkpoints / f"{_PREFIX}{step:08d}"


def partial_folder(folder: Path) -> Path:
    """Where a checkpoint's files are written before it counts."""
    return folder.with_name(folder.name + _PARTIAL)


def begin(folder: Path) -> Path:
    """Make the empty folder that the files of a checkpoint are written into; what an earlier crash left is removed.

    Raises:
        StorageError: it cannot be made.
    """
    partial = partial_folder(folder)
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"{partial}: cannot be made: {error.strerror}") from error
    return partial


def commit(folder: Path, step: int, facts: Mapping[str, Any]) -> Committed:
    """Make what was written into `partial_folder(folder)` the checkpoint `folder`.

    Raises:
        StorageError: a file cannot be flushed or written; nothing has been replaced.
    """
    partial = partial_folder(folder)
    try:
        files = {}
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            _flush(path)
            files[str(path.relative_to(partial))] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        manifest = json.loads(json.dumps({"step": step, "facts": dict(facts), "files": files}))
        manifest["sha256"] = _sha256_of(manifest)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _flush(partial / MANIFEST)
        _flush(partial)
        if folder.exists():  # the same step again: resumed from an older checkpoint, as this one did not verify
            _remove(folder)
        partial.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        raise StorageError(f"{partial}: cannot be written: {error.strerror}; nothing earlier was touched") from error
    return Committed(folder, step, facts)


def publish(folder: Path) -> None:
    """Flush what was written into `partial_folder(folder)`, and give it the name `folder`, which is free or empty.

    Raises:
        StorageError: a file cannot be flushed, or the name has been taken in the meantime; the files are left.
    """
    partial = partial_folder(folder)
    try:
        for path in sorted(partial.rglob("*")):
            _flush(path)
        _flush(partial)
        partial.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        raise StorageError(f"{partial}: cannot become {folder}: {error.strerror}") from error


def verify(folder: Path) -> Committed:
    """Read every byte of a checkpoint and compare it with its manifest.

    Raises:
        StorageError: says which file is missing, cut or changed.
    """
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            size, sha256 = path.stat().st_size, _sha256(path)
        except FileNotFoundError:
            raise StorageError(f"{path}: is missing") from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
        if size != expected["size"]:
            raise StorageError(f"{path}: has {size} bytes, {expected['size']} were written")
        if sha256 != expected["sha256"]:
            raise StorageError(f"{path}: its bytes are not those that were written")
    return Committed(folder, manifest["step"], manifest["facts"])


def newest(checkpoints: Path) -> tuple[Committed | None, list[str]]:
    """The newest checkpoint that verifies, and why newer ones were passed over."""
    rejected: list[str] = []
    for folder in sorted(_finished(checkpoints), reverse=True):
        try:
            return verify(folder), rejected
        except StorageError as error:
            rejected.append(str(error))
    return None, rejected


def rotate(checkpoints: Path, keep: int, last: Path, best: Path | None = None) -> None:
    """Remove all but `best` and the newest `keep` checkpoints up to `last`, and what crashes have left unfinished.

    `last` is the one just written. Those of later steps did not verify when the run went on from an earlier one.

    Raises:
        StorageError: one cannot be removed; it no longer counts as a checkpoint.
    """
    finished = sorted(_finished(checkpoints))
    upto = [folder for folder in finished if folder.name <= last.name]
    try:
        for folder in upto[:-keep] + finished[len(upto) :]:
            if folder != best:
                _remove(folder)
        for partial in checkpoints.glob(f"{_PREFIX}*{_PARTIAL}"):
            shutil.rmtree(partial)
    except OSError as error:
        raise StorageError(f"{error.filename or checkpoints}: cannot be removed: {error.strerror}") from error


def write_each(partial: Path, writers: Mapping[str, Callable[[Path], None]]) -> None:
    """Call each writer with its path below `partial`.

    Raises:
        StorageError: names the file that could not be written.
    """
    for name, write in writers.items():
        try:
            write(partial / name)
        except (OSError, RuntimeError, SafetensorError) as error:  # on a full disk torch's writer raises RuntimeError
            raise StorageError(f"{partial / name}: cannot be written: {error}") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    """A manifest that agrees with its own hash, so that no flipped bit in it can change a step or a fact."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise StorageError(f"{folder}: there is no such checkpoint")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        claimed = manifest.pop("sha256")
    except FileNotFoundError:
        raise StorageError(f"{folder}: has no {MANIFEST}: it was never finished, or is no checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path}: is damaged ({error})") from error
    if claimed != _sha256_of(manifest):
        raise StorageError(f"{path}: is damaged (its content is not what was written)")
    return manifest


def _remove(folder: Path) -> None:
    """Take a checkpoint's name away at once, then its files: a crash between leaves no half of it to be counted."""
    doomed = folder.with_name(f"{folder.name}.removed{_PARTIAL}")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _finished(checkpoints: Path) -> list[Path]:
    return [path for path in checkpoints.glob(f"{_PREFIX}*") if path.is_dir() and not path.name.endswith(_PARTIAL)]


def _sha256_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until the device has a file's bytes, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
