"""What a video file's container says: which frames it lists, when each is shown, where decoding may start."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vlmft.data.media.image import MAX_PIXELS
from vlmft.data.media.video_damage import NalUnits, refuse_cut_file
from vlmft.errors import DataError
from vlmft.types import Video

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

CONVERT = "convert it, for example: ffmpeg -i OLD -c:v libx264 -crf 18 NEW.mp4"
REPLACE = "replace the file or remove its samples"

STRICT = {"err_detect": "crccheck+bitstream+buffer+explode", "max_pixels": str(MAX_PIXELS)}
"""What every decoder is told: to stop at an error, and to make no larger picture."""

# What is opened. A playlist (HLS, DASH, concat) would open other files, or addresses.
_CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "gif", "ogg", "asf")
_NAMES = "MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, GIF, Ogg, ASF"
_OPEN = {
    "format_whitelist": ",".join(_CONTAINERS),
    "protocol_whitelist": "file",
    "err_detect": "crccheck+explode",
    "max_pixels": str(MAX_PIXELS),
}

# Keyframes of these decode on their own wherever the container says so; of H.264 and H.265 the packet itself is asked.
_CLEAN_KEYFRAMES = ("vp8", "vp9", "av1", "mjpeg")
_SEEKABLE = ("mov", "matroska")


@dataclass(frozen=True, slots=True)
class Keyframe:
    """A place to start decoding from: the first frame that comes out, and its packet as the container gives it."""

    frame: int
    pts: int
    size: int


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """What one pass over a file's packets, and its first frame, say."""

    name: str
    container: str
    codec: str
    pixel_format: str
    stored: tuple[int, int]
    """Height and width before turning."""
    turn: tuple[int, int, bool]
    """Steps along rows and columns, and whether they change places before: what turns a frame upright."""
    pts: "np.ndarray[Any, np.dtype[np.int64]]"
    """[N], ascending, in `time_base`: when each frame is shown."""
    time_base: Fraction
    stream: int
    keyframes: tuple[Keyframe, ...]
    all_clean: bool
    """Every keyframe is one that all later frames decode from."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an upright frame."""
        height, width = self.stored
        return (width, height) if self.turn[2] else (height, width)

    @property
    def timestamps(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """[N], seconds from the first frame."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    def place(self, frame: int) -> str:
        """The words for a frame in a message."""
        return f"frame {frame} ({self.timestamps[frame]:.2f} s)"


def index_video(video: Video) -> VideoIndex:
    """Read every packet of a file, and decode the first frame (in PyAV only frames carry the rotation).

    Raises:
        DataError: no video, cut off, too large, or without the times at which its frames are shown.
    """
    import av

    name = str(video.path)
    _check_file(video)
    with opened(video) as container:
        stream = _stream(name, container)
        listing = _Listing(name, stream)
        first = None
        decoder = stream.codec_context
        decoder.thread_count, decoder.options = 1, STRICT
        try:
            for packet in container.demux(stream):
                if packet.size and not listing.add(packet):
                    continue
                if first is None:
                    first = next(iter(decoder.decode(packet)), None)
        except av.FFmpegError as error:
            where = "" if first else " at its first frame"
            raise DataError(f"{name} is damaged{where}: {said(error)}; {REPLACE}") from error
        if first is None or not listing.shown:
            raise DataError(f"{name} has no frame that can be decoded; {REPLACE}")
        kind = container.format.name.partition(",")[0]
        if kind == "mov" and listing.num_packets < len(stream.index_entries):
            raise DataError(
                f"{name} is cut off: of {len(stream.index_entries)} frames it holds {listing.num_packets}; {REPLACE}"
            )
        if kind == "avi" and listing.codec in ("h264", "hevc") and stream.codec_context.has_b_frames:
            raise DataError(f"{name} does not say when its frames are shown (B-frames in AVI); {CONVERT}")
        pts = listing.ascending()
        return VideoIndex(
            name=name,
            container=kind,
            codec=listing.codec,
            pixel_format=first.format.name,
            stored=(first.height, first.width),
            turn=_turn(name, first),
            pts=pts,
            time_base=stream.time_base or Fraction(1),
            stream=stream.index,
            keyframes=listing.clean_keyframes(pts) if kind in _SEEKABLE else (),
            all_clean=listing.all_clean,
        )


class _Listing:
    """Gathers what the packets of a stream say."""

    def __init__(self, name: str, stream: "VideoStream") -> None:
        self.name = name
        self.codec = stream.codec_context.codec.canonical_name
        self.nal_units = NalUnits(self.codec, stream.codec_context.extradata)
        self.shown: list[int] = []
        self.num_packets = 0
        self.all_clean = True
        self._keyframes: list[Keyframe] = []
        self._start: int | None = None

    def add(self, packet: "Packet[VideoStream]") -> bool:
        """Take in one packet; return whether it can be decoded."""
        self.num_packets += 1
        if packet.pts is None:
            raise DataError(f"{self.name} does not say when its frames are shown; {CONVERT}")
        if packet.is_keyframe:
            clean = self.codec in _CLEAN_KEYFRAMES or self.nal_units.is_random_access(bytes(packet))
            self.all_clean &= clean
            if clean:
                self._keyframes.append(Keyframe(-1, packet.pts, packet.size))
            if self._start is None:
                self._start = packet.pts
        if self._start is None or packet.pts < self._start:
            return False  # it refers to what came before the first keyframe
        # An edit list leaves frames out; VP8 sends pictures that are only referred to as packets of their own.
        if not packet.is_discard and not (self.codec == "vp8" and not memoryview(packet)[0] & 0x10):
            self.shown.append(packet.pts)
        return True

    def ascending(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """The times of the frames in order. Raises `DataError` where two frames have one."""
        pts = np.sort(np.array(self.shown, np.int64))
        twice = np.flatnonzero(np.diff(pts) == 0)
        if twice.size:
            raise DataError(f"{self.name} shows frames {twice[0]} and {twice[0] + 1} at one time; {CONVERT}")
        return pts

    def clean_keyframes(self, pts: "np.ndarray[Any, np.dtype[np.int64]]") -> tuple[Keyframe, ...]:
        """The keyframes that are shown, with the numbers of their frames."""
        numbers = {int(time): number for number, time in enumerate(pts)}
        return tuple(replace(key, frame=numbers[key.pts]) for key in self._keyframes if key.pts in numbers)


def _check_file(video: Video) -> None:
    try:
        with video.path.open("rb") if video.data is None else io.BytesIO(video.data) as file:
            if not file.read(1):
                raise DataError(f"{video.path} is empty; {REPLACE}")
            refuse_cut_file(str(video.path), file)
    except FileNotFoundError:
        raise DataError(f"{video.path} does not exist; correct the path, or remove its samples") from None
    except OSError as error:
        raise DataError(f"{video.path} cannot be read: {error.strerror}; {REPLACE}") from error


@contextmanager
def opened(video: Video) -> Iterator["InputContainer"]:
    """The file, or its bytes, opened by FFmpeg. Raises `DataError` where it is in no container that is taken."""
    import av

    try:
        file = str(video.path) if video.data is None else io.BytesIO(video.data)
        container = av.open(file, "r", options=dict(_OPEN), metadata_errors="replace")
    except av.FFmpegError as error:
        with video.path.open("rb") if video.data is None else io.BytesIO(video.data) as start:
            head = start.read(16)
        raise DataError(
            f"{video.path} is no video in a known container ({_NAMES}), or its header is damaged: it begins with "
            f"{head!r} ({said(error)}); {REPLACE}"
        ) from error
    with container:
        yield container


def _stream(name: str, container: "InputContainer") -> "VideoStream":
    """The video stream that FFmpeg takes for the main one, as the other decoders do."""
    from av.stream import Disposition

    stream = cast("VideoStream | None", container.streams.best("video"))
    if stream is None or stream.disposition & Disposition.attached_pic:  # a picture on an album's cover
        kinds = ", ".join(sorted({stream.type for stream in container.streams}))
        raise DataError(f"{name} has no video in it{f', only {kinds}' if kinds else ''}; {REPLACE}")
    if stream.codec_context is None:
        raise DataError(f"{name} is in a format that FFmpeg here cannot decode; {CONVERT}")
    width, height = stream.codec_context.width, stream.codec_context.height
    if not width or not height:  # FFmpeg gives none where there were more than max_pixels
        raise DataError(f"{name} has no size, or one above {MAX_PIXELS} pixels; {REPLACE}")
    if width * height > MAX_PIXELS:
        raise DataError(f"{name} claims {width} x {height} pixels, more than {MAX_PIXELS}; make it smaller")
    return stream


def _turn(name: str, frame: "VideoFrame") -> tuple[int, int, bool]:
    for item in cast("Iterable[Any]", frame.side_data):
        if item.type.name == "DISPLAYMATRIX":
            # dest_x = a x + c y, dest_y = b x + d y, y downwards (FFmpeg's libavutil/display.h)
            a, b, _, c, d = np.sign(np.frombuffer(item, np.int32)[:5]).tolist()
            if a and d and not b and not c:
                return d, a, False
            if b and c and not a and not d:
                return b, c, True
            raise DataError(f"{name} is turned by no quarter of a circle; {CONVERT}")
    return 1, 1, False


def said(error: Exception) -> str:
    """FFmpeg's words, without the number and the file's name around them."""
    return str(getattr(error, "strerror", None) or error).partition(":")[0]
