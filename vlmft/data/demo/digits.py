"""Real handwriting: scikit-learn's digits, exported once as pictures and a LLaVA file."""

from typing import Annotated

from pydantic import Field

from vlmft.data.demo.generated import Generated, as_written, written_once
from vlmft.data.sources.llava import LLaVADataset

GENERATOR = 1
"""Raise it whenever the same parameters give other files: cached ones are then made anew."""


class Digits(Generated):
    """1,797 handwritten digits (UCI's optical recognition set, as scikit-learn ships it), in fixed halves.

    Written once to `<cache>/datasets/digits-<hash>` in LLaVA's format. Needs the extra `demo`.
    """

    eval_samples: Annotated[int, Field(ge=10, le=1000, description="Held-out digits, equally many of each kind.")]
    image_size: Annotated[int, Field(ge=8, le=1024, description="Width and height of a picture, in pixels.")]

    def files(self) -> LLaVADataset:
        """See `Generated.files`.

        Raises:
            ConfigError: the files do not exist yet and scikit-learn is not installed.
        """
        from vlmft.data.demo.digits_files import write_digits

        parameters = (self.eval_samples, self.image_size)
        return as_written(self, LLaVADataset, written_once("digits", GENERATOR, parameters, write_digits))
