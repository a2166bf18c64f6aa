"""`python -m vlmft.clips`: long videos cut into clips."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import yaml

from tests.annotation.making import save_video
from vlmft.clips import ClipsConfig, clips
from vlmft.config.app import run_app

Typed = Callable[..., tuple[int, str, str]]
HOW = "seconds=1 cut=exact rest=join min_seconds=0.5 quality=18 encoder=libx264"


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """`python -m vlmft.clips videos=long out=clips seconds=1 *words`: code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLMFT_PATH", raising=False)

    def type_(*words: str) -> tuple[int, str, str]:
        code = run_app("clips", ClipsConfig, clips, argv=["videos=long", "out=clips", "seconds=1", *words])
        return code, *capsys.readouterr()

    return type_


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Two videos, of 2.3 and 1.8 s, one in a folder of its own."""
    save_video(tmp_path / "long/b.mp4", 23)
    save_video(tmp_path / "long/a/c.mkv", 18)
    (tmp_path / "long/notes.txt").write_text("")
    return tmp_path / "long"


def lines() -> list[Any]:
    return [json.loads(line) for line in Path("clips/clips.jsonl").read_text().splitlines()]


def written() -> list[str]:
    return sorted(str(path.relative_to("clips")) for path in Path("clips").rglob("*") if path.is_file())


def counts(out: str) -> list[str]:
    """The table's row: before, now, damaged, clips, frames, joined, kept, dropped."""
    (row,) = [line for line in out.splitlines() if line.startswith("│")]
    return [cell.strip() for cell in row.strip("│").split("│")]


def frames(path: str) -> int:
    with av.open(str(Path("clips") / path)) as file:
        return sum(1 for _ in file.decode(video=0))


def test_clips_and_where_each_comes_from(typed: Typed, long: Path) -> None:
    code, out, err = typed()
    assert (code, err) == (0, "")
    assert lines() == [
        {"clip": "a/c-0001.mp4", "source": "a/c.mkv", "start_s": 0.0, "end_s": 1.0, "frames": 10, "how": HOW},
        {"clip": "a/c-0002.mp4", "source": "a/c.mkv", "start_s": 1.0, "end_s": 1.8, "frames": 8, "how": HOW},
        {"clip": "b-0001.mp4", "source": "b.mp4", "start_s": 0.0, "end_s": 1.0, "frames": 10, "how": HOW},
        {"clip": "b-0002.mp4", "source": "b.mp4", "start_s": 1.0, "end_s": 2.3, "frames": 13, "how": HOW},
    ]
    assert written() == ["a/c-0001.mp4", "a/c-0002.mp4", "b-0001.mp4", "b-0002.mp4", "clips.jsonl"]
    assert [frames(line["clip"]) for line in lines()] == [10, 8, 10, 13]
    assert counts(out) == ["0", "2", "0", "4", "41", "1", "0", "0"]
    assert "no sound is kept" in out


def test_the_same_command_cuts_what_is_new_and_leaves_the_rest(typed: Typed, long: Path) -> None:
    typed("cut=keyframe", "rest=drop")
    stamps = {name: (Path("clips") / name).stat().st_mtime_ns for name in written()}
    save_video(long / "a/a.mp4", 11)
    code, out, err = typed("cut=keyframe", "rest=drop")
    assert (code, err, counts(out)) == (0, "", ["2", "1", "0", "1", "10", "0", "0", "1 (1 frames)"])
    assert [line["clip"] for line in lines()] == [
        "a/a-0001.mp4",
        "a/c-0001.mp4",
        "a/c-0002.mp4",
        "b-0001.mp4",
        "b-0002.mp4",
    ]
    del stamps["clips.jsonl"]
    assert all((Path("clips") / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    code, _, err = typed("cut=exact")
    assert code == 2 and err == (
        f"error: out={Path('clips').absolute()}: holds clips of seconds=1 cut=keyframe rest=drop min_seconds=0.5, and "
        f"this command says {HOW}; give the same choices, or another out\n"
    )


def test_a_damaged_video_is_listed_and_the_rest_goes_on(typed: Typed, long: Path) -> None:
    (long / "a/c.mkv").write_bytes((long / "a/c.mkv").read_bytes()[:3000])
    (long / "z.mp4").write_bytes(b"")
    code, out, err = typed()
    assert code == 2 and counts(out) == ["0", "1", "2", "2", "23", "1", "0", "0"]
    first, second = err.splitlines()
    assert first.startswith(f"error: {long}/a/c.mkv is cut off: it has 3000 bytes and its header promises at least ")
    assert second.startswith(f"error: {long}/z.mp4 is empty; ")
    assert written() == ["b-0001.mp4", "b-0002.mp4", "clips.jsonl"]


def test_a_killed_command_goes_on(typed: Typed, long: Path, tmp_path: Path) -> None:
    save_video(long / "z.avi", 120, size=(320, 240))
    words = ["videos=long", "out=clips", "seconds=1", "workers=1"]
    process = subprocess.Popen([sys.executable, "-m", "vlmft.clips", *words], cwd=tmp_path, env=dict(os.environ))
    end = time.monotonic() + 60
    while not list(tmp_path.glob("clips/.z.partial/z-0002.mp4")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines()
    assert {line["source"] for line in before} == {"a/c.mkv", "b.mp4"}
    # As if it had been killed between a video's lines and its clips' names:
    (tmp_path / "clips/.b.partial").mkdir()
    (tmp_path / "clips/b-0002.mp4").rename(tmp_path / "clips/.b.partial/b-0002.mp4")
    save_video(long / "z.avi", 12)
    code, out, err = typed()
    assert (code, err) == (0, "") and counts(out)[:2] == ["2", "1"]
    assert lines()[:4] == before
    assert written() == ["a/c-0001.mp4", "a/c-0002.mp4", "b-0001.mp4", "b-0002.mp4", "clips.jsonl", "z-0001.mp4"]
    assert [frames(line["clip"]) for line in lines()] == [10, 8, 10, 13, 12]


def test_ctrl_c_ends_the_processes_and_keeps_what_is_whole(long: Path, tmp_path: Path) -> None:
    save_video(long / "z.avi", 120, size=(320, 240))
    words = ["videos=long", "out=clips", "seconds=1", "workers=1"]
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-m", "vlmft.clips", *words], cwd=tmp_path, stdout=pipe, stderr=pipe)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("clips/.z.partial/z-0002.mp4")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, b"error: interrupted\n")
    names = sorted(str(path.relative_to(tmp_path / "clips")) for path in (tmp_path / "clips").rglob("*"))
    assert names == ["a", "a/c-0001.mp4", "a/c-0002.mp4", "b-0001.mp4", "b-0002.mp4", "clips.jsonl"]


def test_nothing_is_overwritten(typed: Typed, long: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/b-0007.mp4").write_text("mine")
    (tmp_path / "clips/other-0001.mp4").write_text("mine")
    code, _, err = typed()
    assert code == 2 and err == (
        f"error: {tmp_path}/clips/b-0007.mp4: exists, though clips.jsonl does not name it, and nothing is overwritten; "
        "move it away, or choose another out\n"
    )
    (tmp_path / "clips/clips.jsonl").write_text('{"clip": "x.mp4"}\n')
    code, _, err = typed()
    assert code == 2 and err == (
        f"error: {tmp_path}/clips/clips.jsonl:1: has no source, so this command did not write it; choose another out\n"
    )


def test_clips_below_the_videos_are_no_videos(typed: Typed, long: Path) -> None:
    assert typed("out=long/clips")[0] == 0
    code, out, _ = typed("out=long/clips")
    assert code == 0 and counts(out)[:4] == ["2", "0", "0", "0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["videos=none"], "videos=none: is no folder; give the one that the videos lie in"),
        (["out=long"], "out=long: is the videos' own folder; choose another"),
        (["out=long/b.mp4"], "out=long/b.mp4: is a file, not a folder; choose another name"),
        (["videos=empty"], "empty: holds no video, by the endings of its files' names"),
        (["min_seconds=2"], "min_seconds=2 is more than seconds=1; change one of the two"),
        (["seconds=0"], "seconds: Input should be greater than 0 (found 0)"),
        (["quality=52"], "quality: Input should be less than or equal to 51 (found 52)"),
        (["cut=fast"], "cut: Input should be 'exact' or 'keyframe' (found 'fast')"),
        (["lenght=3"], "lenght: unknown key"),
    ],
)
def test_bad_choices(typed: Typed, long: Path, words: list[str], said: str) -> None:
    Path("empty").mkdir()
    code, out, err = typed(*words)
    assert (code, out) == (2, "") and said in err, err
    assert not Path("clips/clips.jsonl").exists()


def test_two_videos_whose_clips_would_have_one_name(typed: Typed, long: Path) -> None:
    save_video(long / "b.mkv", 3)
    code, _, err = typed()
    assert code == 2 and err.splitlines() == [
        f"error: videos: {name}: its clips would have the names of another's; rename it" for name in ("b.mkv", "b.mp4")
    ]


def test_no_lossless_quality_without_x264(typed: Typed, long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmft.annotation.clip_encoder.best_encoder", lambda: "mpeg4")
    code, _, err = typed("quality=0")
    assert code == 2
    assert err == "error: quality=0: this build of PyAV has no libx264, which alone is lossless; give 1 or more\n"


def test_each_value_stands_in_the_yaml() -> None:
    shown = yaml.safe_load((Path(__file__).parents[1] / "conf/clips.yaml").read_text())
    assert set(shown) - {"defaults", "hydra"} == set(ClipsConfig.model_fields)
    assert all(field.is_required() for field in ClipsConfig.model_fields.values())
