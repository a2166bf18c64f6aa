"""One long video into clips: copied at keyframes, or encoded anew at exact times. No sound is kept.

The frames are those that training reads: what an edit list hides, or nothing can decode, is none. Times are seconds
from the first of them, as fractions: a frame that stands exactly on a cut begins the next clip.
"""

import bisect
import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
from av.packet import Packet
from av.video.frame import PictureType
from av.video.stream import VideoStream

from vlmft.annotation.clip_encoder import Encoder, add_encoder, fitted
from vlmft.data.media.video_damage import NalUnits
from vlmft.data.media.video_decode import decode
from vlmft.data.media.video_index import VideoIndex, index_video, opened
from vlmft.errors import DataError, StorageError
from vlmft.types import Video

Rest = Literal["join", "drop", "keep"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_NAL_TYPE = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)


@dataclass(frozen=True)
class Rule:
    """How to cut."""

    seconds: float
    cut: Literal["keyframe", "exact"]
    rest: Rest
    min_seconds: float
    quality: int
    """CRF of libx264; 0 is lossless."""
    encoder: Encoder
    """For `exact`."""


@dataclass(frozen=True)
class Clip:
    """A clip that has been written."""

    name: str
    start_s: float
    """Of its first frame."""
    end_s: float
    """Of its last frame's end."""
    frames: int


@dataclass(frozen=True)
class Result:
    """What became of one video."""

    clips: list[Clip] = field(default_factory=list)
    rest: Literal["joined", "dropped", "kept", ""] = ""
    """What was done with a last piece shorter than `min_seconds`; empty where there was none."""
    dropped_frames: int = 0


def cut_video(source: Path, folder: Path, rule: Rule) -> Result:
    """Cut `source` into `<folder>/<stem>-0001.mp4`, ...

    Raises:
        DataError: it cannot be read, is damaged (copying looks at the container alone), or, to be copied, does not fit
            into MP4.
        StorageError: the device is full, or may not be written.
    """
    video = Video(source)
    with _naming(source):
        index = index_video(video)
        outline = _outline(video, index)
        starts, end, rest = _plan(outline, rule)
        clips = _Clips(folder, source.stem, outline, starts)
        with opened(video) as container:
            stream: Any = container.streams[index.stream]
            if rule.cut == "exact":
                dropped = _encode(video, index, stream, clips, end, rule)
            else:
                dropped = _copy(index, stream, clips, end)
        clips.close()
    return Result(clips.done, rest, dropped)


@contextmanager
def _naming(source: Path) -> Iterator[None]:
    """Turn what the libraries raise into an error that names the file."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        said = error.strerror or str(error)
        if error.errno in _FULL:
            raise StorageError(f"{source}: its clips cannot be written: {said}; the same command goes on") from error
        raise DataError(f"{source}: cannot be cut: {said}; replace the file, or leave it out") from error


@dataclass(frozen=True)
class _Outline:
    """When a video starts and ends, and where it may be cut."""

    time_base: Fraction
    """Seconds of a tick."""
    start: int
    """The first frame's time in ticks."""
    end: int
    """The last frame's end in ticks."""
    frame_ticks: int
    """A frame's length, where a packet does not say."""
    cuts: list[Fraction]
    """Where it can be cut without decoding: keyframes that nothing refers across."""

    def seconds(self, ticks: int) -> Fraction:
        return (ticks - self.start) * self.time_base


def _outline(video: Video, index: VideoIndex) -> _Outline:
    shown, time_base = set(index.pts.tolist()), index.time_base
    with opened(video) as container:
        stream: Any = container.streams[index.stream]
        nal_units = NalUnits(index.codec, stream.codec_context.extradata)
        frame_ticks = max(1, round(1 / (stream.average_rate or 25) / time_base))
        packets = [
            (packet.pts, packet.duration or frame_ticks, _is_fresh(packet, index.codec, nal_units))
            for packet in container.demux(stream)
            if packet.size and packet.pts in shown
        ]
    start, earliest_later = min(shown), max(shown)
    cuts: list[Fraction] = []
    for pts, _, is_fresh in reversed(packets):
        earliest_later = min(earliest_later, pts)
        if is_fresh and pts == earliest_later:  # in an open group, later packets are shown before their keyframe
            cuts.append((pts - start) * time_base)
    return _Outline(time_base, start, max(pts + length for pts, length, _ in packets), frame_ticks, cuts[::-1])


def _is_fresh(packet: "Packet[VideoStream]", codec: str, nal_units: NalUnits) -> bool:
    """Whether a packet, and all that follow it, decode without what comes before. Containers say that of more."""
    if not packet.is_keyframe or codec not in ("h264", "hevc"):
        return packet.is_keyframe
    data = bytes(packet)
    if nal_units.split(data) is not None:
        return nal_units.is_random_access(data)
    types = [found[1][0] for found in _NAL_TYPE.finditer(data)]  # MPEG-TS and AVI: pieces behind start codes
    return any(16 <= kind >> 1 & 63 <= 21 if codec == "hevc" else kind & 31 == 5 for kind in types)


def _plan(outline: _Outline, rule: Rule) -> tuple[list[Fraction], Fraction | None, Any]:
    """Where the clips start, where to stop (None: at the end), and what became of a short last piece."""
    length, seconds = outline.seconds(outline.end), Fraction(rule.seconds).limit_denominator(1_000_000)
    if rule.cut == "exact":
        starts = [number * seconds for number in range(max(1, -(-length // seconds)))]
    else:
        starts = [Fraction(0)]
        for cut in outline.cuts:
            if cut >= starts[-1] + seconds:
                starts.append(cut)
    if length - starts[-1] >= Fraction(rule.min_seconds).limit_denominator(1_000_000):
        return starts, None, ""
    if rule.rest == "drop":
        return starts[:-1], starts[-1], "dropped"
    if rule.rest == "join" and len(starts) > 1:
        return starts[:-1], None, "joined"
    return starts, None, "kept"


class _Clips:
    """The clips of one video, one open at a time."""

    def __init__(self, folder: Path, stem: str, outline: _Outline, starts: list[Fraction]) -> None:
        self.folder, self.stem, self.outline, self.starts = folder, stem, outline, starts
        self.done: list[Clip] = []
        self.piece = -1
        self.file: Any = None
        self.stream: Any = None
        self.first = 0  # ticks of the open clip's first frame
        self._frames = 0
        self._end = 0

    def piece_of(self, ticks: int) -> int:
        """The piece in which a frame lies. Pieces may have no frame, and get no clip then."""
        return max(0, bisect.bisect_right(self.starts, self.outline.seconds(ticks)) - 1)

    def open(self, piece: int, first: int) -> Any:
        """Begin the next clip; return its file, which has no stream yet."""
        self.close()
        self.piece, self.first, self._frames, self._end = piece, first, 0, first
        self.file = av.open(str(self.folder / self._name), "w", format="mp4")
        return self.file

    def note(self, ticks: int, duration: int) -> None:
        """Count a frame of the open clip."""
        self._frames += 1
        self._end = max(self._end, ticks + duration)

    def close(self) -> None:
        """Finish the open clip, if there is one."""
        if self.file is None:
            return
        file, self.file = self.file, None
        if self.stream.codec_context is not None and self.stream.codec_context.is_encoder:
            file.mux(self.stream.encode(None))
        file.close()
        start_s, end_s = (round(float(self.outline.seconds(ticks)), 6) for ticks in (self.first, self._end))
        self.done.append(Clip(self._name, start_s, end_s, self._frames))

    @property
    def _name(self) -> str:
        return f"{self.stem}-{len(self.done) + 1:04d}.mp4"


def _copy(index: VideoIndex, stream: VideoStream, clips: _Clips, end: Fraction | None) -> int:
    """Copy packets into clips; return how many frames were dropped behind `end`."""
    outline, shown, dropped = clips.outline, set(index.pts.tolist()), 0
    container: Any = stream.container
    for packet in container.demux(stream):
        if packet.size and packet.is_discard:
            raise DataError(f"{index.name}: an edit list hides some of its frames; cut=exact leaves those out")
        if not packet.size or packet.pts not in shown:
            continue
        ticks = packet.pts
        if end is not None and outline.seconds(ticks) >= end:
            dropped += 1
            continue
        piece = clips.piece_of(ticks)
        if piece != clips.piece:
            file = clips.open(piece, ticks)
            if index.codec not in file.supported_codecs:
                raise DataError(f"{index.name}: {index.codec} does not fit into MP4; cut=exact encodes it anew")
            clips.stream = file.add_stream_from_template(stream)
        packet.stream = clips.stream
        packet.pts = ticks - clips.first
        packet.dts = None if packet.dts is None else packet.dts - clips.first
        clips.note(ticks, packet.duration or outline.frame_ticks)
        clips.file.mux_one(packet)
    return dropped


def _encode(
    video: Video, index: VideoIndex, stream: VideoStream, clips: _Clips, end: Fraction | None, rule: Rule
) -> int:
    """Decode every frame and encode it into its clip; return how many were dropped behind `end`."""
    layout = av.VideoFormat(index.pixel_format)
    if layout.has_palette or any(part.is_alpha for part in layout.components):
        raise DataError(f"{index.name}: has {layout.name} pixels, with transparency, which MP4 cannot hold; convert it")
    outline, dropped = clips.outline, 0
    for frame in decode(video, index, range(len(index.pts))):
        ticks = frame.pts
        assert ticks is not None
        if end is not None and outline.seconds(ticks) >= end:
            dropped += 1
            continue
        piece = clips.piece_of(ticks)
        if piece != clips.piece:
            clips.stream = add_encoder(clips.open(piece, ticks), stream, frame, rule.encoder, rule.quality)
        clips.note(ticks, frame.duration or outline.frame_ticks)
        frame.pts, frame.time_base, frame.pict_type = ticks - clips.first, index.time_base, PictureType.NONE
        clips.file.mux(clips.stream.encode(fitted(frame, clips.stream)))
    return dropped
