"""How clips are encoded anew."""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Literal, cast

import numpy as np
from av.codec import Codec
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

Encoder = Literal["libx264", "mpeg4"]

_MPEG4_TICKS = 60_000  # MPEG-4 Part 2 counts at most 65,535 a second; the usual rates divide this


def best_encoder() -> Encoder:
    """H.264 where this build of PyAV encodes it, or else MPEG-4 Part 2."""
    try:
        Codec("libx264", "w")
    except ValueError:
        return "mpeg4"
    return "libx264"


def add_encoder(file: Any, stream: VideoStream, frame: VideoFrame, name: Encoder, quality: int) -> Any:
    """Give `file` a stream that looks as `stream` does, of which `frame` is the first frame; return it."""
    source = stream.codec_context
    options = {"qp": "0"} if quality == 0 else {"crf": str(quality)}
    new = file.add_stream(
        name, rate=stream.average_rate or stream.guessed_rate, options=options if name == "libx264" else {}
    )
    context = new.codec_context
    context.width, context.height = frame.width, frame.height
    context.pix_fmt = _pixel_format(name, frame)
    context.time_base = stream.time_base
    if name == "mpeg4":
        context.qmin = context.qmax = max(1, round(quality / 51 * 31))
        if context.time_base.denominator > _MPEG4_TICKS:
            context.time_base = Fraction(1, _MPEG4_TICKS)
    if source.sample_aspect_ratio:
        context.sample_aspect_ratio = source.sample_aspect_ratio
    if frame.format.name.startswith("yuv"):
        for colour in ("color_primaries", "color_trc", "colorspace"):
            setattr(context, colour, getattr(source, colour))
    context.color_range = source.color_range if context.pix_fmt == frame.format.name else ColorRange.MPEG
    for item in cast("Iterable[Any]", frame.side_data):
        if item.type.name == "DISPLAYMATRIX":
            new.set_display_matrix(np.frombuffer(item, np.int32).tolist())
    return new


def fitted(frame: VideoFrame, stream: Any) -> VideoFrame:
    """The frame with pixels that the stream takes."""
    pixel_format = stream.codec_context.pix_fmt
    if pixel_format == frame.format.name:
        return frame
    # Said, as the range of the frame, where one is said, would be taken for that of both.
    return frame.reformat(format=pixel_format, dst_color_range=ColorRange.MPEG)


def _pixel_format(encoder: Encoder, frame: VideoFrame) -> str:
    """The frame's own where the encoder takes it; halved colour needs an even width and height in H.264."""
    name = frame.format.name
    if encoder == "mpeg4":
        return "yuv420p"
    is_whole = "444" in name or not name.startswith("yuv")
    is_even = frame.width % 2 == frame.height % 2 == 0
    known = [found.name for found in Codec(encoder, "w").video_formats or ()]
    if name in known and name.startswith("yuv") and (is_even or is_whole):
        return name
    return "yuv420p" if is_even and not is_whole else "yuv444p"
