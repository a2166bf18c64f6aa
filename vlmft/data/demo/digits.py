"""Real handwriting: scikit-learn's digits, exported once as pictures and a LLaVA file."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from vlmft.cache import make_once
from vlmft.data.demo.shapes import dataset_folder, generated
from vlmft.data.sources.llava import LLaVADataset
from vlmft.data.spec import DatasetSpec

if TYPE_CHECKING:
    from vlmft.data.sources.rows import RowSource

GENERATOR = 1
"""Raise it whenever the same parameters give other files: cached ones are then made anew."""


class Digits(DatasetSpec):
    """1,797 handwritten digits (UCI's optical recognition set, as scikit-learn ships it), in fixed halves.

    Written once to `<cache>/datasets/digits-<hash>` in LLaVA's format. Needs the extra `demo`.
    """

    eval_samples: Annotated[int, Field(ge=10, le=1000, description="Held-out digits, equally many of each kind.")]
    image_size: Annotated[int, Field(ge=8, le=1024, description="Width and height of a picture, in pixels.")]

    def open(self, name: str) -> "RowSource":
        """Open the training rows; writes the files where they do not exist yet.

        Raises:
            ConfigError: the files do not exist yet and scikit-learn is not installed.
        """
        return self._files().open(name)

    def open_eval(self, name: str) -> "RowSource | None":
        """Open the held-out rows; as `open`."""
        return self._files().open_eval(name)

    def _files(self) -> LLaVADataset:
        from vlmft.data.demo.digits_files import write_digits

        parameters = (self.eval_samples, self.image_size)
        folder = make_once(dataset_folder("digits", GENERATOR, *parameters), lambda new: write_digits(new, *parameters))
        return generated(folder, self)
