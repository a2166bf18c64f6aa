"""Samples that a page is made of: boxes, several pictures, videos, other people's markup, and some that are bad."""

import json
from pathlib import Path
from typing import Any

from tests.support import compose, encoding, save_noise
from vlmft.data import DatasetSpec, LLaVADataset
from vlmft.data.run_data import open_run_data
from vlmft.encoding.encoder import Encoder
from vlmft.encoding.time_limit import TimeLimit
from vlmft.previewing.album import Album
from vlmft.previewing.page import head_of, render
from vlmft.previewing.samples import ShownSample, show
from vlmft.previewing.visits import by_id

EVIL_FILE = "\"'><img src=x onerror=alert(1)>&.png"
EVIL_ID = "<b>7</b>\"' onmouseover=alert(2)"
EVIL_TEXT = "</mark></div><script>document.title = 'taken'</script>\u2028 &lt; \" onclick=\"alert(3)\" '"
BOX = '{"bbox_2d": [28, 14, 56, 42]} and {"point_2d": [14, 7]}'
"""In pixels of a picture of 112 x 56."""

SUPERVISED = {
    "several": ["They are equal.\n\n  Both.<|im_end|>", "yes<|im_end|>"],
    "video": ["nothing 你 🙂<|im_end|>"],
    "boxes": [f"{BOX}<|im_end|>"],
    "none": ["Hi<|im_end|>"],
    EVIL_ID: [f"{EVIL_TEXT}<|im_end|>"],
}
"""By id, what is trained of each sample that is not bad."""
BAD = ("damaged", "missing")


def write_samples(folder: Path) -> Path:
    """Write the file and its media; return its path."""
    save_noise(folder / "a.png", 56, 112, seed=1)
    save_noise(folder / "b.png", 84, 56, seed=2)
    save_noise(folder / EVIL_FILE, 56, 56, seed=3)
    for number in range(5):
        save_noise(folder / "clip" / f"{number}.png", 56, 84, seed=number)
    (folder / "damaged.png").write_bytes(b"no picture")

    def row(name: str, *said: str, **media: Any) -> dict[str, Any]:
        turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
        return {"id": name, "conversations": turns} | media

    rows = [
        row(
            "several",
            "<image>\n<image>\nCompare.",
            "They are equal.\n\n  Both.",
            "Sure?",
            "yes",
            image=["a.png", "b.png"],
        ),
        row("video", "<video>\nWhat happens?", "nothing 你 🙂", video="clip"),
        row("boxes", "<image>\nWhere is it?", BOX, image="a.png"),
        row("none", "Hello", "Hi"),
        row(EVIL_ID, f"<image>\n{EVIL_TEXT}", EVIL_TEXT, image=EVIL_FILE),
        row("damaged", "<image>\nWhat <i>is</i> it?", "red", image="damaged.png"),
        row("missing", "<image>\nWhat is it?", "red", image="gone <script>.png"),
    ]
    path = folder / "dataset.json"
    path.write_text(json.dumps(rows))
    return path


def dataset(path: Path, **fields: Any) -> dict[str, DatasetSpec]:
    """The file as a run's only entry, whose boxes are in pixels of the files."""
    return {"mine": LLaVADataset(data_path=path, coordinates="pixels", **fields)}


def encoder() -> Encoder:
    """As a run has it."""
    plain = encoding()[0]
    return Encoder(plain.family, plain.processor, 8192, TimeLimit(60))


def shown(path: Path, *ids: str, album: Album | None = None, **fields: Any) -> list[ShownSample]:
    """Samples of the file, in the order of their ids, as a page shows them."""
    data = open_run_data(dataset(path, **fields), {}, 0.0, seed=0)
    return show(by_id(data, [f"mine/{name}" for name in ids]), encoder(), album or Album())


def page_of(samples: list[ShownSample], album: Album, path: Path, **fields: Any) -> str:
    """The page that shows them."""
    config = compose().model_copy(update={"dataset": dataset(path, **fields)})
    data = open_run_data(config.dataset, {}, 0.0, seed=0)
    return render(head_of(config, data, "some <samples>"), samples, album)
