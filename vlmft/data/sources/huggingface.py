"""Hugging Face datasets: of the hub, saved to disk, or local Parquet, Arrow, JSON, CSV and picture folders."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from vlmft.data.sources.containers import ContainerDataset
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.data.sources.rows import RowSource


class HFDataset(ContainerDataset):
    """A dataset that the library `datasets` reads, in any of the formats that vlmft reads from plain files.

    `path` is a local file, a folder of files, a folder that `save_to_disk` wrote, or else a name on the hub. Rows stay
    on disk, memory-mapped; pictures stay encoded. A dataset that brings code is refused.
    """

    path: Annotated[str, Field(min_length=1, description="A local file or folder, or a name on the hub: owner/name.")]
    name: Annotated[str | None, Field(min_length=1, description="Which configuration of it, where it has several.")] = (
        None
    )
    split: Annotated[str, Field(min_length=1, description="What is trained on: train, or train[:90%].")] = "train"
    eval_split: Annotated[str | None, Field(min_length=1, description="A split with the held-out samples.")] = None
    revision: Annotated[
        str | None, Field(min_length=1, description="Of a dataset on the hub: the commit, tag or branch.")
    ] = None
    columns: Annotated[
        dict[str, str],
        Field(description="The format's name for a column, and the column's own: {id: uuid, image: picture}."),
    ] = {}

    def open(self, name: str) -> "RowSource":
        """Open `split`. Raises `DataError` where it cannot be used."""
        return self._open(name, self.split)

    def open_eval(self, name: str) -> "RowSource | None":
        """Open `eval_split`; None where the entry has none."""
        return self._open(name, self.eval_split) if self.eval_split else None

    def _open(self, name: str, split: str) -> "RowSource":
        from vlmft.data.sources.arrow import ArrowRows
        from vlmft.data.sources.load_hf import load_split
        from vlmft.data.sources.rows import RowSource

        local = self.located(Path(self.path))
        local_folder = local if local.is_dir() else local.parent if local.exists() else None
        try:
            if local_folder and self.revision:
                raise DataError(f"revision={self.revision} is of the hub, and {local} is local; leave it out")
            dataset = load_split(local if local_folder else self.path, self.name, split, self.revision)
            table = ArrowRows(dataset, local if local_folder else Path(self.path), split, name, self.columns)
            parser = self.parser_in(local_folder or Path())
        except DataError as error:
            raise DataError(*(f"{name}: {problem}" for problem in error.problems)) from error
        media_dir = self.media_folder(name, local_folder)
        source = RowSource(name, table, parser, media_dir, self.rules, self.system_prompt, self.allow_urls)
        source.refuse_duplicate_ids()
        return source
