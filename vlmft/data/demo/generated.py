"""What generated datasets share: files that are written once, and then read like anyone's."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vlmft.cache import cache_dir, make_once
from vlmft.data.sources.files import JsonDataset
from vlmft.data.spec import DatasetSpec

if TYPE_CHECKING:
    from vlmft.data.sources.rows import RowSource


class Generated(DatasetSpec, abstract=True):
    """A dataset that vlmft makes itself: real files in a published format, below the cache folder."""

    def files(self) -> JsonDataset:
        """The dataset of the files on disk; writes them where they do not exist yet."""
        raise NotImplementedError

    def open(self, name: str) -> "RowSource":
        """Open the training rows; writes the files where they do not exist yet."""
        return self.files().open(name)

    def open_eval(self, name: str) -> "RowSource | None":
        """Open the held-out rows; writes the files where they do not exist yet."""
        return self.files().open_eval(name)


def written_once(name: str, generator: int, parameters: tuple[int, ...], write: Callable[..., None]) -> Path:
    """Return the folder `<cache>/datasets/<name>-<hash>` that `write(folder, *parameters)` fills.

    Args:
        generator: raised whenever the same parameters give other files: cached ones are then made anew.
        parameters: all that changes the files.
    """
    digest = hashlib.sha256(repr((generator, *parameters)).encode()).hexdigest()[:12]
    return make_once(cache_dir() / "datasets" / f"{name}-{digest}", lambda new: write(new, *parameters))


D = TypeVar("D", bound=JsonDataset)


def as_written(entry: Generated, form: type[D], folder: Path, rows: str = "dataset.json", **keys: object) -> D:
    """Describe a generated folder as the dataset that it is, with what its entry says of system turn and media."""
    said = {name: getattr(entry, name) for name in ("system_prompt", *type(entry.rules).model_fields)}
    held_out = f"eval{Path(rows).suffix}"
    return form.model_validate(said | keys | {"data_path": folder / rows, "eval_data_path": folder / held_out})
