"""The embedded default's data: generated pictures of one coloured shape, with questions about its colours."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from vlmft.cache import cache_dir, make_once
from vlmft.data.sources.llava import LLaVADataset
from vlmft.data.spec import DatasetSpec

if TYPE_CHECKING:
    from vlmft.data.sources.rows import RowSource

GENERATOR = 1
"""Raise it whenever the same parameters give other files: cached ones are then made anew."""


class Shapes(DatasetSpec):
    """Circles, squares, triangles and crosses in six colours, on four backgrounds, asked about by colour.

    Written once to `<cache>/datasets/shapes-<hash>` in LLaVA's format. No two pictures are equal.
    """

    train_samples: Annotated[int, Field(ge=1, description="Training conversations.")]
    eval_samples: Annotated[int, Field(ge=1, description="Held-out conversations; their last answers are balanced.")]
    image_size: Annotated[int, Field(ge=28, le=1024, description="Width and height of a picture, in pixels.")]
    seed: Annotated[int, Field(description="Draws the pictures and questions; another seed is another dataset.")]

    def open(self, name: str) -> "RowSource":
        """Open the training rows; writes the files where they do not exist yet."""
        return self._files().open(name)

    def open_eval(self, name: str) -> "RowSource | None":
        """Open the held-out rows; writes the files where they do not exist yet."""
        return self._files().open_eval(name)

    def _files(self) -> LLaVADataset:
        from vlmft.data.demo.shapes_files import write_shapes

        parameters = (self.train_samples, self.eval_samples, self.image_size, self.seed)
        folder = make_once(dataset_folder("shapes", GENERATOR, *parameters), lambda new: write_shapes(new, *parameters))
        return generated(folder, self)


def dataset_folder(name: str, *parameters: int) -> Path:
    """Return where a generated dataset belongs: parameters that change its files change the folder."""
    digest = hashlib.sha256(repr(parameters).encode()).hexdigest()[:12]
    return cache_dir() / "datasets" / f"{name}-{digest}"


def generated(folder: Path, entry: DatasetSpec) -> LLaVADataset:
    """Describe a generated folder as the LLaVA dataset that it is, with what its entry says of system turn, media."""
    said = {"system_prompt", *type(entry.rules).model_fields}
    return LLaVADataset(
        data_path=folder / "dataset.json",
        eval_data_path=folder / "eval.json",
        **{name: getattr(entry, name) for name in said},
    )
