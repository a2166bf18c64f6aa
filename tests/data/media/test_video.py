import os
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.data.making import save_picture
from tests.data.media.making_video import (
    SIZE,
    VP9_OF_10_BITS,
    copy_packets,
    decode_all,
    hide,
    number_of,
    numbers_of,
    picture,
    save_audio,
    save_video,
)
from vlmft.config.media import VideoRule
from vlmft.data.media import video as module
from vlmft.data.media.video import VideoInfo, choose_frames, probe_video, read_frames
from vlmft.data.media.video_decode import _Run
from vlmft.errors import ConfigError, DataError
from vlmft.types import Video

EVERY = np.arange(48)
UNEVEN = np.cumsum([0] + [1 + 9 * (number % 7 == 0) for number in range(47)]).tolist()


def lasting(*timestamps: float) -> VideoInfo:
    return VideoInfo(48, 64, np.array(timestamps, np.float64))


def at_rate(rate: float, num_frames: int) -> VideoInfo:
    return lasting(*(np.arange(num_frames) / rate))


# What a container says


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.ts", "libx264"),
        ("a.flv", "libx264"),
        ("a.mp4", "libx265"),
        ("a.mkv", "libx265"),
        ("a.mp4", "libsvtav1"),
        ("a.webm", "libvpx"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
        ("a.mp4", "mpeg4"),
        ("a.mpg", "mpeg2video"),
    ],
)
def test_containers_and_codecs(tmp_path, name, codec):
    video = save_video(tmp_path / name, codec=codec)
    info = probe_video(video)
    assert (info.height, info.width) == SIZE
    assert info.timestamps.dtype == np.float64
    assert np.abs(info.timestamps - EVERY / 24).max() < 0.001
    frames = read_frames(video, EVERY)
    assert frames.dtype == np.uint8
    assert numbers_of(frames) == EVERY.tolist()
    assert (frames == decode_all(video)).all()
    assert numbers_of(read_frames(video, np.array([7, 30, 31]))) == [7, 30, 31]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_frame_rate(tmp_path, name):
    video = save_video(tmp_path / name, ticks=UNEVEN, tick=Fraction(1, 60))
    info = probe_video(video)
    assert np.abs(info.timestamps - np.array(UNEVEN) / 60).max() < 0.001
    # At 2 a second: frame 0, then those shown at 0.5, 1, 1.5 and 2 s.
    chosen = choose_frames(info, VideoRule(fps=2))
    shown = [max(i for i in range(48) if UNEVEN[i] <= 30 * k) for k in range(UNEVEN[-1] // 30 + 1)]
    assert chosen.tolist() == shown
    assert numbers_of(read_frames(video, chosen)) == shown


def test_times_count_from_the_first_frame(tmp_path):
    video = save_video(tmp_path / "a.mkv", ticks=range(30, 78))
    assert probe_video(video).timestamps[0] == 0
    assert probe_video(video).timestamps[-1] == pytest.approx(47 / 24, abs=0.001)
    assert numbers_of(read_frames(video, np.array([0, 47]))) == [0, 47]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_video_cut_at_an_open_group_lists_what_can_be_decoded(tmp_path, name):
    # The pictures before its first keyframe refer to what was cut off: MP4 flags them in its edit list, MKV does not.
    open_groups = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}
    whole = save_video(tmp_path / "whole.mkv", options=open_groups, b_frames=3)
    with av.open(str(whole.path)) as container:
        second = [n for n, packet in enumerate(container.demux(video=0)) if packet.size and packet.is_keyframe][1]
    video = copy_packets(whole, tmp_path / name, lambda number, packet: number >= second)
    frames = read_frames(video, np.arange(len(probe_video(video).timestamps)))
    first = number_of(frames[0])
    assert 9 <= first <= 12
    assert numbers_of(frames) == list(range(first, 48))


def test_an_edit_list_leaves_frames_out(tmp_path):
    whole = save_video(tmp_path / "whole.mp4", options={"bf": "0"}, b_frames=0)

    def earlier(number, packet):
        packet.pts -= 5 * 512
        packet.dts -= 5 * 512
        return packet

    video = copy_packets(whole, tmp_path / "a.mp4", lambda number, packet: True, earlier)
    info = probe_video(video)
    assert len(info.timestamps) == 43
    assert numbers_of(read_frames(video, np.arange(43))) == list(range(5, 48))


def test_pictures_that_are_never_shown_are_no_frames(tmp_path):
    # VP8's alternate references: packets of their own, whose first byte says that they are not shown.
    whole = save_video(tmp_path / "whole.webm", codec="libvpx")
    video = copy_packets(whole, tmp_path / "a.webm", lambda number, packet: True, hide(5, 20))
    assert len(probe_video(video).timestamps) == 46
    assert numbers_of(read_frames(video, np.arange(46))) == [n for n in range(48) if n not in (5, 20)]


def test_what_tells_no_times_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.avi does not say when its frames are shown \(B-frames in AVI\); convert"):
        probe_video(save_video(tmp_path / "a.avi"))
    assert len(probe_video(save_video(tmp_path / "b.avi", b_frames=0)).timestamps) == 48


def test_two_frames_at_one_time_are_refused(tmp_path):
    ticks = [*range(20), 19, *range(21, 48)]
    whole = save_video(tmp_path / "whole.mkv", codec="mpeg4", b_frames=0)

    def together(number, packet):
        packet.pts = packet.dts = round(1000 * ticks[number] / 24)
        return packet

    video = copy_packets(whole, tmp_path / "a.mkv", lambda number, packet: True, together)
    with pytest.raises(DataError, match=r"a\.mkv shows frames 19 and 20 at one time; convert it, for example: ffmpeg"):
        probe_video(video)


# What is no video


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "page.mp4").write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DataError, match=r"page\.mp4 is no video in a known container \(MP4, .*begins with b'<!DOCTYPE"):
        probe_video(Video(tmp_path / "page.mp4"))
    with pytest.raises(DataError, match=r"empty\.mp4 is empty; replace the file or remove its samples"):
        probe_video(Video(tmp_path / "empty.mp4"))
    with pytest.raises(DataError, match=r"none\.mp4 does not exist; correct the path, or remove its samples"):
        probe_video(Video(tmp_path / "none.mp4"))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        probe_video(Video(tmp_path))
    with pytest.raises(DataError, match=r"nothing\.mp4 is empty"):
        probe_video(Video(tmp_path / "nothing.mp4", data=b""))


@pytest.mark.parametrize("cover", [False, True])
def test_sound_alone_is_refused(tmp_path, cover):
    kinds = "audio, video" if cover else "audio"
    with pytest.raises(DataError, match=rf"a\.mp4 has no video in it, only {kinds}"):
        probe_video(save_audio(tmp_path / "a.mp4", cover))


def test_no_frames_are_refused(tmp_path):
    whole = save_video(tmp_path / "whole.mkv")
    with pytest.raises(DataError, match=r"none\.mp4 has no video in it; replace the file"):
        probe_video(copy_packets(whole, tmp_path / "none.mp4", lambda number, packet: False))
    with pytest.raises(DataError, match=r"late\.mkv has no frame that can be decoded; replace the file"):
        probe_video(copy_packets(whole, tmp_path / "late.mkv", lambda number, packet: 2 < number < 6))


def test_an_animated_webp_is_refused(tmp_path):
    pictures = [Image.fromarray(picture(number)) for number in range(3)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:])
    with pytest.raises(DataError, match=r"a\.webp is no video in a known container .*GIF"):
        probe_video(Video(tmp_path / "a.webp"))


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
def test_playlists_open_nothing(tmp_path, name):
    save_video(tmp_path / "part.ts")
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\npart.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / name).write_text(text)
    if name.endswith("m3u8"):
        with av.open(str(tmp_path / name)) as container:  # as it would be opened without the list of containers
            assert container.format.name == "hls"
    for video in (Video(tmp_path / name), Video(tmp_path / name, data=text.encode())):
        with pytest.raises(DataError, match=rf"{name} is no video in a known container .*begins with b'#EXTM3U"):
            probe_video(video)


def test_a_list_of_files_to_join_opens_nothing(tmp_path):
    save_video(tmp_path / "part.mp4")
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile part.mp4\n")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.format.name == "concat"
    with pytest.raises(DataError, match=r"a\.mp4 is no video in a known container"):
        probe_video(Video(tmp_path / "a.mp4"))


def test_a_bomb_is_refused_from_its_header(tmp_path):
    size = (65535).to_bytes(2, "little")
    frame = b"\x2c" + bytes(4) + size + size + b"\x00" + b"\x02\x02\x4c\x01\x00"
    colours = b"\x80\x00\x00" + bytes(6)
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + size + size + colours + frame + b";")
    with pytest.raises(DataError, match=r"a\.gif has no size, or one above 178956970 pixels; replace the file"):
        probe_video(Video(tmp_path / "a.gif"))


# Pixels


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "size"),
    [
        ("a.mp4", "libx264", "yuv420p10le", SIZE),
        ("a.mp4", "libx265", "yuv420p10le", SIZE),
        ("a.mp4", "libx264", "yuv422p", SIZE),
        ("a.mp4", "libx264", "yuv444p", (47, 63)),
        ("a.mp4", "libx264", "yuvj420p", SIZE),
        ("a.mp4", "libx264rgb", "rgb24", SIZE),
        ("a.webm", "libvpx-vp9", "yuv420p", (47, 63)),
        ("a.mov", "prores", "yuv422p10le", SIZE),
        ("a.mkv", "ffv1", "bgr0", SIZE),
        ("a.avi", "mjpeg", "yuvj420p", SIZE),
    ],
)
def test_pixel_formats(tmp_path, name, codec, pixel_format, size):
    options = {"crf": "10"} if codec in ("libx264", "libx264rgb") else None
    video = save_video(tmp_path / name, 14, codec, pixel_format=pixel_format, size=size, options=options)
    info = probe_video(video)
    assert (info.height, info.width) == size
    frames = read_frames(video, np.arange(14))
    wanted = np.stack([picture(number, size) for number in range(14)]).astype(int)
    assert np.abs(frames - wanted).mean() < (0.001 if codec == "ffv1" else 16)
    assert np.abs(frames[:, :8].mean(axis=(0, 1, 2)) - wanted[:, :8].mean(axis=(0, 1, 2))).max() < 16
    assert (frames == decode_all(video)).all()


def test_a_vp9_of_10_bits_is_read(tmp_path):
    # Not by libvpx, which reads the others: as PyAV's wheels hold it, it knows 8 bits alone.
    (tmp_path / "a.webm").write_bytes(VP9_OF_10_BITS)
    frames = read_frames(Video(tmp_path / "a.webm"), np.arange(3))
    assert frames.shape == (3, 16, 16, 3)
    assert np.abs(frames.astype(int) - (255, 0, 0)).max() < 8


def test_a_gif_is_a_video_and_its_transparency_white(tmp_path):
    frames = []
    for number in range(3):
        rgba = np.zeros((*SIZE, 4), np.uint8)
        rgba[:, : 16 * (number + 1)] = (0, 255, 0, 255)
        frames.append(Image.fromarray(rgba))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[100, 300, 100], disposal=2)
    info = probe_video(Video(tmp_path / "a.gif"))
    assert info.timestamps.tolist() == [0.0, 0.1, pytest.approx(0.4)]
    found = read_frames(Video(tmp_path / "a.gif"), np.arange(3))
    for number in range(3):
        assert (found[number, :, : 16 * (number + 1)] == (0, 255, 0)).all()
        assert (found[number, :, 16 * (number + 1) :] == 255).all()


@pytest.mark.parametrize(
    ("name", "degrees", "mirrored"),
    [(name, degrees, False) for name in ("a.mp4", "a.mkv") for degrees in (0, 90, 180, -90)]
    + [("a.mp4", 0, True)],  # Matroska holds turns alone
)
def test_frames_are_upright(tmp_path, name, degrees, mirrored):
    video = save_video(tmp_path / name, 3, set_up=lambda stream: stream.set_display_rotation(degrees, hflip=mirrored))
    stored = decode_all(video)
    upright = stored[:, :, ::-1] if mirrored else np.rot90(stored, degrees // 90, (1, 2))
    frames = read_frames(video, np.arange(3))
    assert frames.shape == upright.shape
    assert (frames == upright).all()
    info = probe_video(video)
    assert (info.height, info.width) == frames.shape[1:3]


def test_a_vp9_is_upright_though_another_decoder_reads_it(tmp_path):
    video = save_video(tmp_path / "a.mp4", 3, "libvpx-vp9", set_up=lambda stream: stream.set_display_rotation(90))
    assert (read_frames(video, np.arange(3)) == np.rot90(decode_all(video), 1, (1, 2))).all()


def test_an_oblique_picture_is_refused(tmp_path):
    video = save_video(tmp_path / "a.mp4", 3, set_up=lambda stream: stream.set_display_rotation(30))
    with pytest.raises(DataError, match=r"a\.mp4 is turned by no quarter of a circle; convert it"):
        probe_video(video)


def test_another_size_on_the_way_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.ts"), "w") as file:
        stream = file.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        other = av.CodecContext.create("libx264", "w")
        other.height, other.width, other.pix_fmt, other.time_base = 64, 96, "yuv420p", Fraction(1, 24)
        for encoder, numbers, size in ((stream, range(12), SIZE), (other, range(12, 24), (64, 96))):
            for number in (*numbers, None):
                frame = None
                if number is not None:
                    frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 24)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    file.mux(packet)
    assert numbers_of(read_frames(Video(tmp_path / "a.ts"), np.array([0, 11]))) == [0, 11]
    with pytest.raises(DataError, match=r"a\.ts changes its size from 64 x 48 to 96 x 64 at frame 12 \(0\.50 s\)"):
        read_frames(Video(tmp_path / "a.ts"), np.array([0, 20]))


def test_bytes_are_read_as_files_are(tmp_path):
    video = save_video(tmp_path / "a.mp4")
    held = Video(Path("tar/a.mp4"), data=video.path.read_bytes())
    assert (probe_video(held).timestamps == probe_video(video).timestamps).all()
    assert (read_frames(held, np.array([3, 40])) == read_frames(video, np.array([3, 40]))).all()


# Where decoding starts


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx265"), ("a.webm", "libvpx-vp9"), ("a.mp4", "libsvtav1")]
)
def test_jumps_to_keyframes_change_nothing(tmp_path, name, codec, monkeypatch):
    jumps, runs = [], []
    jump_to, decoded = _Run.jump_to, _Run._decoded
    monkeypatch.setattr(_Run, "jump_to", lambda run, key: (jumps.append(key.frame), jump_to(run, key))[1])
    monkeypatch.setattr(_Run, "_decoded", lambda run, packets: (runs.append(run), decoded(run, packets))[1])
    video = save_video(tmp_path / name, codec=codec)
    every = read_frames(video, EVERY)
    assert not jumps and len(runs) == 1
    for first in range(0, 48, 5):
        for last in (first + 1, 47):
            assert (read_frames(video, np.array([first, last])) == every[[first, last]]).all()
    # Each of the 20 readings began once, and once more at each jump: none had to begin again.
    assert len(runs) == 1 + 20 + len(jumps)
    assert len(set(jumps)) == 3 and 12 in jumps


def test_a_keyframe_that_is_none_costs_time_alone(tmp_path):
    whole = save_video(tmp_path / "whole.webm", codec="libvpx")

    def promoted(number, packet):
        packet.is_keyframe |= number == 30
        return packet

    video = copy_packets(whole, tmp_path / "a.webm", lambda number, packet: True, promoted)
    every = decode_all(whole)
    for wanted in ([31], [0, 33], [33, 47]):
        assert (read_frames(video, np.array(wanted)) == every[wanted]).all()


def test_what_looks_like_a_keyframe_in_h264_is_asked_again(tmp_path):
    # With intra refresh no picture stands alone; its container calls some keyframes all the same.
    video = save_video(tmp_path / "a.mp4", options={"x264-params": "intra-refresh=1:keyint=24:bframes=0"})
    with av.open(str(video.path)) as container:
        assert sum(packet.is_keyframe for packet in container.demux(video=0)) >= 2
    every = decode_all(video)
    for wanted in ([25], [0, 30], [47]):
        assert (read_frames(video, np.array(wanted)) == every[wanted]).all()


# Lists of frames


def test_a_list_of_pictures_is_a_video(tmp_path):
    paths = tuple(save_picture(tmp_path / f"{n}.png", (30, 20), colour) for n, colour in enumerate(("red", "blue")))
    for fps, second in ((None, 0.5), (4.0, 0.25)):
        info = probe_video(Video(tmp_path, frames=paths, fps=fps))
        assert (info.height, info.width) == (20, 30)
        assert info.timestamps.tolist() == [0.0, second]
    for decoder in ("pyav", "decord", "torchcodec"):
        frames = read_frames(Video(tmp_path, frames=paths), np.array([1]), decoder)
        assert frames.shape == (1, 20, 30, 3) and (frames == (0, 0, 255)).all()


def test_pictures_of_two_sizes_are_no_video(tmp_path):
    paths = (save_picture(tmp_path / "a.png", (30, 20)), save_picture(tmp_path / "b.png", (31, 20)))
    video = Video(tmp_path, frames=paths)
    said = r"a\.png has 30 x 20 pixels and .*b\.png has 31 x 20; give all frames of a video one size"
    with pytest.raises(DataError, match=said):
        probe_video(video)
    with pytest.raises(DataError, match=said):
        read_frames(video, np.array([0, 1]))


# Bounds


def test_more_pixels_than_memory_should_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 3 * 48 * 64 * 10)
    video = save_video(tmp_path / "a.mp4")
    assert read_frames(video, np.arange(10)).nbytes == module.MAX_BYTES
    for decoder in ("pyav", "decord"):
        with pytest.raises(DataError, match=r"a\.mp4: 11 frames of 64 x 48 are more than .*; take fewer \(model"):
            read_frames(video, np.arange(11), decoder)
    pictures = Video(tmp_path, frames=(save_picture(tmp_path / "a.png", (64, 48)),) * 11)
    with pytest.raises(DataError, match="11 frames of 64 x 48 are more than"):
        read_frames(pictures, np.arange(11))


def test_the_bound_is_8_gib():
    assert module.MAX_BYTES == 8_589_934_592


def test_a_file_that_changed_is_told(tmp_path):
    video = save_video(tmp_path / "a.mp4", 12)
    with pytest.raises(DataError, match=r"a\.mp4 has 12 frames and number 12 is asked for; leave files alone"):
        read_frames(video, np.array([0, 12]))


def test_nothing_stays_open_or_grows(tmp_path):
    video = save_video(tmp_path / "a.mp4", 14)
    broken = Video(tmp_path / "broken.mp4")
    broken.path.write_bytes(video.path.read_bytes()[:-40])
    me = psutil.Process()

    def read(times: int) -> None:
        for _ in range(times):
            probe_video(video)
            read_frames(video, np.array([0, 5]))
            with pytest.raises(DataError):
                read_frames(broken, np.array([0, 5]))

    read(40)
    files, threads, memory = me.num_fds(), me.num_threads(), me.memory_info().rss
    read(200)
    assert me.num_fds() <= files
    assert me.num_threads() <= threads
    assert me.memory_info().rss - memory < 8 * 2**20


def test_threads_read_at_once(tmp_path):
    videos = [
        save_video(tmp_path / f"a.{kind}", codec=codec) for kind, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9"))
    ]
    wanted = np.array([0, 20, 47])
    alone = [read_frames(video, wanted) for video in videos]
    found: list[bool] = []

    def work(turn: int) -> None:
        for _ in range(5):
            found.append(bool((read_frames(videos[turn % 2], wanted) == alone[turn % 2]).all()))

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 30


# Which frames


@pytest.mark.parametrize(
    ("total", "number", "chosen"),
    [
        (100, 5, [0, 25, 50, 74, 99]),  # 24.75, 49.5 (to even), 74.25
        (10, 4, [0, 3, 6, 9]),
        (10, 1, [0]),
        (3, 3, [0, 1, 2]),
        (3, 8, [0, 1, 2]),
        (1, 16, [0]),
    ],
)
def test_num_frames_are_spread_evenly(total, number, chosen):
    assert choose_frames(at_rate(30, total), VideoRule(num_frames=number)).tolist() == chosen


@pytest.mark.parametrize(
    ("rate", "total", "fps", "chosen"),
    [
        (30, 61, 2, [0, 15, 30, 45, 60]),
        (30, 60, 2, [0, 15, 30, 45]),
        (29.97, 90, 1, [0, 29, 59]),
        (24, 48, 0.5, [0]),
        (24, 49, 0.5, [0, 48]),
        (10, 5, 10, [0, 1, 2, 3, 4]),
        (10, 5, 1000, [0, 1, 2, 3, 4]),
        (10, 11, 2.5, [0, 4, 8]),
    ],
)
def test_fps_takes_what_is_shown_at_each_multiple(rate, total, fps, chosen):
    assert choose_frames(at_rate(rate, total), VideoRule(fps=fps)).tolist() == chosen


def test_fps_follows_the_true_times():
    # Three still seconds, then ten frames in one: no frame twice, none for a moment at which another is shown.
    info = lasting(0, 3, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8, 3.9, 4.0)
    assert choose_frames(info, VideoRule(fps=2)).tolist() == [0, 1, 6, 11]


def test_fps_forgives_matroskas_milliseconds():
    rounded = lasting(*np.round(np.arange(240) / 24, 3))
    assert choose_frames(rounded, VideoRule(fps=24)).tolist() == list(range(240))
    assert choose_frames(rounded, VideoRule(fps=3)).tolist() == list(range(0, 240, 8))


def test_fps_keeps_within_its_bounds():
    ten_seconds = at_rate(10, 101)
    assert len(choose_frames(ten_seconds, VideoRule(fps=1, min_frames=4, max_frames=11))) == 11
    assert choose_frames(ten_seconds, VideoRule(fps=1, max_frames=3)).tolist() == [0, 50, 100]
    assert choose_frames(ten_seconds, VideoRule(fps=0.1, min_frames=5)).tolist() == [0, 25, 50, 75, 100]
    assert choose_frames(at_rate(10, 3), VideoRule(fps=1, min_frames=8)).tolist() == [0, 1, 2]
    assert len(choose_frames(ten_seconds, VideoRule(fps=1e12))) == 101


def test_a_choice_is_whole_numbers_ascending():
    for rule in (VideoRule(num_frames=7), VideoRule(fps=3), VideoRule(fps=3, max_frames=4)):
        chosen = choose_frames(at_rate(25, 100), rule)
        assert chosen.dtype == np.int64 and (np.diff(chosen) > 0).all()


def test_no_rule_is_refused():
    with pytest.raises(ConfigError, match=r"which frames .*; set model\.video\.num_frames or model\.video\.fps"):
        choose_frames(at_rate(30, 10), VideoRule())


def test_lists_are_chosen_from_too(tmp_path):
    paths = tuple(save_picture(tmp_path / f"{n}.png") for n in range(9))
    info = probe_video(Video(tmp_path, frames=paths))
    assert choose_frames(info, VideoRule(fps=1)).tolist() == [0, 2, 4, 6, 8]
    assert choose_frames(info, VideoRule(num_frames=3)).tolist() == [0, 4, 8]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="only POSIX systems tell a scheduling policy")
def test_encoding_leaves_the_processor_to_others(tmp_path):
    """SVT-AV1 makes root's thread a real-time one, which a browser or a run started later would inherit."""
    before = os.sched_getscheduler(0)
    save_video(tmp_path / "a.mp4", codec="libsvtav1", num_frames=12)
    assert os.sched_getscheduler(0) == before == os.SCHED_OTHER
