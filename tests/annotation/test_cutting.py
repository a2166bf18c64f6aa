"""Videos cut into clips: no frame is lost, moved or changed."""

import errno
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.annotation.making import save_video
from tests.support import literally
from vlmft.annotation.clip_encoder import best_encoder
from vlmft.annotation.cutting import Result, Rule, cut_video
from vlmft.data.media.video import probe_video, read_frames
from vlmft.errors import DataError, StorageError
from vlmft.types import Video

EXACT = Rule(seconds=1.0, cut="exact", rest="keep", min_seconds=0.5, quality=0, encoder="libx264")
COPY = Rule(seconds=1.0, cut="keyframe", rest="keep", min_seconds=0.5, quality=0, encoder="libx264")
Frames = list[np.ndarray[Any, Any]]


def changed(rule: Rule, **values: Any) -> Rule:
    return Rule(**(vars(rule) | values))


def read(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as file:
        return list(file.decode(video=0))


def seen(path: Path) -> "np.ndarray[Any, Any]":
    """Every frame as training sees it."""
    video = Video(path)
    return read_frames(video, np.arange(len(probe_video(video).timestamps)))


def light(frame: av.VideoFrame) -> "np.ndarray[Any, Any]":
    """The frame's luma, without padding."""
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


def decoded(path: Path) -> tuple[Frames, list[float]]:
    """Every frame as its planes have it, and its time."""
    frames = read(path)
    return [frame.to_ndarray() for frame in frames], [float(frame.pts * frame.time_base) for frame in frames]


def all_frames(folder: Path, result: Result) -> Frames:
    return [frame for clip in result.clips for frame in decoded(folder / clip.name)[0]]


def table(result: Result) -> list[tuple[str, float, float, int]]:
    return [(clip.name, clip.start_s, clip.end_s, clip.frames) for clip in result.clips]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    return tmp_path / "clips"


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts"])
def test_exact_clips_hold_every_frame_unchanged(tmp_path: Path, clips: Path, ending: str) -> None:
    source = save_video(tmp_path / f"a.b.{ending}", 34, gop=13)
    result = cut_video(source, clips, EXACT)
    assert table(result) == [
        ("a.b-0001.mp4", 0.0, 1.0, 10),
        ("a.b-0002.mp4", 1.0, 2.0, 10),
        ("a.b-0003.mp4", 2.0, 3.0, 10),
        ("a.b-0004.mp4", 3.0, 3.4, 4),
    ]
    assert (result.rest, result.dropped_frames) == ("kept", 0)
    frames = all_frames(clips, result)
    wanted, _ = decoded(source)
    assert len(frames) == len(wanted) == 34
    assert all(np.array_equal(a, b) for a, b in zip(frames, wanted, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(wanted, wanted[1:], strict=False))
    assert decoded(clips / "a.b-0002.mp4")[1] == pytest.approx([0.1 * number for number in range(10)])


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_copied_clips_are_cut_at_keyframes_and_hold_every_frame_unchanged(
    tmp_path: Path, clips: Path, ending: str
) -> None:
    source = save_video(tmp_path / f"a.{ending}", 40, gop=6)
    with av.open(str(source)) as file:
        keys = [float(p.pts * p.time_base) for p in file.demux(video=0) if p.size and p.is_keyframe]
    starts = [key - keys[0] for key in keys]
    wanted_starts = [starts[0]]
    for start in starts:
        if start >= wanted_starts[-1] + 1.0 - 1e-6:
            wanted_starts.append(start)
    result = cut_video(source, clips, COPY)
    assert [clip.start_s for clip in result.clips] == pytest.approx(wanted_starts)
    assert [clip.end_s for clip in result.clips] == pytest.approx([*wanted_starts[1:], 4.0])
    assert sum(clip.frames for clip in result.clips) == 40 and len(result.clips) > 2
    frames = all_frames(clips, result)
    wanted, _ = decoded(source)
    assert len(frames) == 40 and all(np.array_equal(a, b) for a, b in zip(frames, wanted, strict=True))
    for clip in result.clips:
        times = decoded(clips / clip.name)[1]
        assert len(times) == clip.frames
        assert times == pytest.approx([0.1 * number for number in range(clip.frames)], abs=0.002)


@pytest.mark.parametrize(
    ("rest", "lengths", "dropped", "said"),
    [("keep", [10, 10, 4], 0, "kept"), ("join", [10, 14], 0, "joined"), ("drop", [10, 10], 4, "dropped")],
)
@pytest.mark.parametrize("rule", [EXACT, COPY], ids=["exact", "keyframe"])
def test_a_short_last_piece(
    tmp_path: Path, clips: Path, rule: Rule, rest: str, lengths: list[int], dropped: int, said: str
) -> None:
    source = save_video(tmp_path / "a.mp4", 24, gop=10)
    result = cut_video(source, clips, changed(rule, rest=rest))
    assert [clip.frames for clip in result.clips] == lengths
    assert (result.rest, result.dropped_frames) == (said, dropped)
    assert len(all_frames(clips, result)) == sum(lengths) == 24 - dropped


@pytest.mark.parametrize(
    ("rest", "lengths", "said"), [("join", [3], "kept"), ("keep", [3], "kept"), ("drop", [], "dropped")]
)
def test_a_video_shorter_than_any_clip(tmp_path: Path, clips: Path, rest: str, lengths: list[int], said: str) -> None:
    result = cut_video(save_video(tmp_path / "a.mp4", 3), clips, changed(EXACT, rest=rest))
    assert ([clip.frames for clip in result.clips], result.rest) == (lengths, said)
    assert len(list(clips.iterdir())) == len(lengths)


def test_a_last_piece_of_the_least_length_stays(tmp_path: Path, clips: Path) -> None:
    result = cut_video(save_video(tmp_path / "a.mp4", 25), clips, changed(EXACT, rest="join"))
    assert ([clip.frames for clip in result.clips], result.rest) == ([10, 10, 5], "")


def test_quality_is_what_is_lost(tmp_path: Path, clips: Path) -> None:
    source = save_video(tmp_path / "a.mp4", 10)
    wanted, _ = decoded(source)

    def lost(**values: Any) -> float:
        frames = all_frames(clips, cut_video(source, clips, changed(EXACT, **values)))
        assert len(frames) == 10
        return float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(frames, wanted, strict=True)]))

    at_0, at_18, at_40 = (lost(quality=quality) for quality in (0, 18, 40))
    assert at_0 == 0 < at_18 < 3 < at_40
    assert 0 < lost(quality=1, encoder="mpeg4") < 3 < lost(quality=45, encoder="mpeg4")


def test_clips_of_a_variable_frame_rate_keep_their_times(tmp_path: Path, clips: Path) -> None:
    path = tmp_path / "a.mkv"
    ticks = [0, 40, 90, 400, 990, 1000, 1010, 2500, 2600]  # ms; nothing begins in the third second's first half
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8), "rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    result = cut_video(path, clips, changed(EXACT, min_seconds=0.0))
    assert [(clip.start_s, clip.frames) for clip in result.clips] == [(0.0, 5), (1.0, 2), (2.5, 2)]
    times = [time for clip in result.clips for time in decoded(clips / clip.name)[1]]
    assert times == pytest.approx([0, 0.04, 0.09, 0.4, 0.99, 0, 0.01, 0, 0.1], abs=1e-6)
    for encoder in ("libx264", "mpeg4"):
        other = cut_video(path, clips, changed(EXACT, min_seconds=0.0, encoder=encoder, quality=1))
        assert [clip.frames for clip in other.clips] == [5, 2, 2]


@pytest.mark.parametrize("size", [(64, 48), (62, 46)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_pixels_of_any_kind_are_kept(tmp_path: Path, clips: Path, pixel_format: str, size: tuple[int, int]) -> None:
    path = tmp_path / "a.mp4"
    random = np.random.default_rng(1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        for _ in range(12):
            pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=pixel_format)))
        file.mux(stream.encode(None))
    wanted, _ = decoded(path)
    frames = all_frames(clips, cut_video(path, clips, EXACT))
    assert len(frames) == 12 and all(np.array_equal(a, b) for a, b in zip(frames, wanted, strict=True))


@pytest.mark.parametrize(
    ("pixel_format", "size", "kept"),
    [
        ("yuvj420p", (63, 47), "yuv444p"),
        ("yuv422p", (63, 47), "yuv444p"),
        ("gray", (64, 48), "yuv444p"),
        ("bgr0", (63, 47), "yuv444p"),
    ],
)
@pytest.mark.parametrize("is_full", [False, True], ids=["", "full range"])
@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_colours_stay_what_they_are(
    tmp_path: Path, clips: Path, pixel_format: str, size: tuple[int, int], kept: str, encoder: Any, is_full: bool
) -> None:
    """As training sees them, where the encoder has no such pixels."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        codec = "mjpeg" if pixel_format.startswith("yuvj") else "ffv1"
        stream = file.add_stream(codec, rate=10, options={"qmin": "1", "qmax": "1"} if codec == "mjpeg" else {})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        if is_full:
            stream.codec_context.color_range = 2
        for colour in ((200, 30, 60), (10, 90, 250), (255, 255, 255), (0, 0, 0)):
            pixels = np.full((size[1], size[0], 3), colour, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode(None))
    cut_video(path, clips, changed(EXACT, encoder=encoder, quality=0 if encoder == "libx264" else 1))
    before, after = (seen(each).astype(int) for each in (path, clips / "a-0001.mp4"))
    assert before.shape == after.shape == (4, size[1], size[0], 3)
    assert np.abs(before - after).max() <= 4
    if encoder == "libx264":
        assert read(clips / "a-0001.mp4")[0].format.name == kept


def test_transparency_is_not_dropped(tmp_path: Path, clips: Path) -> None:
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("qtrle", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "argb"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 4), np.uint8), "argb")))
        file.mux(stream.encode(None))
    refused(path, clips, EXACT, f"{path}: has argb pixels, with transparency, which MP4 cannot hold; convert it")


def test_an_odd_size_keeps_every_pixel(tmp_path: Path, clips: Path) -> None:
    source = save_video(tmp_path / "a.avi", 12, codec="mpeg4", size=(63, 47))
    result = cut_video(source, clips, EXACT)
    with av.open(str(clips / "a-0001.mp4")) as file:
        frame = next(file.decode(video=0))
        assert (frame.width, frame.height, frame.format.name) == (63, 47, "yuv444p")
    lights = [light(frame) for frame in read(source)]
    clip_lights = [light(frame) for clip in result.clips for frame in read(clips / clip.name)]
    assert len(lights) == 12 and all(np.array_equal(a, b) for a, b in zip(clip_lights, lights, strict=True))


@pytest.mark.parametrize("rule", [EXACT, COPY], ids=["exact", "keyframe"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_video_stays_rotated(tmp_path: Path, clips: Path, rule: Rule, degrees: int) -> None:
    upright = save_video(tmp_path / "upright.mp4", 20)
    with av.open(str(upright)) as source, av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                file.mux(packet)

    def rotation(path: Path) -> int:
        with av.open(str(path)) as file:
            return next(file.decode(video=0)).rotation

    result = cut_video(tmp_path / "a.mp4", clips, rule)
    assert rotation(upright) == 0 != rotation(tmp_path / "a.mp4")
    assert [rotation(clips / clip.name) for clip in result.clips] == [rotation(tmp_path / "a.mp4")] * 2


def test_sound_is_not_kept(tmp_path: Path, clips: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        sound = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        video = file.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            samples.rate, samples.pts = 8000, number * 800
            file.mux(sound.encode(samples))
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * number, np.uint8), "rgb24")))
        file.mux(video.encode(None))
    for rule in (EXACT, COPY):
        cut_video(path, clips, rule)
        with av.open(str(clips / "a-0001.mp4")) as file:
            assert [stream.type for stream in file.streams] == ["video"]


# What cannot be cut


def refused(source: Path, clips: Path, rule: Rule, message: str) -> None:
    with pytest.raises(DataError, match=literally(message)):
        cut_video(source, clips, rule)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_damage_is_found_by_decoding(tmp_path: Path, clips: Path, ending: str) -> None:
    source = save_video(tmp_path / f"a.{ending}", 60, size=(160, 120))
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)  # as an interrupted download leaves it
    source.write_bytes(data)
    refused(source, clips, EXACT, f"{source} is damaged at or shortly after frame ")


@pytest.mark.parametrize("ending", ["mkv", "avi", "mp4"])
@pytest.mark.parametrize("rule", [EXACT, COPY], ids=["exact", "keyframe"])
def test_a_file_that_was_cut_short(tmp_path: Path, clips: Path, rule: Rule, ending: str) -> None:
    source = save_video(tmp_path / f"a.{ending}", 60, size=(160, 120))
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 6 // 10])
    refused(source, clips, rule, f"{source} is cut off: it has ")


@pytest.mark.parametrize(("data", "said"), [(b"", "empty"), (b"no video at all", "no video in a known container")])
def test_a_file_that_is_no_video(tmp_path: Path, clips: Path, data: bytes, said: str) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    refused(tmp_path / "a.mp4", clips, EXACT, f"{tmp_path}/a.mp4 is {said}")


def test_a_file_without_pictures(tmp_path: Path, clips: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        sound = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        samples.rate = 8000
        file.mux(sound.encode(samples))
    refused(path, clips, EXACT, f"{path} has no video in it, only audio; ")


def test_what_does_not_fit_into_mp4_is_not_copied(tmp_path: Path, clips: Path) -> None:
    source = save_video(tmp_path / "a.webm", 12, codec="libvpx")
    refused(source, clips, COPY, f"{source}: vp8 does not fit into MP4; cut=exact encodes it anew")
    assert [clip.frames for clip in cut_video(source, clips, EXACT).clips] == [10, 2]


@pytest.mark.parametrize("rule", [EXACT, COPY], ids=["exact", "keyframe"])
def test_what_stands_before_the_first_keyframe_is_no_frame(tmp_path: Path, clips: Path, rule: Rule) -> None:
    """Nothing can decode it; training passes over it as well."""
    whole = save_video(tmp_path / "whole.mkv", 30)
    path = tmp_path / "a.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number > 3:
                packet.stream = stream
                file.mux(packet)
    result = cut_video(path, clips, rule)
    assert [(clip.start_s, clip.frames) for clip in result.clips] == [(0.0, 10), (1.0, 10)]
    wanted = decoded(whole)[0][10:]
    assert all(np.array_equal(a, b) for a, b in zip(all_frames(clips, result), wanted, strict=True))


def test_frames_that_an_edit_list_hides_are_not_brought_back(tmp_path: Path, clips: Path) -> None:
    path = save_video(tmp_path / "a.mp4", 30)
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # behind name, version, flags and count: the entry's length in milliseconds
    assert int.from_bytes(data[entry : entry + 4], "big") == 3000
    data[entry : entry + 4] = (1500).to_bytes(4, "big")
    path.write_bytes(data)
    refused(path, clips, COPY, f"{path}: an edit list hides some of its frames; cut=exact leaves those out")
    shown, _ = decoded(path)
    frames = all_frames(clips, cut_video(path, clips, EXACT))
    assert len(shown) == 15
    assert all(np.array_equal(a, b) for a, b in zip(frames, shown, strict=True))


def test_open_groups_of_pictures_are_not_cut_open(tmp_path: Path, clips: Path) -> None:
    """Their keyframes have pictures after them that are shown before, and need what stood in front."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        options = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3:b-adapt=0"}
        stream = file.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(40):
            pixels = np.roll(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3), number, 1)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode(None))
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    is_open = [any(later.pts < packets[key].pts for later in packets[key:]) for key in keys]
    assert any(is_open), "x264 made no open group"
    result = cut_video(path, clips, COPY)
    assert len(result.clips) == is_open.count(False)
    frames, (wanted, _) = all_frames(clips, result), decoded(path)
    assert len(frames) == 40 and all(np.array_equal(a, b) for a, b in zip(frames, wanted, strict=True))


def test_a_full_device_is_no_fault_of_the_video(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_video(tmp_path / "a.mp4", 12)
    opened = av.open

    def full(name: str, *mode: str, **more: Any) -> Any:
        if mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(name, **more)

    monkeypatch.setattr(av, "open", full)
    with pytest.raises(
        StorageError, match=literally(f"{source}: its clips cannot be written: No space left on device")
    ):
        cut_video(source, clips, EXACT)


def test_this_build_encodes_h264() -> None:
    assert best_encoder() == "libx264"
