"""What `shown` puts together again is what went into the patches."""

import numpy as np
import pytest

from tests.support import noise, tiny, tiny_processor
from vlmft.config.media import PixelBudget
from vlmft.types import Clip


@pytest.mark.parametrize("size", [(28, 28), (56, 84), (112, 28)])
def test_a_picture_of_the_towers_own_size_is_itself(size: tuple[int, int]) -> None:
    family, processor, picture = tiny(), tiny_processor(), noise(*size)
    shown = family.shown(processor, family.encode_image(processor, np.array(picture), PixelBudget()))
    assert shown.dtype == np.uint8 and shown.shape == (1, *size, 3)
    assert (shown[0] == np.array(picture)).all()


def test_a_resized_picture_has_the_size_that_the_tower_sees() -> None:
    family, processor = tiny(), tiny_processor()
    shown = family.shown(processor, family.encode_image(processor, np.array(noise(901, 700)), PixelBudget()))
    assert shown.shape == (1, *family.seen_image(processor, (901, 700), PixelBudget()), 3)


@pytest.mark.parametrize(("count", "seen"), [(1, [0, 0]), (2, [0, 1]), (5, [0, 1, 2, 3, 4, 4])])
def test_a_videos_frames_come_in_order_and_the_last_fills_its_slice(count: int, seen: list[int]) -> None:
    family, processor = tiny(), tiny_processor()
    frames = np.stack([np.array(noise(56, 84, seed)) for seed in range(count)])
    media = family.encode_video(processor, frames, Clip(56, 84, [i / 2 for i in range(count)]), PixelBudget())
    assert (family.shown(processor, media) == frames[seen]).all()
