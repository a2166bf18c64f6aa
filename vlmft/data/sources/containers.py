"""What entries share whose rows stand in a container (shards, tars, a Hugging Face dataset), in any row format."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from vlmft.config.spec import validate
from vlmft.data.spec import DatasetSpec
from vlmft.errors import ConfigError, DataError
from vlmft.types import Classes

if TYPE_CHECKING:
    from vlmft.data.sources.files import JsonDataset
    from vlmft.data.sources.parsed import Parser

Format = Literal["llava", "messages", "captions", "preference", "unpaired", "prompts", "classification"]

_FORMATS: dict[Format, tuple[str, str]] = {
    "llava": ("llava", "LLaVADataset"),
    "messages": ("messages", "MessagesDataset"),
    "captions": ("captions", "CaptionsDataset"),
    "preference": ("preference", "PreferenceDataset"),
    "unpaired": ("unpaired", "UnpairedDataset"),
    "prompts": ("prompts", "PromptDataset"),
    "classification": ("classification", "ClassificationDataset"),
}
_NO_OPTIONS = {"data_path", "eval_data_path", "media_dir", "allow_urls", *DatasetSpec.model_fields}


class ContainerDataset(DatasetSpec, abstract=True):
    """Rows of a format that vlmft also reads from plain files; `options` are that dataset's own keys."""

    format: Annotated[Format, Field(description="How its rows are written: as the plain files of that format.")] = (
        "llava"
    )
    options: Annotated[
        dict[str, Any], Field(description="Keys of the format's own dataset: {labels: [cat, dog]}, {is_video: true}.")
    ] = {}
    media_dir: Annotated[
        Path | None, Field(description="Folder of the media that rows name by path, which may not leave it.")
    ] = None
    allow_urls: Annotated[bool, Field(description="Media may be http(s) addresses; each is fetched once.")] = False

    @model_validator(mode="after")
    def _has_a_format(self) -> Self:
        try:
            self.rows_in(Path())
        except ConfigError as error:
            problems = (f"options.{problem}".replace("options.: ", "options: ") for problem in error.problems)
            raise ValueError("; ".join(problems)) from None
        if self.options.get("labels") == "from_data":
            raise ValueError(
                "options: labels: from_data reads a single file of rows, which this is not; name the classes"
            )
        return self

    def rows_in(self, folder: Path) -> "JsonDataset":
        """The entry of a plain file in `folder` that has the same rows. Raises `ConfigError` for a wrong option."""
        module, name = _FORMATS[self.format]
        cls: type[JsonDataset] = getattr(import_module(f"vlmft.data.sources.{module}"), name)
        known = [key for key in cls.model_fields if key not in _NO_OPTIONS]
        for key in self.options:
            if key not in known:
                raise ConfigError(f"{key}: unknown key; the format {self.format} has {', '.join(known)}")
        return validate(cls, {"data_path": folder / "rows.jsonl", "root": self.root, **self.options})

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in order, of the format `classification`."""
        names: tuple[str, ...] = getattr(self.rows_in(Path()), "class_names", ())
        return names

    @property
    def classes(self) -> Classes | None:
        """See `DatasetSpec.classes`."""
        return self.rows_in(Path()).classes

    def parser_in(self, folder: Path) -> "Parser":
        """What reads a row; a file that an option names by default lies in `folder`."""
        return self.rows_in(folder).parser()

    def media_folder(self, name: str, default: Path | None) -> Path | None:
        """`media_dir`, free of symlinks, or `default`. Raises `DataError` where it is no folder."""
        folder = self.located(self.media_dir) if self.media_dir else default
        if folder is not None and not folder.is_dir():
            raise DataError(f"{name}: media_dir {folder} is not a folder; give the folder that the media lie in")
        return folder and folder.resolve()
