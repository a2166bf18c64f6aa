import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.media.making_video import copy_packets, damage, hide, packet_position, picture, save_video
from vlmft.data.media.video import probe_video, read_frames
from vlmft.data.media.video_damage import NalUnits, refuse_cut_file
from vlmft.data.media.video_decode import decode
from vlmft.data.media.video_index import index_video
from vlmft.errors import DataError
from vlmft.types import Video

EVERY = np.arange(48)
FASTSTART = {"movflags": "faststart"}


def cut(video: Video, share: float) -> Video:
    data = video.path.read_bytes()
    video.path.write_bytes(data[: int(len(data) * share)])
    return video


def noise(seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, 200, dtype=np.uint8).tobytes()


# Files that end early


@pytest.mark.parametrize("share", [0.1, 0.4, 0.99])
def test_a_cut_matroska_is_refused(tmp_path, share):
    video = cut(save_video(tmp_path / "a.mkv"), share)
    with pytest.raises(DataError, match=r"a\.mkv is cut off: it has \d+ bytes and its header promises at least \d+"):
        probe_video(video)
    with pytest.raises(DataError, match="is cut off"):
        read_frames(video, np.array([0]))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.99])
def test_a_cut_mp4_is_refused(tmp_path, share):
    video = cut(save_video(tmp_path / "a.mp4", options={"crf": "5"}), share)
    with pytest.raises(DataError, match=r"a\.mp4 is cut off: it has \d+ bytes and its header promises at least \d+"):
        probe_video(video)


def test_an_mp4_without_its_list_of_frames_is_refused(tmp_path):
    video = save_video(tmp_path / "a.mp4")
    data = video.path.read_bytes()
    video.path.write_bytes(data[: data.rindex(b"moov") - 4])
    with pytest.raises(DataError, match=r"a\.mp4 is cut off: it has no moov box, in which an MP4 lists its frames"):
        probe_video(video)


def test_an_mp4_with_its_list_in_front_is_no_less_cut(tmp_path):
    video = save_video(tmp_path / "a.mp4", muxer=FASTSTART)
    data = video.path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert len(probe_video(video).timestamps) == 48
    video.path.write_bytes(data[:-300])
    with pytest.raises(DataError, match=rf"a\.mp4 is cut off: it has {len(data) - 300} bytes and .* {len(data)};"):
        probe_video(video)
    # Cut between two boxes: lengths agree, frames are missing.
    video.path.write_bytes(data[: data.index(b"mdat") - 4])
    with pytest.raises(DataError, match=r"a\.mp4 (is cut off: of 48 frames it holds 0|has no frame)"):
        probe_video(video)


def test_a_cut_avi_is_refused(tmp_path):
    video = save_video(tmp_path / "a.avi", codec="mpeg4")
    assert len(probe_video(video).timestamps) == 48
    with pytest.raises(DataError, match=r"a\.avi is cut off: it has"):
        probe_video(cut(video, 0.5))


def test_a_cut_gif_is_refused(tmp_path):
    pictures = [Image.fromarray(picture(number)) for number in range(4)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    assert len(probe_video(Video(tmp_path / "a.gif")).timestamps) == 4
    with pytest.raises(DataError, match=r"a\.gif is cut off"):
        probe_video(cut(Video(tmp_path / "a.gif"), 0.6))


def test_padding_behind_the_last_box_is_no_damage(tmp_path):
    video = save_video(tmp_path / "a.mp4")
    video.path.write_bytes(video.path.read_bytes() + bytes(1000))
    assert len(read_frames(video, EVERY)) == 48


@pytest.mark.parametrize(
    "data",
    [
        b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff",  # a live Matroska of unknown length
        b"\x1a\x45\xdf\xa3\x80",
        b"\x1a\x45\xdf\xa3\xff",
        b"\x00\x00\x00\x08ftyp\x00\x00\x00\x00moov",  # the last box reaches up to the end
        b"G" * 188,
        b"FLV\x01",
    ],
)
def test_what_claims_no_length_is_not_cut(data):
    refuse_cut_file("a", io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x84abc", 14),
        (b"\x00\x00\x00\x08moov\x00\x00\x00\x01mdat\x00\x00\x00\x00\x00\x00\x00\x64", 108),
        (b"RIFF\x10\x00\x00\x00AVI abcd", 24),
        (b"RIFF\x04\x00\x00\x00AVI RIFF\x08\x00\x00\x00AVIX", 28),
    ],
)
def test_the_length_that_a_header_claims(data, end):
    with pytest.raises(DataError, match=rf"a is cut off: it has {len(data)} bytes and .* at least {end};"):
        refuse_cut_file("a", io.BytesIO(data))
    refuse_cut_file("a", io.BytesIO(data.ljust(end, b"x")))


# Bytes that changed


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_200_damaged_bytes_in_an_mp4_are_told(tmp_path, decoder):
    video = save_video(tmp_path / "a.mp4")
    damage(video, packet_position(video, 20)[0] + 20, noise(0))
    said = (
        r"a\.mp4 is damaged at or shortly after frame (1[89]|2[0-3]) \(0\.[789]\d s\): .*; replace the file or remove"
    )
    with pytest.raises(DataError, match=said):
        read_frames(video, EVERY, decoder)
    # What does not need the damaged stretch is whole.
    assert len(read_frames(video, np.array([3, 40]), decoder)) == 2


@pytest.mark.parametrize(
    ("name", "codec", "missed"),
    [
        ("a.mp4", "libx264", 1),
        ("a.mkv", "libx264", 1),
        ("a.mp4", "libsvtav1", 2),
        ("a.webm", "libvpx-vp9", 0),
        ("a.avi", "mpeg4", 0),
        ("a.mkv", "mpeg2video", 0),
        ("a.ts", "libx264", 0),
    ],
)
def test_damage_is_found_wherever_it_lies(tmp_path, name, codec, missed):
    """Of 12 files damaged at different places no more than `missed` are taken for good ones."""
    whole = save_video(tmp_path / name, codec=codec)
    every, data = read_frames(whole, EVERY), whole.path.read_bytes()
    first, last = (packet_position(whole, number)[0] for number in (1, 47))
    wrong = found = 0
    for seed, at in enumerate(np.linspace(first, last - 200, 12).astype(int)):
        held = bytearray(data)
        held[at : at + 200] = noise(seed)
        try:
            wrong += int((read_frames(Video(Path("held"), data=bytes(held)), EVERY) != every).any())
        except DataError:
            found += 1
    assert wrong <= missed
    assert found >= 10


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mp4", "libx265"), ("a.mkv", "libx265")])
def test_a_hole_of_zeros_is_found(tmp_path, name, codec):
    video = save_video(tmp_path / name, codec=codec)
    at, size = packet_position(video, 20)
    damage(video, at + size // 2, bytes(16))
    with pytest.raises(DataError, match=r"frame \d+ \(0\.\d\d s\): zeros stand where its encoder wrote none; replace"):
        read_frames(video, EVERY)


def test_a_damaged_first_frame_is_told_by_the_probe(tmp_path):
    video = save_video(tmp_path / "a.avi", codec="mpeg4")
    damage(video, packet_position(video, 0)[0] + 30, noise(0))
    with pytest.raises(DataError, match=r"a\.avi is damaged at its first frame: .*; replace the file or remove"):
        probe_video(video)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx265"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_a_lost_picture_that_others_need_is_told(tmp_path, name, codec):
    # The container lists it no more, so what the decoder makes of the others is what tells.
    whole = save_video(tmp_path / f"whole_{name}", codec=codec)
    video = copy_packets(whole, tmp_path / name, lambda number, packet: number != 13)
    assert len(probe_video(video).timestamps) == 47
    with pytest.raises(DataError, match=rf"{name} is damaged at or shortly after frame 1\d"):
        read_frames(video, np.arange(47))


def test_bytes_that_a_transport_stream_lost_are_told(tmp_path):
    video = save_video(tmp_path / "a.ts", options={"crf": "5"})
    at, size = packet_position(video, 20)
    assert size > 3 * 188
    data = video.path.read_bytes()
    video.path.write_bytes(data[: at + 188] + data[at + 2 * 188 :])
    with pytest.raises(DataError, match=r"a\.ts is damaged at .* its container says that bytes are lost; replace"):
        read_frames(video, EVERY)


def test_a_frame_that_never_comes_is_told(tmp_path):
    # VP8 decodes it, but it is not to be shown: as if the index had not seen that.
    whole = save_video(tmp_path / "whole.webm", codec="libvpx")
    video = copy_packets(whole, tmp_path / "a.webm", lambda number, packet: True, hide(20))
    index = index_video(whole)
    list(decode(video, index, [19]))
    with pytest.raises(DataError, match=r"frame 20 \(0\.83 s\): it does not come out of the decoder; replace"):
        list(decode(video, index, [20]))


# The pieces of H.264 and H.265


def test_pieces_are_split_by_their_lengths():
    units = NalUnits("h264", bytes([1, 100, 0, 10, 0xFF]))
    packet = b"\x00\x00\x00\x02\x65\x01" + b"\x00\x00\x00\x01\x09"
    assert units.split(packet) == [b"\x65\x01", b"\x09"]
    assert units.is_random_access(packet)
    assert not units.is_random_access(b"\x00\x00\x00\x02\x41\x01")
    with pytest.raises(ValueError, match="its parts claim more bytes than it has"):
        units.split(packet[:-1])
    assert not units.is_random_access(packet[:-1])


def test_pieces_have_no_start_code_within():
    units = NalUnits("hevc", bytes([1, *bytes(20), 0xF1]))  # lengths of 2 bytes
    units.check(b"\x00\x06\x26\x01\x00\x00\x03\x01")
    units.check(b"\x00\x06\x26\x01\x80\x00\x00\x00")  # zeros that a multiplexer put behind it
    for code in (b"\x00\x00\x00", b"\x00\x00\x01", b"\x00\x00\x02"):
        with pytest.raises(ValueError, match="zeros stand where its encoder wrote none"):
            units.check(b"\x00\x06\x26\x01" + code + b"\x01")
    assert units.is_random_access(b"\x00\x02\x26\x01")  # IDR
    assert units.is_random_access(b"\x00\x02\x2a\x01")  # CRA
    assert not units.is_random_access(b"\x00\x02\x02\x01")


@pytest.mark.parametrize(
    ("codec", "extradata"), [("h264", None), ("h264", b""), ("h264", b"\0\0\0\1\x67"), ("vp9", b"\1" * 30)]
)
def test_other_streams_have_no_pieces(codec, extradata):
    units = NalUnits(codec, extradata)
    assert units.split(b"\0\0\0\0") is None
    units.check(b"\0\0\0\0")
    assert not units.is_random_access(b"\x65")
