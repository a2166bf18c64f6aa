"""Write scikit-learn's digits as a LLaVA dataset: dataset.json, eval.json and images/*.png."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmft.errors import ConfigError

_QUESTION = "Which digit is written here?"
_DIGITS = 10


def write_digits(folder: Path, eval_samples: int, image_size: int) -> None:
    """Fill `folder`: `eval_samples // 10` of each digit are held out, the same ones in every run.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    pixels, labels = _load()
    held_out = _held_out(pixels, labels, eval_samples // _DIGITS)
    (folder / "images").mkdir()
    for number, picture in enumerate(pixels):
        large = Image.fromarray(picture).resize((image_size, image_size), Image.Resampling.BICUBIC)
        large.save(folder / "images" / f"{number:04d}.png", compress_level=1)
    for file, chosen in (("dataset.json", ~held_out), ("eval.json", held_out)):
        rows = [_row(number, int(labels[number])) for number in np.flatnonzero(chosen).tolist()]
        (folder / file).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _load() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the pictures [1797, 8, 8], dark ink on white as uint8, and the digit of each."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ConfigError(
            "dataset digits needs scikit-learn, which is not installed; pip install 'vlmft[demo]'"
        ) from error
    digits = load_digits()
    ink = digits.images  # 0 (paper) to 16 (ink)
    return np.round(255 - ink * (255 / 16)).astype(np.uint8), digits.target


def _held_out(
    pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], per_digit: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Draw by hash of the pixels, so that equal pictures always stand in the same half."""
    digests = [hashlib.blake2b(picture.tobytes(), digest_size=8).digest() for picture in pixels]
    held_out = np.zeros(len(labels), dtype=np.bool_)
    for digit in range(_DIGITS):
        distinct = sorted({digests[i] for i in np.flatnonzero(labels == digit).tolist()})[:per_digit]
        held_out |= np.isin(np.array(digests, dtype="V8"), np.array(distinct, dtype="V8"))
    return held_out


def _row(number: int, digit: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{_QUESTION}"}, {"from": "gpt", "value": str(digit)}]
    return {"id": f"{number:04d}", "image": f"images/{number:04d}.png", "conversations": turns}
