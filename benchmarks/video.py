"""What reading frames of a video costs, and whether what comes is right: vlmft with each decoder beside each library.

20 s of 720p H.264 with a keyframe every 250 frames, 16 and 40 frames spread evenly, the readers in turns. Then files
on which decoders go wrong: what each library gives as it is commonly used, and what vlmft gives with it. A frame that
differs from the intact file's, or is missing, without an error, counts as wrong.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
from common import Spread, provenance, show, write_result
from rich.console import Console

from vlmft.config.media import VideoRule
from vlmft.data.media.video import choose_frames, probe_video, read_frames
from vlmft.errors import ConfigError
from vlmft.types import Video

BOUND_RATIO = 1.5
"""vlmft's strict reading by PyAV over decord alone, which looks for no damage."""

Read = Callable[[Path, Sequence[int]], np.ndarray]


def main() -> int:
    """Measure, print, write benchmarks/results/video.json; return 1 where vlmft is wrong or the bound is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="times each reader reads (default: 11)")
    parser.add_argument("--quick", action="store_true", help="a small video, 2 rounds, and no result file")
    options = parser.parse_args()
    made = provenance()
    seconds, size = (2, (120, 160)) if options.quick else (20, (720, 1280))
    with tempfile.TemporaryDirectory() as folder:
        path = encode(Path(folder) / "video.mp4", 30 * seconds, size)
        speed = {number: measure(path, number, 2 if options.quick else options.rounds) for number in (16, 40)}
        cases = outcomes(Path(folder))
    ratio = statistics.median(speed[16]["vlmft, pyav"]) / statistics.median(speed[16]["decord"])
    for number, taken in speed.items():
        show(
            f"seconds to read {number} frames of {seconds} s of {size[1]} x {size[0]}",
            ("reader", "median", "p10 to p90", "mean"),
            [(name, *Spread.of(values).cells()) for name, values in taken.items()],
            [],
        )
    show(
        "what comes of files on which decoders go wrong",
        ("reader", *cases),
        [(name, *(cases[case][name] for case in cases)) for name in speed[16]],
        [f"vlmft, pyav takes {ratio:.2f} times decord's time for 16 frames; at most {BOUND_RATIO} are allowed"],
    )
    if not options.quick:
        figures = {
            f"frames_{number}": {name: Spread.of(values) for name, values in taken.items()}
            for number, taken in speed.items()
        }
        write_result(
            "video",
            {
                "command": "python benchmarks/video.py",
                "unit": "s",
                "video": f"{seconds} s of {size[1]} x {size[0]}, 30 frames a second, H.264, keyframes 250 frames apart",
                **figures,
                "outcomes": cases,
                "ratio_to_decord": ratio,
                "bound_ratio": BOUND_RATIO,
            },
            made,
        )
    wrong = [name for case in cases.values() for name, said in case.items() if "vlmft" in name and said == "wrong"]
    return int(bool(wrong) or (ratio > BOUND_RATIO and not options.quick))


def readers() -> dict[str, Read]:
    """Each library as it is commonly used, and vlmft with each; TorchCodec where it can decode."""
    found: dict[str, Read] = {"pyav": by_pyav, "decord": by_decord}
    try:
        import_module("vlmft.data.media.video_decoders")._torchcodec()
        found["torchcodec"] = by_torchcodec
    except ConfigError as error:
        Console().print(f"without TorchCodec: {error}", markup=False)
    return found | {f"vlmft, {name}": by_vlmft(name) for name in found}


def by_pyav(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Decode from the start, and count."""
    wanted, frames = set(indices), []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number == indices[-1]:
                break
    return np.stack(frames)


def by_decord(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Its own batches."""
    decord = import_module("decord")
    decord.logging.set_level(decord.logging.QUIET)
    return decord.VideoReader(str(path)).get_batch(list(indices)).asnumpy()


def by_torchcodec(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Its own batches, with its defaults."""
    decoder = import_module("torchcodec.decoders").VideoDecoder(str(path), dimension_order="NHWC")
    return decoder.get_frames_at(list(indices)).data.numpy()


def by_vlmft(decoder: Any) -> Read:
    """`read_frames` with one decoder."""
    return lambda path, indices: read_frames(Video(path), np.array(indices), decoder)


def measure(path: Path, number: int, rounds: int) -> dict[str, list[float]]:
    """Let each reader read in turns, once unmeasured, then `rounds` times; return seconds.

    Raises:
        RuntimeError: the readers' pixels differ.
    """
    indices = choose_frames(probe_video(Video(path)), VideoRule(num_frames=number)).tolist()
    taken: dict[str, list[float]] = {name: [] for name in readers()}
    expected = by_pyav(path, indices)
    for turn in range(rounds + 1):
        for name, read in readers().items():
            start = time.perf_counter()
            frames = read(path, indices)
            if turn:
                taken[name].append(time.perf_counter() - start)
            elif not np.array_equal(frames, expected):
                raise RuntimeError(f"{name} gives other pixels than PyAV")
    return taken


def outcomes(folder: Path) -> dict[str, dict[str, str]]:
    """Case -> reader -> right, wrong, or error."""
    size, some, every = (120, 160), [0, 5, 13, 30, 47], list(range(48))
    good = encode(folder / "good.mp4", 48, size, keyframes=12)

    damaged, data = folder / "damaged.mp4", bytearray(good.read_bytes())
    at = (data.index(b"mdat") + data.rindex(b"moov")) // 2
    data[at : at + 200] = np.random.default_rng(0).integers(0, 256, 200, dtype=np.uint8).tobytes()
    damaged.write_bytes(data)

    cut = encode(folder / "cut.mkv", 48, size, keyframes=12)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 5])

    ticks = [*range(24), *range(24, 24 + 24 * 8, 8)]  # 60 frames a second, then 7.5
    uneven = encode(folder / "uneven.mp4", 48, size, keyframes=12, ticks=ticks)
    shown = [max(i for i in every if ticks[i] <= 30 * half) for half in range(ticks[-1] // 30 + 1)]

    turned = encode(folder / "turned.mp4", 48, size, keyframes=12, degrees=90)
    groups = encode(folder / "groups.mp4", 48, size, keyframes=12, codec="libx265")

    def judge(name: str, read: Read) -> dict[str, str]:
        def counted() -> list[int]:
            return np.linspace(0, count(name, cut) - 1, 16).round().astype(int).tolist()

        def at_2_fps() -> list[int]:
            if name.startswith("vlmft"):
                return choose_frames(probe_video(Video(uneven)), VideoRule(fps=2)).tolist()
            return by_average_rate(uneven, len(shown))

        return {
            "damaged bytes": told(read, damaged, lambda: every, by_pyav(good, every)),
            "cut MKV": told(read, cut, counted, by_pyav(good, np.linspace(0, 47, 16).round().astype(int).tolist())),
            "variable rate": told(read, uneven, at_2_fps, by_pyav(uneven, shown)),
            "rotation": told(read, turned, lambda: some, np.rot90(by_pyav(turned, some), 1, (1, 2))),
            "H.265": told(read, groups, lambda: some, by_pyav(groups, some)),
        }

    judged = {name: judge(name, read) for name, read in readers().items()}
    return {case: {name: said[case] for name, said in judged.items()} for case in next(iter(judged.values()))}


def told(read: Read, path: Path, choose: Callable[[], list[int]], expected: np.ndarray) -> str:
    """What a reader does with a file whose right frames are `expected`."""
    try:
        return "right" if np.array_equal(read(path, choose()), expected) else "wrong"
    except Exception:  # whatever a library raises, it is not silent
        return "error"


def count(name: str, path: Path) -> int:
    """How many frames a reader says that a file has."""
    if name == "pyav":
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    if name == "decord":
        return len(import_module("decord").VideoReader(str(path)))
    if name == "torchcodec":
        return len(import_module("torchcodec.decoders").VideoDecoder(str(path)))
    return len(probe_video(Video(path)).timestamps)


def by_average_rate(path: Path, number: int) -> list[int]:
    """The frames at 0, 0.5, 1, ... s as they are commonly counted: by the average rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        return [min(round(half * rate / 2), stream.frames - 1) for half in range(number)]


def encode(
    path: Path,
    num_frames: int,
    size: tuple[int, int],
    *,
    keyframes: int = 250,
    codec: str = "libx264",
    ticks: Sequence[int] | None = None,
    degrees: int = 0,
) -> Path:
    """Write a moving scene, 30 frames a second, or each frame at its tick of 1/60 s; no two frames are alike."""
    height, width = size
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    scene = cells.repeat(8, 0).repeat(8, 1)
    options = {
        "libx264": {"preset": "fast", "sc_threshold": "0"},
        "libx265": {"preset": "fast", "x265-params": f"log-level=none:scenecut=0:keyint={keyframes}:open-gop=1"},
    }[codec]
    tick = Fraction(1, 60 if ticks is not None else 30)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.gop_size, stream.codec_context.time_base = keyframes, tick
        if degrees:
            stream.set_display_rotation(degrees)
        for number in range(num_frames):
            picture = np.roll(scene, 3 * number, axis=1)
            picture[: height // 8] = np.array((255, 5 * number % 256, 255 - 3 * number % 256))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = ticks[number] if ticks is not None else number, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    sys.exit(main())
