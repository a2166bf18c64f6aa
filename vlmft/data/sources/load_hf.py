"""Open one split of a dataset by the library `datasets`, which never runs the dataset's own code here."""

import re
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetBuilder, DatasetDict
from datasets.exceptions import DatasetsError
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from vlmft.errors import DataError

# What the builders of `datasets` are called that read plain data; others need more, or read what is no such data.
_BUILDERS = ("arrow", "cache", "csv", "imagefolder", "json", "parquet", "text", "videofolder", "webdataset")
_OF_SUFFIX = {
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_SAVED = ("state.json", "dataset_dict.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_split(path: Path | str, name: str | None, split: str, revision: str | None) -> Dataset:
    """Open a split.

    Args:
        path: a local file or folder; or, a string, a name on the hub.
        name: of the configuration.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        if isinstance(path, Path) and any((path / file).is_file() for file in _SAVED):
            return _saved(path, split)
        builder = _builder(path, name, revision)
        builder.download_and_prepare()
        return builder.as_dataset(split=split, in_memory=False)
    except (DatasetsError, pa.ArrowException, OSError, ValueError, RuntimeError, LookupError) as error:
        raise DataError(f"{path}: {_reason(error)}; {_fix(path, error)}") from error


def _saved(folder: Path, split: str) -> Dataset:
    """A split of what `save_to_disk` wrote."""
    found = datasets.load_from_disk(str(folder), keep_in_memory=False)
    if isinstance(found, DatasetDict):
        if split not in found:
            raise DataError(f"{folder}: has no split {split!r}; it has {', '.join(found)}")
        return found[split]
    if str(found.split or "train") != split:
        raise DataError(f"{folder}: holds the split {str(found.split or 'train')!r} alone, and not {split!r}")
    return found


def _builder(path: Path | str, name: str | None, revision: str | None) -> DatasetBuilder:
    if isinstance(path, Path) and path.is_file():
        kind = _OF_SUFFIX.get(path.suffix.lower())
        if kind is None:
            raise DataError(f"{path}: ends in {path.suffix or 'nothing'}; expected one of {', '.join(_OF_SUFFIX)}")
        if name:
            raise DataError(f"{path}: is one file, which has no configuration {name!r}; set name: null")
        return datasets.load_dataset_builder(kind, data_files=str(path))
    builder = datasets.load_dataset_builder(str(path), name, revision=revision)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _BUILDERS:
        raise DataError(f"{path}: is read by the builder {kind!r}; expected one of {', '.join(_BUILDERS)}")
    return _of_commit(builder, str(path), revision) if kind == "cache" and revision else builder


def _of_commit(builder: DatasetBuilder, path: str, revision: str) -> DatasetBuilder:
    """The cached copy of `revision`; out of reach of the hub, `datasets` takes whatever commit it had last."""
    commit = revision if _COMMIT.fullmatch(revision) else _named_commit(path, revision)
    if commit:
        config = builder.config
        found = type(builder)(
            repo_id=path,
            dataset_name=path.rpartition("/")[2],
            config_name=config.name,
            version=str(config.version),
            hash=commit,
        )
        if Path(found.cache_dir).is_dir():
            return found
    raise DataError(
        f"{path}: the hub is out of reach, and there is no copy of revision={revision} at hand "
        f"(the last one is of commit {builder.hash}); go online"
    )


def _named_commit(path: str, revision: str) -> str | None:
    """What a branch or tag named when it was last asked for; None where it never was."""
    repository = Path(HF_HUB_CACHE, repo_folder_name(repo_id=path, repo_type="dataset"))
    reference = repository / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None


def _reason(error: BaseException) -> str:
    """What is wrong; `datasets` often says it in an error's cause alone."""
    cause = f" ({_reason(error.__cause__)})" if error.__cause__ is not None else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{cause}"


def _fix(path: Path | str, error: Exception) -> str:
    if "scripts are no longer supported" in str(error):
        return "its own code is never run: convert it to Parquet, or save it with save_to_disk"
    if isinstance(path, Path):
        return "mend the files, or path"
    return "no such local file or folder is there either: mend path, name or revision, or go online"
