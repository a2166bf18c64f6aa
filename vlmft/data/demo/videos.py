"""Generated videos of a moving square: with questions, and with structured captions."""

from typing import Annotated

from pydantic import Field

from vlmft.data.demo.generated import Generated, as_written, written_once
from vlmft.data.sources.captions import CaptionsDataset
from vlmft.data.sources.llava import LLaVADataset

GENERATOR = 2
"""Raise it whenever the same parameters give other files: cached ones are then made anew."""


class SquareVideos(Generated, abstract=True):
    """A coloured square crosses a coloured ground and may change its colour halfway: 8 to 16 frames, 4 a second."""

    train_videos: Annotated[int, Field(ge=1, description="Training videos.")]
    eval_videos: Annotated[int, Field(ge=1, description="Held-out videos.")]
    image_size: Annotated[int, Field(ge=28, le=1024, multiple_of=2, description="Width and height, in pixels.")]
    seed: Annotated[int, Field(description="Draws the videos; another seed is another dataset.")]

    @property
    def _parameters(self) -> tuple[int, ...]:
        return (self.train_videos, self.eval_videos, self.image_size, self.seed)


class DemoVideo(SquareVideos):
    """Three questions a video, in LLaVA's format: the colour at the start, at the end, and of the ground."""

    def files(self) -> LLaVADataset:
        """See `Generated.files`."""
        from vlmft.data.demo.videos_files import write_questions

        folder = written_once("video", GENERATOR, self._parameters, write_questions)
        return as_written(self, LLaVADataset, folder, is_video=True)


class DemoCaptions(SquareVideos):
    """A row of fields a video (metadata.jsonl), as a JSON Schema describes them: what happens, and the colours."""

    def files(self) -> CaptionsDataset:
        """See `Generated.files`."""
        from vlmft.data.demo.videos_files import write_captions

        folder = written_once("captions", GENERATOR, self._parameters, write_captions)
        return as_written(self, CaptionsDataset, folder, "metadata.jsonl")
