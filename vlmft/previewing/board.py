"""The first samples in TensorBoard: their pictures, and their text with brackets around what is trained."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers import TrainerCallback

from vlmft.previewing.album import Album
from vlmft.previewing.samples import ShownSample
from vlmft.previewing.tokens import Piece, printable

_LONGEST_SIDE = 512  # pixels; TensorBoard shows no more


class SamplesOnBoard(TrainerCallback):
    """Writes samples with the writer of transformers' TensorBoard callback, which has to come before, once it is open.

    A run that goes on from a checkpoint has written them already.
    """

    def __init__(self, board: Any, samples: Sequence[ShownSample], album: Album) -> None:
        self.board, self.samples, self.album = board, samples, album

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write them, unless the writer could not be opened."""
        writer = self.board.tb_writer
        if writer is None or state.global_step:
            return
        for sample in self.samples:
            tag = f"preview/{sample.visit.number + 1}"
            writer.add_text(tag, _as_code(sample))
            for medium in sample.media:
                frames = np.stack([small(self.album.pixels(frame.picture)) for frame in medium.frames])
                writer.add_images(f"{tag} {medium.name}", frames, dataformats="NHWC")


def _as_code(sample: ShownSample) -> str:
    """A sample as Markdown; indented by four, its text is shown as it stands."""
    text = sample.error or "".join(_bracketed(sample.pieces))
    lines = [sample.visit.id, "", *printable(text).split("\n")]
    return "\n".join(f"    {line}" for line in lines)


def _bracketed(pieces: Sequence[Piece]) -> Iterator[str]:
    """The texts of `pieces`; what is trained stands between ⟦ and ⟧."""
    trained = False
    for piece in pieces:
        if piece.supervised != trained:
            trained = piece.supervised
            yield "⟦" if trained else "⟧"
        yield f"[{piece.text}]" if piece.kind == "vision" else piece.text
    if trained:
        yield "⟧"


def small(pixels: "np.ndarray[Any, np.dtype[np.uint8]]") -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """A picture [H, W, 3] by every so many of its pixels, where it has more than are shown."""
    every = -(-max(pixels.shape[:2]) // _LONGEST_SIDE)
    return pixels[::every, ::every]
