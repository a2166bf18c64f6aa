"""Small videos for tests, each frame of which says its own number."""

import base64
import io
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vlmft.types import Video

# Three red frames of 16 x 16: ffmpeg -f lavfi -i color=c=red:s=16x16:r=24:d=0.125 -c:v libvpx-vp9 -pix_fmt yuv420p10le
VP9_OF_10_BITS = base64.b85decode(
    "8b#lupF)O#0YdkI0YdVD1VZzH2ttB{cV%L2LWh9@LWO|>7*l{}0RR910005|5lx$Px=p)_Q>%m(NvUR2tbw6TyNgq+gcek;Yg4R&#!b77Q>%m$"
    "RKsUetbzd(O}mU!tArd=yK7Udf&u010RR91000140000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000002N88W}qt9v4amnKuv&zOks9rS3!hKVRmLjiHJa7KmY&$000(Lu4~Ay0RR910000#*MR|Z"
    "#fSg^0000000EqV03x-VgLQ6Xh=Blxg;rlyP&tEv0VCssgaUiWYT%Htfe^ZZ5SoDkRj`Crxq$%^RKsW0b92&Tz>8zWhyVZp000000cXgZMWcsB"
    "PD4*bMN&kEk4#~9V<2p4Vs>zNEp~7@XUL*OqliRRQbANnPfkRKlrS(lFfckWFfK7NH83zRFfcFx03SoPb@S(e0Hef#004lJNrOTF0C)g<0~`_#"
    "3@iWu5I_JYcmMq}FUG?D43LP<N&7N)Im|T}H=;|#gm)7U4gN8Y|NruZ|NsC07JvYwlYsy#0G0qilAK6T000AU002TjqmzLEQvj9#K$4t5PT&9o"
    "Z~y>8Kpa!MYmvK;vw;A&iuZv5@qz(u@PPv"
)

SIZE = (48, 64)
RATE = 24
_BITS = 8
_BARE = {
    "libx264": {"sc_threshold": "0"},
    "libx265": {"x265-params": "log-level=none:scenecut=0"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12", "crf": "20"},
}


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame with its number in black and white bars across the middle, red above and blue below, and some noise."""
    height, width = size
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 4] = (255, 0, 0)
    frame[-(height // 4) :] = (0, 0, 255)
    for bit in range(_BITS):
        left, right = bit * width // _BITS, (bit + 1) * width // _BITS
        frame[height // 4 : -(height // 4), left:right] = 255 * (number >> bit & 1)
    noise = np.random.default_rng(number).integers(-24, 24, frame.shape)
    return np.clip(frame.astype(int) + noise, 0, 255).astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """The number that a frame's bars say."""
    height, width = frame.shape[:2]
    middle = frame[height // 4 + 2 : -(height // 4) - 2].mean(axis=(0, 2))
    return sum(int(bar.mean() > 127) << bit for bit, bar in enumerate(np.array_split(middle, _BITS)))


def numbers_of(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def save_video(
    path: Path,
    num_frames: int = 48,
    codec: str = "libx264",
    *,
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = SIZE,
    options: dict[str, str] | None = None,
    ticks: Sequence[int] | None = None,
    tick: Fraction = Fraction(1, RATE),
    b_frames: int = 2,
    muxer: dict[str, str] | None = None,
    draw: Callable[[int, tuple[int, int]], np.ndarray] = picture,
    set_up: Callable[[Any], None] = lambda stream: None,
) -> Video:
    """Encode frames 0, 1, ..., a keyframe every 12; each at its own of `ticks` where they are given."""
    with av.open(str(path), "w", container_options=muxer) as file:
        stream = file.add_stream(codec, rate=RATE, options=_BARE.get(codec, {}) | (options or {}))
        stream.height, stream.width = size
        stream.pix_fmt, stream.gop_size, stream.codec_context.time_base = pixel_format, 12, tick
        if codec in ("libx264", "libx264rgb", "mpeg4", "mpeg2video"):
            stream.codec_context.max_b_frames = b_frames
        set_up(stream)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(draw(number, size), format="rgb24")
            frame.pts, frame.time_base = ticks[number] if ticks is not None else number, tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    if codec == "libsvtav1":
        _share_the_processor_again()
    return Video(path)


def _share_the_processor_again() -> None:
    """Take back what SVT-AV1 does where root encodes: it gives the thread that opens it real-time priority for good.

    Whatever that test process starts afterwards inherits it, and starves everything else on the machine.
    """
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def save_audio(path: Path, cover: bool = False) -> Video:
    """A tone's worth of silence, with or without a picture on its cover."""
    with av.open(str(path), "w") as file:
        audio = file.add_stream("aac", rate=44100)
        if cover:
            art = file.add_stream("mjpeg", rate=1)
            art.width = art.height = 16
            art.pix_fmt = "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
            file.mux(art.encode(av.VideoFrame(16, 16, "yuvj420p")))
            file.mux(art.encode(None))
        for number in range(3):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.rate, sound.pts = 44100, 1024 * number
            file.mux(audio.encode(sound))
        file.mux(audio.encode(None))
    return Video(path)


def copy_packets(
    source: Video, path: Path, keep: Callable[[int, Any], bool], change: Callable[[int, Any], Any] = lambda n, p: p
) -> Video:
    """Write the packets (number, packet) of another file that are to be kept, not encoded anew."""
    with av.open(str(source.path)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        new.start_encoding()
        packets = [packet for packet in old.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            if keep(number, packet):
                packet = change(number, packet)
                packet.stream = stream
                new.mux(packet)
    return Video(path)


def hide(*numbers: int) -> Callable[[int, Any], Any]:
    """A `change` for `copy_packets` that makes these pictures of a VP8 ones that are never shown, as encoders do."""

    def change(number: int, packet: Any) -> Any:
        if number not in numbers:
            return packet
        data = bytearray(packet)
        data[0] &= ~0x10
        hidden = av.Packet(bytes(data))
        hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
        return hidden

    return change


def decode_all(video: Video) -> np.ndarray:
    """Every frame in order by PyAV alone: what others are compared with."""
    file = str(video.path) if video.data is None else io.BytesIO(video.data)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def damage(video: Video, at: int, with_bytes: bytes) -> Video:
    """Overwrite some bytes of a file."""
    data = bytearray(video.path.read_bytes())
    data[at : at + len(with_bytes)] = with_bytes
    video.path.write_bytes(data)
    return video


def packet_position(video: Video, number: int) -> tuple[int, int]:
    """Where a packet lies in its file, and how many bytes it has."""
    with av.open(str(video.path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        return packet.pos, packet.size
