"""decord and TorchCodec give PyAV's frames and pixels, or an error; TorchCodec where it can be loaded."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.data.media.making_video import copy_packets, damage, hide, packet_position, save_video
from vlmft.data.media import video_decoders as module
from vlmft.data.media.video import read_frames
from vlmft.errors import ConfigError, DataError
from vlmft.types import Video

SOME = np.array([0, 5, 11, 12, 13, 30, 47])
UNEVEN = np.cumsum([0] + [1 + 9 * (number % 7 == 0) for number in range(47)]).tolist()
OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}


@pytest.fixture(params=["decord", "torchcodec"])
def decoder(request):
    if request.param == "torchcodec":
        need_torchcodec()
    return request.param


def need_torchcodec():
    try:
        module._torchcodec()
    except ConfigError as error:
        pytest.skip(str(error))


def same_as_pyav(video: Video, decoder: str, indices: np.ndarray = SOME) -> bool:
    frames, ours = read_frames(video, indices, decoder), read_frames(video, indices)
    return frames.dtype == np.uint8 and frames.shape == ours.shape and bool((frames == ours).all())


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.mov", {"size": (240, 426)}),
        ("a.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
        ("a.webm", {"codec": "libvpx"}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.mp4", {"pixel_format": "yuvj420p"}),
        ("a.mp4", {"pixel_format": "yuv422p"}),
        ("a.mp4", {"pixel_format": "yuv444p", "size": (47, 63)}),
        ("a.mp4", {"pixel_format": "gray"}),
        ("a.mp4", {"codec": "libx264rgb", "pixel_format": "rgb24"}),
        ("a.mp4", {"ticks": UNEVEN, "tick": Fraction(1, 60)}),
        ("a.mkv", {"ticks": UNEVEN, "tick": Fraction(1, 60)}),
        ("a.mkv", {"ticks": range(30, 78)}),
        ("a.mp4", {"set_up": lambda stream: setattr(stream.codec_context, "colorspace", 1)}),  # BT.709
        ("a.mp4", {"size": (96, 128), "set_up": lambda stream: stream.set_display_rotation(90)}),
        ("a.mp4", {"size": (96, 128), "set_up": lambda stream: stream.set_display_rotation(180)}),
        ("a.mp4", {"size": (96, 128), "set_up": lambda stream: stream.set_display_rotation(-90)}),
    ],
)
def test_the_pixels_are_pyavs(tmp_path, name, keys, decoder):
    assert same_as_pyav(save_video(tmp_path / name, **keys), decoder)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("a.mp4", {"codec": "libx265"}),
        ("a.mkv", {"codec": "libx265"}),
        ("a.mp4", {"codec": "libsvtav1"}),
        ("a.avi", {"codec": "mpeg4", "b_frames": 0}),
        ("a.mp4", {"options": OPEN_GROUPS, "b_frames": 3}),
        ("a.mkv", {"set_up": lambda stream: stream.set_display_rotation(90)}),
    ],
)
def test_torchcodec_takes_more(tmp_path, name, keys):
    need_torchcodec()
    video = save_video(tmp_path / name, **keys)
    assert same_as_pyav(video, "torchcodec")
    with pytest.raises(DataError, match="with which decord is not known to be right"):
        read_frames(video, SOME, "decord")


@pytest.mark.parametrize(
    ("name", "keys", "reason"),
    [
        ("a.ts", {}, "the container mpegts"),
        ("a.mp4", {"pixel_format": "yuv420p10le"}, "the pixel format yuv420p10le"),
        ("a.webm", {"codec": "libvpx-vp9", "size": (47, 63)}, r"an odd side \(63 x 47\)"),
        ("a.mkv", {"codec": "ffv1"}, "the codec ffv1"),
        ("a.mp4", {"set_up": lambda stream: stream.set_display_rotation(0, hflip=True)}, "a mirrored picture"),
    ],
)
def test_what_was_not_found_right_is_refused(tmp_path, name, keys, reason, decoder):
    video = save_video(tmp_path / name, **keys)
    said = rf"{name} has {reason}, with which {decoder} is not known to be right; set model\.video\.decoder to pyav"
    with pytest.raises(DataError, match=said):
        read_frames(video, SOME, decoder)
    assert len(read_frames(video, SOME)) == 7


@pytest.mark.parametrize(
    ("name", "keys", "reason"),
    [
        ("a.mp4", {"codec": "libx265"}, "the codec hevc"),
        ("a.mp4", {"options": OPEN_GROUPS, "b_frames": 3}, "keyframes from which not all later frames decode"),
        ("a.mkv", {"set_up": lambda stream: stream.set_display_rotation(90)}, "a rotation in matroska"),
    ],
)
def test_where_decord_is_wrong_without_an_error_it_is_refused(tmp_path, name, keys, reason):
    import decord

    video = save_video(tmp_path / name, **keys)
    raw, ours = decord.VideoReader(str(video.path)).get_batch(SOME.tolist()).asnumpy(), read_frames(video, SOME)
    assert raw.shape != ours.shape or (raw != ours).any()
    with pytest.raises(DataError, match=rf"{name} has {reason}, with which decord is not known"):
        read_frames(video, SOME, "decord")


def test_bytes_are_read_as_files_are(tmp_path, decoder):
    video = save_video(tmp_path / "a.mp4")
    held = Video(Path("tar/a.mp4"), data=video.path.read_bytes())
    assert (read_frames(held, SOME, decoder) == read_frames(video, SOME)).all()


def test_damage_is_told_though_the_decoder_hides_it(tmp_path, decoder):
    video = save_video(tmp_path / "a.mp4", options={"crf": "5"})
    noise = np.random.default_rng(0).integers(0, 256, 200, dtype=np.uint8).tobytes()
    at, size = packet_position(video, 24)
    assert size > 300
    damage(video, at + 60, noise)
    if decoder == "decord":
        import decord

        assert len(decord.VideoReader(str(video.path)).get_batch(SOME.tolist()).asnumpy()) == 7  # without an error
    with pytest.raises(DataError, match=r"a\.mp4 is damaged at or shortly after frame \d+"):
        read_frames(video, SOME, decoder)


def test_a_cut_file_is_told(tmp_path, decoder):
    video = save_video(tmp_path / "a.mkv")
    data = video.path.read_bytes()
    video.path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.mkv is cut off"):
        read_frames(video, np.array([0]), decoder)


def test_other_numbers_of_frames_are_told(tmp_path, decoder):
    whole = save_video(tmp_path / "whole.webm", codec="libvpx")
    video = copy_packets(whole, tmp_path / "a.webm", lambda number, packet: True, hide(5))
    said = rf"a\.webm has 47 frames that can be decoded, and {decoder} finds 48; set model\.video\.decoder to pyav"
    with pytest.raises(DataError, match=said):
        read_frames(video, np.array([0, 40]), decoder)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((48, (2, 48, 64, 3), [0.0, 0.5]), r"decord gives the frame at 0\.500 s for frame 13 \(0\.54 s\); set model"),
        ((48, (2, 48, 64, 3), [0.0, np.nan]), r"decord gives the frame at nan s for frame 13"),
        ((48, (2, 64, 48, 3), [0.0, 13 / 24]), r"decord gives 48 x 64 pixels for 64 x 48; set model"),
    ],
)
def test_other_frames_are_told(tmp_path, monkeypatch, answer, said):
    total, shape, seconds = answer
    answered = (total, np.zeros(shape, np.uint8), np.array(seconds))
    monkeypatch.setattr(module, "_by_decord", lambda video, index, chosen: answered)
    with pytest.raises(DataError, match=rf"a\.mp4: {said}"):
        read_frames(save_video(tmp_path / "a.mp4"), np.array([0, 13]), "decord")


def test_what_a_decoder_cannot_read_is_told(tmp_path, monkeypatch):
    import decord

    def fail(*args, **keys):
        raise decord.DECORDError("[01:02:03] video_reader.cc:1: no stream\n\nStack trace")

    monkeypatch.setattr(decord, "VideoReader", fail)
    said = r"a\.mp4 cannot be read by decord: .*no stream; set model\.video\.decoder to pyav"
    with pytest.raises(DataError, match=said):
        read_frames(save_video(tmp_path / "a.mp4"), SOME, "decord")


def test_a_missing_decord_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    said = r"decoder=decord cannot be used here: .*decord.*; set model\.video\.decoder to pyav"
    with pytest.raises(ConfigError, match=said):
        read_frames(save_video(tmp_path / "a.mp4"), SOME, "decord")


@pytest.mark.parametrize("missing", ["torchcodec", "FFmpeg"])
def test_a_torchcodec_that_cannot_decode_is_told(tmp_path, monkeypatch, missing):
    def reader(source):
        raise RuntimeError("Could not load libtorchcodec\nand more")

    modules = {"torchcodec": None, "FFmpeg": type(sys)("torchcodec.decoders")}
    modules["FFmpeg"].VideoDecoder = reader
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", modules[missing])
    module._torchcodec.cache_clear()
    why = "import of torchcodec.decoders halted.*" if missing == "torchcodec" else "Could not load libtorchcodec"
    said = (
        rf"decoder=torchcodec cannot decode here: {why}; install torchcodec \(pip install 'vlmft\[video\]'\) and FFmpeg"
    )
    with pytest.raises(ConfigError, match=said):
        read_frames(save_video(tmp_path / "a.mp4"), SOME, "torchcodec")
    module._torchcodec.cache_clear()


def test_the_try_is_a_video(tmp_path):
    assert read_frames(Video(Path("tiny.avi"), data=module._tiny_video()), np.array([0])).shape == (1, 16, 16, 3)
