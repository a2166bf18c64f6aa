"""Completions in TensorBoard: the prompt's pictures, and what was answered with what it earned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import TrainerCallback

from vlmft.encoding.collate import Collator
from vlmft.models.spec import Media
from vlmft.previewing.board import small
from vlmft.previewing.tokens import printable
from vlmft.scoring.rewards import OWN

_PROMPTS = 2
"""Prompts of a step that are shown."""


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt's completions at a step."""

    rows: Sequence[Mapping[str, Any]]
    """As `vlmft.training.completions.rows_of` makes them, all of one prompt."""
    media: Sequence["np.ndarray[Any, np.dtype[np.uint8]]"]
    """What the tower gets of each picture or video, [N, H, W, 3]."""


def shown_prompts(
    rows: Sequence[Mapping[str, Any]], media: Sequence[Sequence[Media]], collator: Collator
) -> list[ShownPrompt]:
    """The first prompts of a step, with all completions of each.

    Args:
        rows: of all completions, those of a prompt together.
        media: of each of them.
    """
    ids = [row["id"] for row in rows]
    prompts = []
    for sample_id in list(dict.fromkeys(ids))[:_PROMPTS]:
        own = [row for row in rows if row["id"] == sample_id]
        seen = [collator.family.shown(collator.processor, item) for item in media[ids.index(sample_id)]]
        prompts.append(ShownPrompt(own, [frames for frames in seen if len(frames)]))
    return prompts


class CompletionsOnBoard(TrainerCallback):
    """Writes what `show` was given at the end of the step, with the writer of transformers' TensorBoard callback."""

    def __init__(self, board: Any) -> None:
        self.board = board
        self._waiting: list[ShownPrompt] = []

    def show(self, prompts: Sequence[ShownPrompt]) -> None:
        """Take the prompts of the step under way."""
        self._waiting = list(prompts)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write them, unless the writer could not be opened."""
        prompts, self._waiting = self._waiting, []
        writer = self.board.tb_writer
        if writer is None:
            return
        for number, prompt in enumerate(prompts, start=1):
            tag = f"completions/{number}"
            writer.add_text(tag, _as_code(prompt.rows), state.global_step)
            for place, frames in enumerate(prompt.media, start=1):
                shown = np.stack([small(frame) for frame in frames])
                writer.add_images(f"{tag} medium {place}", shown, state.global_step, dataformats="NHWC")


def _as_code(rows: Sequence[Mapping[str, Any]]) -> str:
    """A prompt and its completions as Markdown; indented by four, they are shown as they stand."""
    first = rows[0]
    lines = [first["id"], "", *printable(first["prompt"]).split("\n"), "", f"solution: {printable(first['solution'])}"]
    for row in rows:
        scores = "  ".join(f"{name.removeprefix(OWN)} {row[name]:g}" for name in row if name.startswith(OWN))
        cut = "" if row["ended"] else "  (cut)"
        lines += ["", f"reward {row['reward']:g}  advantage {row['advantage']:+.2f}  {scores}{cut}"]
        lines += printable(row["completion"]).split("\n")
    return "\n".join(f"    {line}" for line in lines)
