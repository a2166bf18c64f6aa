"""The embedded default's data: generated pictures of one coloured shape, with questions about its colours."""

from typing import Annotated

from pydantic import Field

from vlmft.data.demo.generated import Generated, as_written, written_once
from vlmft.data.sources.llava import LLaVADataset

GENERATOR = 1
"""Raise it whenever the same parameters give other files: cached ones are then made anew."""


class Shapes(Generated):
    """Circles, squares, triangles and crosses in six colours, on four backgrounds, asked about by colour.

    Written once to `<cache>/datasets/shapes-<hash>` in LLaVA's format. No two pictures are equal.
    """

    train_samples: Annotated[int, Field(ge=1, description="Training conversations.")]
    eval_samples: Annotated[int, Field(ge=1, description="Held-out conversations; their last answers are balanced.")]
    image_size: Annotated[int, Field(ge=28, le=1024, description="Width and height of a picture, in pixels.")]
    seed: Annotated[int, Field(description="Draws the pictures and questions; another seed is another dataset.")]

    def files(self) -> LLaVADataset:
        """See `Generated.files`."""
        from vlmft.data.demo.shapes_files import write_shapes

        parameters = (self.train_samples, self.eval_samples, self.image_size, self.seed)
        return as_written(self, LLaVADataset, written_once("shapes", GENERATOR, parameters, write_shapes))
