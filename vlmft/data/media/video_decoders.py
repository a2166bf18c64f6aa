"""decord and TorchCodec, held to the same frames and pixels as PyAV.

Both seek by themselves, and on some files land on other frames, or convert colours otherwise, without an error. So
each is used only on what it was found right on (tests/data/media/test_video_decoders.py), and its times are compared.
"""

import io
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, Literal

import numpy as np

from vlmft.data.media.video_decode import NUM_THREADS, decode
from vlmft.data.media.video_index import VideoIndex
from vlmft.errors import ConfigError, DataError
from vlmft.types import Video

Other = Literal["decord", "torchcodec"]

_CONTAINERS = ("mov", "matroska", "avi")
_CODECS = {
    "decord": ("h264", "vp8", "vp9", "mjpeg"),
    "torchcodec": ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg"),
}
# 8 bits without transparency. With more bits, each version of FFmpeg rounds in its own way.
_SUBSAMPLED = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p")
_FULL = ("yuv444p", "yuvj444p", "gray", "gbrp")
_USE_PYAV = "set model.video.decoder to pyav"


def read_others(video: Video, index: VideoIndex, chosen: Sequence[int], decoder: Other) -> "np.ndarray[Any, Any]":
    """Read as `read_frames` does, by another decoder, and check the file's stretches by PyAV.

    Raises:
        DataError: damage, or a file on which the decoder is not known to be right.
        ConfigError: the decoder cannot be used on this machine.
    """
    read = {"decord": _by_decord, "torchcodec": _by_torchcodec}[decoder]
    reason = _unproven(index, decoder)
    if reason:
        raise DataError(f"{index.name} has {reason}, with which {decoder} is not known to be right; {_USE_PYAV}")
    for _ in decode(video, index, chosen, hasty=True):
        pass
    number, frames, seconds = read(video, index, chosen)
    if number != len(index.pts):
        raise DataError(
            f"{index.name} has {len(index.pts)} frames that can be decoded, and {decoder} finds {number}; {_USE_PYAV}"
        )
    times = index.timestamps
    tolerance = np.diff(times).min(initial=1.0) / 2
    off = np.flatnonzero(~(np.abs(seconds - times[list(chosen)]) < tolerance))
    if off.size:
        raise DataError(
            f"{index.name}: {decoder} gives the frame at {seconds[off[0]]:.3f} s for "
            f"{index.place(chosen[off[0]])}; {_USE_PYAV}"
        )
    if frames.shape != (len(chosen), *index.size, 3):
        given, wanted = (f"{width} x {height}" for height, width in (frames.shape[1:3], index.size))
        raise DataError(f"{index.name}: {decoder} gives {given} pixels for {wanted}; {_USE_PYAV}")
    return frames


def _unproven(index: VideoIndex, decoder: Other) -> str:
    """What of the file the decoder was not found right with; empty where nothing."""
    if index.container not in _CONTAINERS:
        return f"the container {index.container}"
    if index.codec not in _CODECS[decoder]:
        return f"the codec {index.codec}"
    if index.pixel_format not in _SUBSAMPLED + _FULL:
        return f"the pixel format {index.pixel_format}"
    if index.pixel_format in _SUBSAMPLED and any(side % 2 for side in index.stored):
        return f"an odd side ({index.stored[1]} x {index.stored[0]})"
    rows, columns, swapped = index.turn
    if (rows * columns == -1) != swapped:
        return "a mirrored picture"
    if decoder == "decord" and not index.all_clean:
        return "keyframes from which not all later frames decode"
    if decoder == "decord" and (rows, columns, swapped) != (1, 1, False) and index.container != "mov":
        return f"a rotation in {index.container}"
    return ""


def _by_decord(
    video: Video, index: VideoIndex, chosen: Sequence[int]
) -> tuple[int, "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    try:
        import decord  # type: ignore[import-untyped]
    except (ImportError, OSError) as error:
        raise ConfigError(f"decoder=decord cannot be used here: {error}; {_USE_PYAV}") from error
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(
            str(video.path) if video.data is None else io.BytesIO(video.data), num_threads=NUM_THREADS
        )
        frames = reader.get_batch(list(chosen)).asnumpy()
        starts = reader.get_frame_timestamp([0, *chosen])[:, 0].astype(np.float64)
        return len(reader), frames, starts[1:] - starts[0]
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
        raise _refused(index, "decord", error) from error


def _by_torchcodec(
    video: Video, index: VideoIndex, chosen: Sequence[int]
) -> tuple[int, "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    make = _torchcodec()
    try:
        reader = make(
            str(video.path) if video.data is None else video.data,
            stream_index=index.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=NUM_THREADS,
            seek_mode="exact",
        )
        batch = reader.get_frames_at(list(chosen))
        return len(reader), batch.data.numpy(), batch.pts_seconds.numpy() - float(index.pts[0] * index.time_base)
    except (RuntimeError, ValueError, IndexError) as error:
        raise _refused(index, "torchcodec", error) from error


@cache
def _torchcodec() -> Any:
    """TorchCodec's reader, once it has decoded something: it may import where FFmpeg's libraries are missing."""
    try:
        reader = import_module("torchcodec.decoders").VideoDecoder
        reader(_tiny_video())[0]
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"decoder=torchcodec cannot decode here: {_line(error)}; install torchcodec (pip install 'vlmft[video]') "
            f"and FFmpeg's shared libraries (Debian and Ubuntu: apt-get install ffmpeg), or {_USE_PYAV}"
        ) from error
    return reader


def _tiny_video() -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode())
    return file.getvalue()


def _refused(index: VideoIndex, decoder: Other, error: Exception) -> DataError:
    return DataError(f"{index.name} cannot be read by {decoder}: {_line(error)}; {_USE_PYAV}")


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
