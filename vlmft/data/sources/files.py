"""What entries share that name a JSON file of rows with a folder of media beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from vlmft.data.spec import DatasetSpec
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.data.sources.parsed import Parser
    from vlmft.data.sources.rows import RowSource


class JsonDataset(DatasetSpec, abstract=True):
    """Samples of one JSON list or JSON Lines file. Relative paths start from `root`; `~` is the user's home."""

    data_path: Annotated[Path, Field(description="The .json (a list) or .jsonl file of the training samples.")]
    media_dir: Annotated[
        Path | None, Field(description="Folder of the media, which may not leave it. Default: data_path's folder.")
    ] = None
    eval_data_path: Annotated[
        Path | None, Field(description="A file of the same format with the held-out samples.")
    ] = None
    allow_urls: Annotated[bool, Field(description="Media may be http(s) addresses; each is fetched once.")] = False
    frames_fps: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Frames a second of videos given as frames.")
    ] = None

    def parser(self) -> "Parser":
        """What reads a row; may be pickled."""
        raise NotImplementedError

    def data_file(self, path: Path) -> Path:
        """The file that `data_path` or `eval_data_path` means, absolute."""
        return self.located(path)

    def open(self, name: str) -> "RowSource":
        """Open the training rows. Raises `DataError` where the file cannot be used."""
        return self._open(name, "data_path", self.data_path)

    def open_eval(self, name: str) -> "RowSource | None":
        """Open the rows of `eval_data_path`; None where the entry has none."""
        return self._open(name, "eval_data_path", self.eval_data_path) if self.eval_data_path else None

    def _open(self, name: str, key: str, path: Path) -> "RowSource":
        from vlmft.data.sources.jsonrows import read_json_rows
        from vlmft.data.sources.rows import RowSource

        data_file = self.data_file(path)
        media_dir = self.located(self.media_dir) if self.media_dir else self.data_file(self.data_path).parent
        if not data_file.is_file():
            what = "is a folder, not a file" if data_file.is_dir() else "does not exist"
            raise DataError(f"{name}: {key} {data_file} {what}; give the path of a .json or .jsonl file")
        if not media_dir.is_dir():
            raise DataError(f"{name}: media_dir {media_dir} is not a folder; give the folder that the media lie in")
        try:
            rows, parser = read_json_rows(data_file, name), self.parser()
        except DataError as error:
            raise DataError(*(f"{name}: {problem}" for problem in error.problems)) from error
        source = RowSource(name, rows, parser, media_dir.resolve(), self.rules, self.system_prompt, self.allow_urls)
        source.refuse_duplicate_ids()
        return source
