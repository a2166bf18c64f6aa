"""Videos: the times of their frames without decoding, which frames to take, and their pixels as upright 8-bit RGB."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from vlmft.config.media import Decoder, VideoRule
from vlmft.data.media.image import Pixels, image_size, open_pixels
from vlmft.data.media.video_decode import ToRgb, decode
from vlmft.data.media.video_decoders import read_others
from vlmft.data.media.video_index import index_video
from vlmft.errors import ConfigError, DataError
from vlmft.types import Video

Indices: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

MAX_BYTES = 8 * 2**30
"""More pixels than this are not read from one video."""

LIST_FPS = 2.0
"""What a list of frames is taken for where nobody says: Qwen's processors take videos, and lists, at this rate."""

# Matroska and FLV round to whole milliseconds: a frame may start that much after it should.
_ROUNDING_S = 1e-3


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video's container, or its list of frames, says."""

    height: int
    """Upright, as `read_frames` gives it."""
    width: int
    timestamps: "np.ndarray[Any, np.dtype[np.float64]]"
    """[N], ascending: seconds from the first frame, for each frame that can be decoded."""


def probe_video(video: Video) -> VideoInfo:
    """Read the packets of a file, or the headers of its frames; of a file, the first frame alone is decoded.

    So the number of frames and their times are exact with variable frame rate, B-frames and edit lists, in containers
    without a count as well. 20 s of 720p take about 50 ms.

    Raises:
        DataError: no video, cut off, too large, frames of several sizes, or without the times of its frames.
    """
    if not video.frames:
        index = index_video(video)
        return VideoInfo(*index.size, index.timestamps)
    first, *others = video.frames
    size = image_size(first)
    for path in others:
        _refuse_other_size(first, size, path, image_size(path))
    return VideoInfo(*size, np.arange(len(video.frames)) / (video.fps or LIST_FPS))


def choose_frames(info: VideoInfo, rule: VideoRule) -> Indices:
    """Return the numbers of the frames that `rule` takes, ascending; no frame twice.

    `num_frames` takes N of all by their numbers, `linspace(0, total - 1, N)` rounded, first and last included, as
    Qwen2.5-VL's and Qwen3-VL's own samplers do; every frame where there are fewer. `fps` takes the frame that is shown
    at each multiple of 1 / fps seconds, by the frames' true times; where that gives fewer than `min_frames` or more
    than `max_frames`, so many by `num_frames`'s formula.

    Raises:
        ConfigError: the rule says neither.
    """
    total = len(info.timestamps)
    if rule.num_frames is not None:
        return _spread(total, rule.num_frames)
    if rule.fps is None:
        raise ConfigError("nothing says which frames of a video to take; set model.video.num_frames or model.video.fps")
    # How many targets lie before each frame: a frame is shown at one where the next frame has more before it.
    before = np.maximum(np.ceil((info.timestamps - _ROUNDING_S) * rule.fps), 0)
    end = np.floor((info.timestamps[-1] + _ROUNDING_S) * rule.fps) + 1
    chosen = np.flatnonzero(np.diff(before, append=end) > 0)
    at_least, at_most = rule.min_frames or 1, rule.max_frames or total
    if at_least <= chosen.size <= at_most:
        return chosen
    return _spread(total, at_least if chosen.size < at_least else at_most)


def read_frames(video: Video, indices: Indices, decoder: Decoder = "pyav") -> Pixels:
    """Decode the frames of the ascending numbers `indices` to upright RGB, [T, H, W, 3].

    The pixels are the same with each decoder. No frame is replaced or repeated for one that cannot be decoded; what a
    decoder can tell of damage stands at `video_decode.decode`. decord and TorchCodec conceal damage, so PyAV reads the
    same stretches as well, without finishing their pixels: that takes about two thirds of decoding itself. A list of
    frames is read by Pillow whatever the decoder.

    Raises:
        DataError: damage, more than `MAX_BYTES`, or a file on which `decoder` is not known to be right.
        ConfigError: `decoder` cannot be used on this machine.
    """
    chosen = [int(index) for index in indices]
    if video.frames:
        return _from_pictures(video, chosen)
    index = index_video(video)
    if chosen[-1] >= len(index.pts):
        raise DataError(
            f"{video.path} has {len(index.pts)} frames and number {chosen[-1]} is asked for; "
            "leave files alone while a run reads them"
        )
    _refuse_excess(video, len(chosen), index.size)
    if decoder != "pyav":
        return read_others(video, index, chosen, decoder)
    out = np.empty((len(chosen), *index.size, 3), np.uint8)
    to_rgb = ToRgb(index)
    for row, frame in enumerate(decode(video, index, chosen)):
        out[row] = to_rgb(frame)
    return out


def _spread(total: int, number: int) -> Indices:
    if number >= total:
        return np.arange(total)
    return np.linspace(0, total - 1, number).round().astype(np.int64)


def _from_pictures(video: Video, chosen: Sequence[int]) -> Pixels:
    first = video.frames[chosen[0]]
    size = image_size(first)
    _refuse_excess(video, len(chosen), size)
    out = np.empty((len(chosen), *size, 3), np.uint8)
    for row, number in enumerate(chosen):
        picture = open_pixels(video.frames[number])
        _refuse_other_size(first, size, video.frames[number], picture.shape[:2])
        out[row] = picture
    return out


def _refuse_other_size(first: Any, size: tuple[int, ...], path: Any, other: tuple[int, ...]) -> None:
    if size != other:
        raise DataError(
            f"{first} has {size[1]} x {size[0]} pixels and {path} has {other[1]} x {other[0]}; "
            "give all frames of a video one size"
        )


def _refuse_excess(video: Video, number: int, size: tuple[int, int]) -> None:
    height, width = size
    if number * height * width * 3 > MAX_BYTES:
        raise DataError(
            f"{video.path}: {number} frames of {width} x {height} are more than {MAX_BYTES // 2**30} GiB of pixels; "
            "take fewer (model.video.num_frames, fps, max_frames), or make the video smaller"
        )
