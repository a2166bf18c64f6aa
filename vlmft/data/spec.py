"""What a dataset entry of the registry becomes, and what it opens."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias

from pydantic import Field

from vlmft.config.media import Augmentation, CoordinateForm, MediaRules, PixelBudget, VideoRule
from vlmft.config.spec import Spec
from vlmft.types import Classes, Sample, Target

if TYPE_CHECKING:  # a spec must not load numpy
    import numpy as np

Rows: TypeAlias = "Sequence[int] | np.ndarray[Any, Any]"
"""Some of a source's rows, counted from 0: a range, a list or an integer array."""


class Source(Protocol):
    """The samples of one file, each read when it is asked for."""

    @property
    def name(self) -> str:
        """The entry's name, with which every sample's id begins."""
        ...

    @property
    def data_file(self) -> Path:
        """The file that the rows stand in, absolute."""
        ...

    @property
    def shards(self) -> Sequence[int] | None:
        """How many rows each of its files holds, in order, where they are to be read in order; None: in any order."""
        ...

    @property
    def shuffle_window(self) -> int:
        """Of a source with `shards`: how many rows are shuffled at a time."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Sample:
        """Read one row. Raises `SampleError` where it cannot be used; its media are found, but not decoded."""
        ...

    def sample_id(self, row: int) -> str:
        """`<entry>/<id>`, or `<entry>/<row>` where the file gives none; cheap."""
        ...

    def target(self, row: int) -> Target | None:
        """The row's target, without looking at its media. Raises `SampleError` where the row is malformed."""
        ...

    def check_row(self, row: int) -> None:
        """Raise `SampleError` where the row itself is malformed; touches no medium."""
        ...

    def content_key(self, row: int) -> bytes:
        """A digest of what the row says and shows (texts and media, not the id); never raises."""
        ...

    def fingerprint(self) -> dict[str, str | int]:
        """`sha256` of the data file and number of `rows`: equal where a resumed run sees the same data."""
        ...


class DatasetSpec(Spec, abstract=True):
    """A dataset entry: where samples come from and how often each is seen."""

    factor: Annotated[
        float,
        Field(
            gt=0, allow_inf_nan=False, description="Written by the mixture grammar: A*3 repeats, A@0.25 takes a part."
        ),
    ] = 1.0
    weight: Annotated[
        float | None,
        Field(
            gt=0, allow_inf_nan=False, description="Its share of the training stream, relative to the other weights."
        ),
    ] = None
    repeat: Annotated[int, Field(ge=1, description="Times an epoch visits each sample; multiplies factor.")] = 1
    root: Annotated[
        Path | None,
        Field(
            description="Folder that relative paths start from; the registry fills it in. Default: the working folder."
        ),
    ] = None
    system_prompt: Annotated[
        str | None, Field(min_length=1, description="System turn put before samples that have none.")
    ] = None

    image: Annotated[PixelBudget, Field(description="How large its pictures are seen; null: as model.image says.")] = (
        PixelBudget()
    )
    video: Annotated[
        VideoRule, Field(description="Which frames are seen, and how large; null: as model.video says.")
    ] = VideoRule()
    max_vision_tokens: Annotated[
        int | None, Field(ge=1, description="Vision tokens of a sample, at most; more is an error.")
    ] = None
    augment: Annotated[Augmentation | None, Field(description="Random changes of its media while training.")] = None
    coordinates: Annotated[
        CoordinateForm | None,
        Field(description="How its texts write boxes and points; they then follow what is done to the picture."),
    ] = None

    @property
    def rules(self) -> MediaRules:
        """What the entry says of its media."""
        return MediaRules(
            image=self.image,
            video=self.video,
            max_vision_tokens=self.max_vision_tokens,
            augment=self.augment,
            coordinates=self.coordinates,
        )

    @property
    def classes(self) -> Classes | None:
        """The classes of its samples; None where they have none. Raises `DataError` where they cannot be found out."""
        return None

    def located(self, path: Path) -> Path:
        """`path`, made absolute: it starts from `root`, and `~` is the user's home."""
        return (self.root or Path()).expanduser().absolute() / path.expanduser()

    @property
    def visits(self) -> float:
        """How often an epoch visits each sample: `factor * repeat`."""
        return self.factor * self.repeat

    def open(self, name: str) -> Source:
        """Open the training rows under the entry's name. Raises `DataError` where the file cannot be used."""
        raise NotImplementedError

    def open_eval(self, name: str) -> Source | None:
        """Open the entry's own held-out rows; None where it has none."""
        raise NotImplementedError
