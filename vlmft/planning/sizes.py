"""How large samples are, told by their headers, and samples of these sizes with empty pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vlmft.data.problems import SampleError
from vlmft.encoding.encoder import Counted, Encoded, Encoder
from vlmft.encoding.media import PlannedMedium
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.data.run_data import RunData
    from vlmft.models.spec import Media


@dataclass(frozen=True, slots=True)
class Size:
    """A sample of the training stream."""

    position: int
    tokens: int
    vision_tokens: int
    supervised: int
    kind: int
    """Samples of different kinds share no micro-batch (`ModelSpec.batch_kind`)."""

    @property
    def figures(self) -> tuple[int, int, int, int]:
        """What its operations follow from (`FlopRates.of`)."""
        return self.tokens, self.tokens**2, self.vision_tokens, self.supervised


def sizes_of(data: "RunData", encoder: Encoder, at_most: int) -> list[Size]:
    """The sizes of the stream's first samples, at most so many; those that cannot be encoded are passed over.

    Raises:
        DataError: there is none that can.
    """
    found: list[Size] = []
    problems: list[str] = []
    for position in range(min(at_most, len(data.mixture))):
        try:
            counted = count(data, encoder, position)
        except (DataError, SampleError) as error:
            problems.append(str(error))
            continue
        kind = encoder.family.batch_kind(counted.media)
        found.append(Size(position, counted.num_tokens, counted.num_vision_tokens, counted.num_supervised, kind))
    if not found:
        raise DataError(*problems[:5], "no sample can be encoded, so that there is nothing to plan with")
    return found


def showing_all(sizes: Sequence[Size]) -> list[Size]:
    """The first of these samples that has vision tokens and supervised ones; where none has, the first of each."""
    seen = [size for size in sizes if size.vision_tokens]
    learnt = [size for size in sizes if size.supervised]
    both = [size for size in seen if size.supervised]
    return both[:1] or [*seen[:1], *learnt[:1]] or [sizes[0]]


def count(data: "RunData", encoder: Encoder, position: int) -> Counted:
    """A sample of the stream before any of its media is decoded."""
    ref = data.mixture.at(position)
    return encoder.count(data.mixture.read(ref), ref.key)


def with_empty_media(encoder: Encoder, counted: Counted) -> Encoded:
    """The sample as the model takes it, its pictures and frames black: nothing is decoded."""
    import torch

    return Encoded(
        id=counted.sample.id,
        input_ids=torch.tensor(counted.ids),
        supervised=torch.tensor(counted.supervised),
        media=[_empty(encoder, item) for item in counted.media],
        num_vision_tokens=counted.num_vision_tokens,
    )


def _empty(encoder: Encoder, planned: PlannedMedium) -> "Media":
    family, processor = encoder.family, encoder.processor
    height, width = planned.view.crop_height, planned.view.crop_width
    if planned.clip is None:
        pixels = np.zeros((height, width, 3), np.uint8)
        return family.encode_image(processor, pixels, planned.rules.image, planned.alone)
    frames = np.zeros((planned.clip.num_frames, height, width, 3), np.uint8)
    return family.encode_video(processor, frames, planned.clip, planned.rules.video)


def steps_of(sizes: Sequence[Size], share: int) -> list[list[Size]]:
    """The samples of each step of one rank, which has `share` of them; what is left over makes none."""
    if len(sizes) <= share:
        return [list(sizes)]
    return [list(sizes[start : start + share]) for start in range(0, len(sizes) - share + 1, share)]
