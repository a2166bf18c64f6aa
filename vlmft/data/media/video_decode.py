"""The frames of a video file, decoded strictly by PyAV."""

from collections.abc import Generator, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmft.data.media.video_damage import NalUnits
from vlmft.data.media.video_index import CONVERT, REPLACE, STRICT, Keyframe, VideoIndex, opened, said
from vlmft.errors import DataError
from vlmft.types import Video

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

NUM_THREADS = 2
"""Of one decoder: a run has several loader processes, and more each gain little (1.0, 0.75, 0.7 s with 1, 2, 4)."""

# Reading the stream is all that finds damage: pixels may be left unfinished where nobody looks at them.
_HASTY = {"skip_loop_filter": "all", "skip_idct": "all"}

# FFmpeg's own VP9 decoder finds hardly any damage: of 40 files with 200 random bytes it took 38 for good, libvpx none.
# They give the same pixels at the same speed. The libvpx that comes with PyAV knows 8 bits alone.
_LIBVPX_FORMATS = ("yuv420p", "yuv422p", "yuv440p", "yuv444p", "gbrp")


def decode(video: Video, index: VideoIndex, wanted: Sequence[int], *, hasty: bool = False) -> Iterator["VideoFrame"]:
    """Decode the frames of the ascending numbers `wanted`, and what they need, in order.

    Decoding starts at the last clean keyframe before each, where the file has one and its packet is found at that
    place; else at the start. What comes out must be the frames that the index lists, one after another, none flagged
    as concealed. `hasty` gives frames for the check alone: whole packets are read, pixels left unfinished.

    Raises:
        DataError: damage, as far as the decoder can tell: nearly always with AV1, VP9, MPEG-2 and MPEG-4, in about 95
            of 100 cases with H.264, rarely with H.265 and VP8, which take nearly any bytes for a picture (a hole of
            zeros in H.264 and H.265 is always found).
    """
    done, jump = 0, True
    while True:
        try:
            for frame in _frames(video, index, wanted[done:], hasty, jump):
                yield frame
                done += 1
            return
        except _StrangeFrameError as error:
            place, why = index.place(error.frame), str(error)
            doubtful = error.jumped
        # A keyframe may be none, or a jump end elsewhere; from the start there is no such doubt.
        if not doubtful:
            # Not in the handler: what was raised there would keep the decoder and its threads for as long as itself.
            raise DataError(f"{index.name} is damaged at or shortly after {place}: {why}; {REPLACE}")
        jump = False


class ToRgb:
    """Makes the decoded frames of one video upright 8-bit RGB; keeps FFmpeg's scaler from one to the next."""

    def __init__(self, index: VideoIndex) -> None:
        from av.video.reformatter import VideoReformatter

        self._scaler = VideoReformatter()
        self._turn = index.turn

    def __call__(self, frame: "VideoFrame") -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """Return [H, W, 3], transparency laid on white; not contiguous where it was turned."""
        if frame.format.has_palette or any(part.is_alpha for part in frame.format.components):
            rgba = self._scaled(frame, "rgba")
            alpha = rgba[..., 3:].astype(np.uint16)
            rgb = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        else:
            rgb = self._scaled(frame, "rgb24")
        rows, columns, swapped = self._turn
        return (rgb.swapaxes(0, 1) if swapped else rgb)[::rows, ::columns]

    def _scaled(self, frame: "VideoFrame", pixel_format: str) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        # A scaler with threads of its own takes twice as long on 720p: 0.73 ms made anew and threaded, 0.31 so.
        return self._scaler.reformat(frame, format=pixel_format, threads=1).to_ndarray().astype(np.uint8, copy=False)


class _StrangeFrameError(Exception):
    """What came out of the decoder is not the next frame of the index, or not whole."""

    def __init__(self, frame: int, why: str, jumped: bool) -> None:
        super().__init__(why)
        self.frame, self.jumped = frame, jumped


def _frames(video: Video, index: VideoIndex, wanted: Sequence[int], hasty: bool, jump: bool) -> Iterator["VideoFrame"]:
    with opened(video) as container:
        run = _Run(container, index, hasty)
        try:
            for number in wanted:
                ahead = [key for key in index.keyframes if run.next < key.frame <= number] if jump else []
                if ahead:
                    run.jump_to(ahead[-1])
                yield run.frame(number)
        finally:
            run.close()


class _Run:
    """Frames coming out of a decoder, each compared with the one that the index has next."""

    def __init__(self, container: "InputContainer", index: VideoIndex, hasty: bool) -> None:
        self.container, self.index = container, index
        self.stream: VideoStream = container.streams[index.stream]  # type: ignore[assignment]
        self.decoder = _decoder(self.stream, index, hasty)
        self.nal_units = NalUnits(index.codec, self.stream.codec_context.extradata)
        self.next = 0
        self.jumped = False
        self._frames = self._decoded(container.demux(self.stream))

    def close(self) -> None:
        """Let the decoder go: it and its generator hold each other, and its threads would wait for the collector."""
        self._frames.close()
        del self._frames

    def jump_to(self, key: Keyframe) -> None:
        """Go on decoding at a keyframe; its packet must be the one that the index saw."""
        import av

        self.next, self.jumped = key.frame, True
        try:
            self.container.seek(key.pts, stream=self.stream)
            self.decoder.flush_buffers()
            packets = self.container.demux(self.stream)
            first = next(packets)
        except av.FFmpegError as error:
            raise self._strange(said(error)) from error
        if (first.pts, first.size) != (key.pts, key.size):
            raise self._strange("its keyframe is not where the container says")
        self._frames = self._decoded(chain([first], packets))

    def frame(self, number: int) -> "VideoFrame":
        """Decode up to frame `number`, and return it."""
        import av

        try:
            for frame in self._frames:
                self._compare(frame)
                self.next += 1
                if self.next > number:
                    return frame
        except av.FFmpegError as error:
            raise self._strange(said(error)) from error
        raise self._strange("it does not come out of the decoder")

    def _decoded(self, packets: Iterator["Packet[VideoStream]"]) -> Generator["VideoFrame"]:
        begun, start = False, 0
        for packet in packets:
            if not packet.size:
                continue  # an empty one would end the stream
            if not begun:
                if not packet.is_keyframe:
                    continue  # nothing before the first keyframe can be decoded
                begun, start = True, packet.pts or 0
            if (packet.pts or 0) < start:
                continue  # a picture between the keyframe and what went before it
            if packet.is_corrupt:
                raise self._strange("its container says that bytes are lost")
            try:
                self.nal_units.check(bytes(packet))
            except ValueError as error:
                raise self._strange(str(error)) from error
            yield from self.decoder.decode(packet)
        yield from self.decoder.decode(None)

    def _compare(self, frame: "VideoFrame") -> None:
        index = self.index
        if self.next == len(index.pts) or frame.pts != index.pts[self.next]:
            raise self._strange("it does not come out of the decoder")
        if frame.is_corrupt:
            raise self._strange("its decoder had to conceal a part of it")
        if (frame.height, frame.width) != index.stored:
            height, width = index.stored
            raise DataError(
                f"{index.name} changes its size from {width} x {height} to {frame.width} x {frame.height} at "
                f"{index.place(self.next)}; {CONVERT}"
            )

    def _strange(self, why: str) -> _StrangeFrameError:
        return _StrangeFrameError(min(self.next, len(self.index.pts) - 1), why, self.jumped)


def _decoder(stream: "VideoStream", index: VideoIndex, hasty: bool) -> "VideoCodecContext":
    import av

    decoder = stream.codec_context
    libvpx = index.codec == "vp9" and index.pixel_format in _LIBVPX_FORMATS
    if libvpx and "libvpx-vp9" in av.codecs_available:
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        decoder.extradata = stream.codec_context.extradata
    decoder.thread_count = NUM_THREADS
    decoder.thread_type = "AUTO"
    decoder.options = STRICT | (_HASTY if hasty else {})
    return decoder
