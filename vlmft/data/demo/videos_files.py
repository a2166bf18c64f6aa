"""Draw the moving squares and write them as H.264 files, with questions or with structured captions beside them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from vlmft.data.demo.shapes_files import BACKGROUNDS, COLOURS
from vlmft.data.demo.tasks_files import balanced

QUESTIONS = {
    "start": "What colour is the square at the start?",
    "end": "What colour is the square at the end?",
    "background": "What colour is the background?",
}
# Nothing asks for the direction: a tiny model still guesses it after 300 steps of 16, when it knows the colours.
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # of the square's (row, column)
EVENTS = ("colour_change", "none")
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "caption": {"type": "string", "description": "what happens, in a sentence"},
        "event": {"enum": [*EVENTS]},
        "colours": {
            "type": "array",
            "items": {"enum": [*COLOURS]},
            "uniqueItems": True,
            "description": "every colour that the square has",
        },
        "background": {"enum": [*BACKGROUNDS]},
    },
    "required": ["caption", "event", "colours", "background"],
    "additionalProperties": False,
}

_FPS = 4
_FRAMES = (8, 16)
_JITTER = 12  # each channel of a colour moves by up to this

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Scene:
    """What happens in one video."""

    start: str
    end: str
    background: str
    direction: str

    @property
    def event(self) -> str:
        """Whether the square changes its colour."""
        return "colour_change" if self.start != self.end else "none"

    @property
    def caption(self) -> str:
        """What the square does, in a sentence."""
        return f"A {self.start} square {'stays' if self.start == self.end else 'turns'} {self.end}."


@dataclass
class VideoWriter:
    """Draws one dataset's videos; remembers them all, so that no two are equal."""

    folder: Path
    size: int
    random: np.random.Generator
    drawn: set[bytes] = field(default_factory=set)

    def video(self, name: str, scene: Scene) -> str:
        """Draw until the video is new; save it and return its path below the folder."""
        frames = self._draw(scene)
        while frames.tobytes() in self.drawn:
            frames = self._draw(scene)
        self.drawn.add(frames.tobytes())
        _encode(self.folder / "videos" / f"{name}.mp4", frames)
        return f"videos/{name}.mp4"

    def _draw(self, scene: Scene) -> Pixels:
        """The frames [T, H, W, 3]: the square goes from one edge to the other, its colour changes at half time."""
        draws = self.random.integers
        number = int(draws(_FRAMES[0], _FRAMES[1] + 1))
        side = int(draws(self.size // 3, self.size // 2))
        way = self.size - side
        across = int(draws(0, way + 1))
        frames = np.empty((number, self.size, self.size, 3), np.uint8)
        frames[:] = self._jittered(BACKGROUNDS[scene.background])
        inks = [self._jittered(COLOURS[scene.start]), self._jittered(COLOURS[scene.end])]
        if scene.start == scene.end:
            inks[1] = inks[0]
        down, right = DIRECTIONS[scene.direction]
        for time in range(number):
            gone = way * time // (number - 1)
            along = gone if down + right > 0 else way - gone
            top, left = (along, across) if down else (across, along)
            frames[time, top : top + side, left : left + side] = inks[2 * time // number]
        return frames

    def _jittered(self, colour: tuple[int, int, int]) -> Pixels:
        moved = np.array(colour) + self.random.integers(-_JITTER, _JITTER + 1, 3)
        return np.clip(moved, 0, 255).astype(np.uint8)


def write_questions(folder: Path, train_videos: int, eval_videos: int, image_size: int, seed: int) -> None:
    """Fill `folder` with dataset.json, eval.json and videos/*.mp4, three rows a video.

    The same parameters give the same files, to the byte with the same PyAV.
    """
    for file, videos in _videos(folder, ("dataset.json", "eval.json"), (train_videos, eval_videos), image_size, seed):
        rows = [
            {
                "id": f"{Path(path).stem}-{asked}",
                "video": path,
                "conversations": _turns(question, getattr(scene, asked)),
            }
            for path, scene in videos
            for asked, question in QUESTIONS.items()
        ]
        (folder / file).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def write_captions(folder: Path, train_videos: int, eval_videos: int, image_size: int, seed: int) -> None:
    """Fill `folder` with metadata.jsonl, eval.jsonl, schema.json and videos/*.mp4. As `write_questions`."""
    files, numbers = ("metadata.jsonl", "eval.jsonl"), (train_videos, eval_videos)
    for file, videos in _videos(folder, files, numbers, image_size, seed):
        rows = [{"video": path, **caption_of(scene)} for path, scene in videos]
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "schema.json").write_text(json.dumps(SCHEMA, indent=1) + "\n", encoding="utf-8")


def caption_of(scene: Scene) -> dict[str, Any]:
    """The fields of `SCHEMA` for one video."""
    return {
        "caption": scene.caption,
        "event": scene.event,
        "colours": list(dict.fromkeys((scene.start, scene.end))),
        "background": scene.background,
    }


def _videos(
    folder: Path, files: tuple[str, str], numbers: tuple[int, int], image_size: int, seed: int
) -> Iterator[tuple[str, list[tuple[str, Scene]]]]:
    """Write the videos of each file; their colours and directions are balanced, each for itself."""
    (folder / "videos").mkdir()
    random = np.random.default_rng(seed)
    writer = VideoWriter(folder, image_size, random)
    choices = (tuple(COLOURS), tuple(COLOURS), tuple(BACKGROUNDS), tuple(DIRECTIONS))
    for file, prefix, number in zip(files, ("train", "eval"), numbers, strict=True):
        drawn = zip(*(balanced(random, names, number) for names in choices), strict=True)
        scenes = [Scene(*names) for names in drawn]
        yield file, [(writer.video(f"{prefix}-{i:05d}", scene), scene) for i, scene in enumerate(scenes)]


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": answer}]


def _encode(path: Path, frames: Pixels) -> None:
    with av.open(str(path), "w") as file:
        # A constant quantiser: x264's rate control (mbtree) gives other bytes now and then, even in one thread.
        stream = file.add_stream("libx264", rate=_FPS, options={"preset": "veryfast", "qp": "18"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1  # threads divide the bits by chance
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
