"""Sets of many files, larger than memory: shards of JSON Lines or Parquet, and tars, read in windows of rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from vlmft.data.sources.containers import ContainerDataset
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.data.sources.rows import RowSource
    from vlmft.data.sources.shards import Opener

Paths = Annotated[Path | tuple[Path, ...], Field(union_mode="left_to_right")]

WINDOW = 8192
"""Rows that are shuffled at a time, where more could be read with ease."""


class ShardSet(ContainerDataset, abstract=True):
    """Samples in many files. Each epoch goes through the files in another order, and shuffles rows in windows.

    What has to be known of a file before its rows are read is found out once, and kept in the cache folder.
    """

    data_path: Annotated[
        Paths, Field(description="The folder of the files, a pattern (train-*.tar, **/*.jsonl), or a list of files.")
    ]
    eval_data_path: Annotated[Paths | None, Field(description="The same for held-out samples.")] = None
    shuffle_window: Annotated[
        int | None,
        Field(ge=1, description=f"Rows shuffled at a time; null: {WINDOW}, or as many Parquet rows as 128 MB hold."),
    ] = None

    def open(self, name: str) -> "RowSource":
        """Open the training shards. Raises `DataError` where they cannot be used."""
        return self._open(name, "data_path", self.data_path)

    def open_eval(self, name: str) -> "RowSource | None":
        """Open the shards of `eval_data_path`; None where the entry has none."""
        return self._open(name, "eval_data_path", self.eval_data_path) if self.eval_data_path else None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """How the names of its files end; of other files in a folder nothing is read."""
        raise NotImplementedError

    def opener(self, name: str, suffix: str) -> "Opener":
        """What opens files whose names end in `suffix`, for the entry `name`."""
        raise NotImplementedError

    def default_media_dir(self, folder: Path) -> Path | None:
        """Where media lie that rows name by path, where the entry does not say."""
        raise NotImplementedError

    def _open(self, name: str, key: str, paths: Path | tuple[Path, ...]) -> "RowSource":
        from vlmft.data.sources.find_shards import find_shards
        from vlmft.data.sources.rows import RowSource
        from vlmft.data.sources.shards import Shards

        located = self.located(paths) if isinstance(paths, Path) else tuple(map(self.located, paths))
        try:
            files = find_shards(located, self.suffixes)
            table = Shards(files, self.opener(name, files.suffix))
            parser = self.parser_in(files.folder)
        except DataError as error:
            raise DataError(*(f"{name}: {key}: {problem}" for problem in error.problems)) from error
        source = RowSource(
            name,
            table,
            parser,
            self.media_folder(name, self.default_media_dir(files.folder)),
            self.rules,
            self.system_prompt,
            self.allow_urls,
            self.shuffle_window or min(WINDOW, table.window or WINDOW),
        )
        table.refuse_duplicate_ids(source)
        return source


class ShardedDataset(ShardSet):
    """Rows in many .jsonl files, or in many .parquet files, in any of the formats that vlmft reads from plain files.

    A sample's id is its row's own, or `<file's name>/<row>`. Media lie beside the files (`media_dir`), or, in Parquet,
    inside of them.
    """

    columns: Annotated[
        dict[str, str],
        Field(description="Of Parquet: the format's name for a column, and the column's own: {id: uuid, image: jpg}."),
    ] = {}

    @property
    def suffixes(self) -> tuple[str, ...]:
        """See `ShardSet.suffixes`."""
        return (".jsonl", ".ndjson", ".parquet")

    def opener(self, name: str, suffix: str) -> "Opener":
        """See `ShardSet.opener`."""
        if suffix == ".parquet":
            from vlmft.data.sources.parquet import ParquetOpener

            return ParquetOpener(name, tuple(sorted(self.columns.items())))
        if self.columns:
            raise DataError(f"columns renames those of Parquet files, and these are {suffix}; rename their keys")
        from vlmft.data.sources.jsonrows import JsonOpener

        return JsonOpener(name)

    def default_media_dir(self, folder: Path) -> Path:
        """See `ShardSet.default_media_dir`."""
        return folder


class WebDataset(ShardSet):
    """Samples in tars as WebDataset writes them: files that follow each other and have one name up to the first dot.

        000.json 000.jpg 001.json 001.0.jpg 001.1.jpg 002.json 002.mp4

    `.json` is the row in its `format`. Where it names a member by the name of its file, that stands there; where it
    names none, pictures and videos come in the order of the numbers in their names. `.txt` is the row's `text`, or the
    answer to the entry's `prompt`; `.cls` its `label`. A sample's id is `<tar's name>/<name>`.
    """

    prompt: Annotated[
        str | None, Field(min_length=1, description="The question that each sample's .txt answers, as a caption does.")
    ] = None
    ignore: Annotated[
        tuple[str, ...], Field(description="Endings of members that are left out: [npy, url]. Others are an error.")
    ] = ()

    @property
    def suffixes(self) -> tuple[str, ...]:
        """See `ShardSet.suffixes`."""
        return (".tar",)

    def opener(self, name: str, suffix: str) -> "Opener":
        """See `ShardSet.opener`."""
        from vlmft.data.sources.tars import TarOpener

        return TarOpener(name, self.prompt, self.ignore)

    def default_media_dir(self, folder: Path) -> None:
        """See `ShardSet.default_media_dir`: a tar brings its media along."""
        return None
