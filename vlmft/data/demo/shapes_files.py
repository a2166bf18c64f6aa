"""Draw the shapes and write them as a LLaVA dataset: dataset.json, eval.json and images/*.png."""

import json
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (210, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 75, 205),
    "yellow": (235, 205, 40),
    "purple": (140, 50, 165),
    "black": (30, 30, 30),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "grey": (150, 150, 150),
    "pink": (250, 170, 195),
    "orange": (250, 160, 80),
}
KINDS = ("circle", "square", "triangle", "cross")

# Both are learned within a minute from random weights. The kind of shape, its place or a count are not: a tiny
# tower still guesses them after 1,000 steps of 16.
_QUESTIONS: dict[str, tuple[str, ...]] = {
    "shape": ("What colour is the shape?", "Which colour does the shape have?", "Name the colour of the shape."),
    "background": ("What colour is the background?", "Name the colour of the background."),
}
_ANSWERS = {"shape": tuple(COLOURS), "background": tuple(BACKGROUNDS)}
_PAIR_QUESTIONS = ("What colour is the shape in the first picture?", "What colour is the shape in the second picture?")

# Of twenty conversations thirteen have one turn, six have two turns, one has two pictures.
_FORMS = ("one", "two", "one") * 6 + ("one", "pair")

_COLOUR_JITTER = 18  # each channel of the shape's colour moves by up to this
_BACKGROUND_JITTER = 8
_SPECKLES = 10  # light grey dots on the background


@dataclass
class PictureWriter:
    """Draws one dataset's pictures; remembers them all, so that no two are equal."""

    folder: Path
    size: int
    random: np.random.Generator
    drawn: set[bytes] = field(default_factory=set)

    def picture(self, name: str, colour: str, background: str) -> str:
        """Draw until the picture is new; save it and return its path below the folder."""
        picture = self._draw(colour, background)
        while picture.tobytes() in self.drawn:
            picture = self._draw(colour, background)
        self.drawn.add(picture.tobytes())
        picture.save(self.folder / "images" / f"{name}.png", compress_level=1)
        return f"images/{name}.png"

    def _draw(self, colour: str, background: str) -> Image.Image:
        draws = self.random.integers
        ground = self._jittered(BACKGROUNDS[background], _BACKGROUND_JITTER)
        picture = Image.new("RGB", (self.size, self.size), ground)
        canvas = ImageDraw.Draw(picture)
        for x, y, grey in draws((0, 0, 190), (self.size, self.size, 225), (_SPECKLES, 3)).tolist():
            canvas.point((x, y), (grey, grey, grey))
        fill = self._jittered(COLOURS[colour], _COLOUR_JITTER)
        radius = int(draws(self.size // 4, self.size * 2 // 5 + 1))
        x, y = draws(radius, self.size - radius, 2).tolist()
        _draw_shape(canvas, KINDS[int(draws(len(KINDS)))], x, y, radius, fill)
        return picture

    def _jittered(self, colour: tuple[int, int, int], by: int) -> tuple[int, ...]:
        moved = np.array(colour) + self.random.integers(-by, by + 1, 3)
        return tuple(np.clip(moved, 0, 255).tolist())


def _draw_shape(canvas: ImageDraw.ImageDraw, kind: str, x: int, y: int, radius: int, fill: tuple[int, ...]) -> None:
    left, top, right, bottom = x - radius, y - radius, x + radius - 1, y + radius - 1
    arm = radius // 3
    if kind == "circle":
        canvas.ellipse((left, top, right, bottom), fill)
    elif kind == "square":
        canvas.rectangle((left, top, right, bottom), fill)
    elif kind == "triangle":
        canvas.polygon([(x, top), (left, bottom), (right, bottom)], fill)
    else:
        canvas.rectangle((x - arm, top, x + arm, bottom), fill)
        canvas.rectangle((left, y - arm, right, y + arm), fill)


class _Conversations:
    """Makes conversations whose last answers are balanced: for each wording, every answer comes equally often."""

    def __init__(self, writer: PictureWriter, prefix: str) -> None:
        self.writer, self.prefix = writer, prefix
        self.counters: dict[tuple[str, ...], count[int]] = {}

    def make(self, number: int) -> dict[str, Any]:
        """Write one conversation's pictures and return its row."""
        form, name = _FORMS[number % len(_FORMS)], f"{self.prefix}-{number:05d}"
        images, turns = self._pair(name) if form == "pair" else self._single(name, form)
        spoken = [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(turns)]
        spoken[0]["value"] = "<image>\n" * len(images) + spoken[0]["value"]
        return {"id": name, "image": images[0] if len(images) == 1 else images, "conversations": spoken}

    def _single(self, name: str, form: str) -> tuple[list[str], list[str]]:
        asked = self._turn_of(("asked", form), ("shape", "background"))
        question = self._turn_of(("question", form, asked), _QUESTIONS[asked])
        truth = {thing: self._any(answers) for thing, answers in _ANSWERS.items()}
        truth[asked] = self._turn_of(("answer", question), _ANSWERS[asked])
        turns = [question, truth[asked]]
        if form == "two":
            other = "background" if asked == "shape" else "shape"
            turns = [self._any(_QUESTIONS[other]), truth[other], *turns]
        return [self.writer.picture(name, truth["shape"], truth["background"])], turns

    def _pair(self, name: str) -> tuple[list[str], list[str]]:
        question = self._turn_of(("question", "pair"), _PAIR_QUESTIONS)
        answer = self._turn_of(("answer", question), tuple(COLOURS))
        colours = [answer, self._any(tuple(colour for colour in COLOURS if colour != answer))]
        if question == _PAIR_QUESTIONS[1]:
            colours.reverse()
        pictures = [
            self.writer.picture(name + letter, colour, self._any(tuple(BACKGROUNDS)))
            for letter, colour in zip("ab", colours, strict=True)
        ]
        return pictures, [question, answer]

    def _turn_of(self, counter: tuple[str, ...], choices: tuple[str, ...]) -> str:
        return choices[next(self.counters.setdefault(counter, count())) % len(choices)]

    def _any(self, choices: tuple[str, ...]) -> str:
        return choices[int(self.writer.random.integers(len(choices)))]


def write_shapes(folder: Path, train_samples: int, eval_samples: int, image_size: int, seed: int) -> None:
    """Fill `folder`. The same parameters give the same files, to the byte with the same Pillow."""
    (folder / "images").mkdir()
    writer = PictureWriter(folder, image_size, np.random.default_rng(seed))
    for file, prefix, samples in (("dataset.json", "train", train_samples), ("eval.json", "eval", eval_samples)):
        conversations = _Conversations(writer, prefix)
        rows = [conversations.make(number) for number in range(samples)]
        (folder / file).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
