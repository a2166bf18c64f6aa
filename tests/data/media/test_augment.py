import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.data.making import in_new_process
from vlmft.config.media import Augmentation
from vlmft.data.media import augment as module
from vlmft.data.media.augment import View, augmented, draw_view
from vlmft.data.media.coordinates import Box
from vlmft.errors import DataError

ALL = Augmentation(crop=0.5, flip=0.5, colour=0.4, jpeg=40)


def noise(height: int = 30, width: int = 40, frames: int | None = None) -> np.ndarray:
    shape = (height, width, 3) if frames is None else (frames, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_without_augmentation_the_picture_itself_comes_back():
    picture, pixels, frames = Image.fromarray(noise()), noise(), noise(frames=2)
    view = draw_view(None, 30, 40, 7)
    assert view == View.whole(30, 40) == View(30, 40, crop_height=30, crop_width=40, top=0, left=0, flipped=False)
    for item in (picture, pixels, frames):
        assert augmented(item, view, None, 7) is item
        assert augmented(item, view, Augmentation(), 7) is item


def test_augmentation_that_changes_nothing_draws_the_whole():
    assert draw_view(Augmentation(), 30, 40, 7) == View.whole(30, 40)


def test_views_depend_on_the_key_alone_in_every_process():
    views = [draw_view(ALL, 480, 640, key) for key in range(50)]
    assert views == [draw_view(ALL, 480, 640, key) for key in range(50)]
    assert len(set(views)) == 50
    code = """
import json
from vlmft.config.media import Augmentation
from vlmft.data.media.augment import draw_view
augment = Augmentation(crop=0.5, flip=0.5, colour=0.4, jpeg=40)
views = [draw_view(augment, 480, 640, key) for key in range(50)]
print(json.dumps([[v.crop_height, v.crop_width, v.top, v.left, v.flipped] for v in views]))
"""
    elsewhere = in_new_process(code, PYTHONHASHSEED="3")
    assert elsewhere == [[v.crop_height, v.crop_width, v.top, v.left, v.flipped] for v in views]
    # Recorded, so that another version of NumPy or of this code cannot draw others unnoticed.
    assert views[0] == View(480, 640, crop_height=242, crop_width=403, top=194, left=214, flipped=True)


def test_crops_keep_their_share_and_stay_inside():
    views = [draw_view(Augmentation(crop=0.6), 100, 50, key) for key in range(3000)]
    heights, widths = np.array([v.crop_height for v in views]), np.array([v.crop_width for v in views])
    assert (heights.min(), heights.max(), widths.min(), widths.max()) == (61, 100, 31, 50)
    # Shares are uniform: the mean of 0.6 to 1 is 0.8, and rounding up adds half a pixel.
    assert abs(heights.mean() - 80.5) < 0.7 and abs(widths.mean() - 40.5) < 0.35
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.06
    tops = np.array([v.top for v in views])
    assert tops.min() == 0 and (tops + heights).max() == 100
    assert abs((tops / np.maximum(100 - heights, 1)).mean() - 0.5) < 0.03
    assert not any(v.flipped for v in views)


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_flips_come_with_their_chance(chance):
    flipped = sum(draw_view(Augmentation(flip=chance), 10, 10, key).flipped for key in range(4000))
    assert abs(flipped / 4000 - chance) < 0.03 * (0 < chance < 1) + 1e-9


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (200, 1), (3, 7), (97, 31)])
def test_any_size_has_a_crop(size):
    height, width = size
    narrow = max(4, height / width, width / height)
    for key in range(300):
        view = draw_view(Augmentation(crop=0.01), height, width, key)
        assert 1 <= view.crop_height <= height - view.top and view.top >= 0
        assert 1 <= view.crop_width <= width - view.left and view.left >= 0
        # A family that takes the picture must take each crop of it.
        ratio = max(view.crop_height / view.crop_width, view.crop_width / view.crop_height)
        assert ratio <= narrow * (1 + 1e-9)


def test_no_crop_cuts_a_box_or_loses_a_point():
    rng = np.random.default_rng(1)
    cut = 0
    for key in range(2000):
        height, width = rng.integers(2, 60, 2).tolist()
        keep = []
        for _ in range(rng.integers(1, 4)):
            (left, right), (top, bottom) = np.sort(rng.uniform(0, width, 2)), np.sort(rng.uniform(0, height, 2))
            keep.append(Box(left, top, right, bottom))
        point = Box(*(rng.uniform(0, [width, height]).tolist() * 2))
        view = draw_view(Augmentation(crop=0.05), height, width, key, [*keep, point])
        for box in (*keep, point):
            assert view.left <= box.left and box.right <= view.left + view.crop_width
            assert view.top <= box.top and box.bottom <= view.top + view.crop_height
        # The very pixel of a point is seen.
        assert int(point.left) < view.left + view.crop_width and int(point.top) < view.top + view.crop_height
        cut += (view.crop_height, view.crop_width) != (height, width)
    assert cut > 1000


def test_a_kept_box_may_be_written_as_a_share():
    box = Box(250, 0, 750, 1000, form="thousand")
    for key in range(100):
        view = draw_view(Augmentation(crop=0.1), 40, 80, key, [box])
        assert view.left <= 20 and view.left + view.crop_width >= 60 and view.crop_height == 40


def test_pixels_of_crop_and_flip():
    pixels = noise()
    view = View(30, 40, crop_height=10, crop_width=20, top=5, left=7, flipped=True)
    expected = pixels[5:15, 7:27][:, ::-1]
    augment = Augmentation(crop=0.1, flip=1)
    assert np.array_equal(augmented(pixels, view, augment, 0), expected)
    assert np.array_equal(np.asarray(augmented(Image.fromarray(pixels), view, augment, 0)), expected)
    frames = np.stack([pixels, 255 - pixels])
    found = augmented(frames, view, augment, 0)
    assert np.array_equal(found, np.stack([expected, 255 - expected]))
    assert found.flags.c_contiguous and found.dtype == np.uint8


@pytest.mark.parametrize("augment", [ALL, Augmentation(colour=1), Augmentation(jpeg=10)])
def test_picture_array_and_frames_are_changed_alike(augment):
    pixels = noise()
    for key in range(10):
        view = draw_view(augment, 30, 40, key)
        picture = np.asarray(augmented(Image.fromarray(pixels), view, augment, key))
        assert picture.shape == (view.crop_height, view.crop_width, 3)
        assert np.array_equal(augmented(pixels, view, augment, key), picture)
        assert np.array_equal(augmented(np.stack([pixels] * 3), view, augment, key), np.stack([picture] * 3))
        assert not np.array_equal(picture, np.asarray(augmented(pixels, view, None, key)))
    assert np.array_equal(pixels, noise())  # what came in is left as it was


def test_brightness_stays_in_its_range():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    levels = [
        augmented(grey, View.whole(4, 4), Augmentation(colour=0.5), key).getpixel((0, 0))[0] for key in range(300)
    ]
    # Of an even grey only brightness moves: to 0.5 to 1.5 times 100.
    assert 50 <= min(levels) < 53 and 147 < max(levels) <= 150
    assert abs(np.mean(levels) - 100) < 5


def test_colours_move_as_pillow_moves_them():
    picture = Image.fromarray(noise())
    factors = set()
    for key in range(20):
        look = module._Look(Augmentation(colour=0.5), key)
        factors |= {look.brightness, look.contrast, look.saturation}
        expected = ImageEnhance.Brightness(picture).enhance(look.brightness)
        expected = ImageEnhance.Contrast(expected).enhance(look.contrast)
        expected = ImageEnhance.Color(expected).enhance(look.saturation)
        found = augmented(picture, View.whole(30, 40), Augmentation(colour=0.5), key)
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert len(factors) == 60 and 0.5 <= min(factors) < 0.6 and 1.4 < max(factors) <= 1.5


def test_the_lowest_quality_bounds_the_loss():
    smooth = Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], (30, 1, 3)))

    def loss(quality: int, key: int) -> float:
        found = augmented(smooth, View.whole(30, 40), Augmentation(jpeg=quality), key)
        return float(np.abs(np.asarray(found).astype(int) - np.asarray(smooth)).mean())

    high, low = [loss(95, key) for key in range(5)], [loss(1, key) for key in range(60)]
    assert len(set(high)) == 1 and high[0] < 1
    assert len(set(low)) > 20 and min(low) < 1 and max(low) > 5


def test_geometry_and_look_are_drawn_apart():
    # The same key must not tie a strong crop to a dark picture.
    brightness, heights = [], []
    grey = np.full((64, 64, 3), 100, np.uint8)
    for key in range(400):
        augment = Augmentation(crop=0.5, colour=0.5)
        view = draw_view(augment, 64, 64, key)
        heights.append(view.crop_height)
        brightness.append(int(augmented(grey, view, augment, key)[0, 0, 0]))
    assert abs(np.corrcoef(heights, brightness)[0, 1]) < 0.15


def test_another_size_than_the_header_s_is_refused():
    with pytest.raises(
        DataError, match=r"it is decoded as 40 x 30 pixels, but its header says 41 x 30; write the file"
    ):
        augmented(noise(), View.whole(30, 41), None, 0)
    with pytest.raises(DataError, match="decoded as 40 x 30 pixels, but its header says 40 x 31"):
        augmented(noise(frames=2), View.whole(31, 40), None, 0)


def test_what_jpeg_cannot_hold_is_refused():
    with pytest.raises(DataError, match=r"its 65501 x 1 pixels cannot be compressed as JPEG \(at most 65500 a side\)"):
        augmented(np.zeros((1, 65501, 3), np.uint8), View.whole(1, 65501), Augmentation(jpeg=50), 0)
    assert augmented(np.zeros((1, 65500, 3), np.uint8), View.whole(1, 65500), Augmentation(jpeg=50), 0).max() == 0
