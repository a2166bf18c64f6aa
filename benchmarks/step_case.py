"""What step.py trains on and with: pictures and texts on disk, and two checkpoints.

The skewed mix is that of waste.py with every length divided by 16, so that a CPU computes a step in seconds: a
picture's sides by 4, a text's tokens by 16. TRL's trainer takes no video: in its place stand as many pictures as the
video has slices. `equal` data has one picture of one size and a text of one length in every sample.
"""

import json
import math
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import composed
from waste import PICTURES

SHRINK = 4
"""Of a picture's sides; its tokens, and those of texts, are divided by the square."""
WORDS = ("the", "a", "red", "blue", "green", "big", "small", "square", "circle", "shape", "is", "of", "what", "left")
SUPERVISED = 0.4
"""Share of a text's words that stand in the answer."""
PIXELS = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}
TEMPLATE = """\
{%- for message in messages %}
    {{- '' if loop.first else '\\n' }}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}{% endif %}
            {%- if part.type == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}{% endif %}
            {%- if part.type == 'text' %}{{- part.text }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '\\n<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""A conversation ends with its last end token, so that all sides learn the same tokens."""

MID_TEXT = {
    "hidden_size": 640,
    "intermediate_size": 3392,
    "num_hidden_layers": 11,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "vocab_size": 16_384,
}
MID_VISION = {
    "hidden_size": 240,
    "intermediate_size": 640,
    "depth": 12,
    "num_heads": 6,
    "fullatt_block_indexes": [5, 11],
}
"""With `MID_TEXT` 105 M weights in the ratios of the 7B model: the widths of tower, LLM and MLPs, and the depths."""


@dataclass(frozen=True)
class Row:
    """One conversation: a question with pictures before it, and an answer."""

    question: str
    answer: str
    pictures: tuple[str, ...]
    """Paths."""


def write_data(folder: Path, kind: str, count: int) -> list[Row]:
    """Write pictures, LLaVA's JSON and a registry entry `step` below `folder`; return the rows in the file's order."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "registry/datasets").mkdir(parents=True)
    drawn = random.Random(0)
    rows = []
    for number in range(count):
        sizes, tokens = _skewed(drawn) if kind == "skewed" else ([(140, 140)], 40)
        paths = [folder / f"pictures/{number}-{place}.png" for place in range(len(sizes))]
        for path, size in zip(paths, sizes, strict=True):
            _write_picture(path, size, drawn)
        words = drawn.choices(WORDS, k=max(2, tokens))
        cut = max(1, round(len(words) * SUPERVISED))
        rows.append(Row(" ".join(words[cut:]), " ".join(words[:cut]), tuple(map(str, paths))))
    (folder / "data.json").write_text(json.dumps([_llava(number, row) for number, row in enumerate(rows)]))
    entry = {"_target_": "vlmft.data.LLaVADataset", "data_path": "data.json", "media_dir": "pictures"}
    (folder / "registry/datasets/step.yaml").write_text(json.dumps({"step": entry}))
    return rows


def _skewed(drawn: random.Random) -> tuple[list[tuple[int, int]], int]:
    """Heights and widths of a sample's pictures, and its words, of about a token each."""
    text = max(20, min(2000, round(drawn.lognormvariate(math.log(150), 0.9)))) // SHRINK**2
    kind = drawn.random()
    if kind < 0.3:
        return [], text
    if kind < 0.9:
        number = 1 if kind < 0.75 else drawn.randint(2, 4)
        return [(height // SHRINK, width // SHRINK) for height, width in drawn.choices(PICTURES, k=number)], text
    side = 28 * round(math.sqrt(drawn.randint(100, 250)) / SHRINK)
    return [(side, side)] * drawn.randint(8, 32), text


def _write_picture(path: Path, size: tuple[int, int], drawn: random.Random) -> None:
    from PIL import Image

    coarse = Image.frombytes("RGB", (8, 8), drawn.randbytes(8 * 8 * 3))
    coarse.resize(size[::-1], Image.Resampling.BILINEAR).save(path)


def _llava(number: int, row: Row) -> dict[str, Any]:
    said = [{"from": "human", "value": row.question}, {"from": "gpt", "value": row.answer}]
    pictures = {"image": [Path(path).name for path in row.pictures]} if row.pictures else {}
    return {"id": str(number), "conversations": said} | pictures


def write_model(folder: Path, size: str) -> Path:
    """Write a checkpoint with random weights, `tiny` or `mid_size`, that sees pictures as large as they are."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    shutil.copytree(composed().model.folder(), folder)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path := folder / name).exists():
            values = json.loads(path.read_text())
            (values.get("image_processor") or values)["size"] = PIXELS
            path.write_text(json.dumps(values))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    if size == "tiny":
        return folder
    values = AutoConfig.from_pretrained(folder).to_dict()
    text, head = values["text_config"], MID_TEXT["hidden_size"] // MID_TEXT["num_attention_heads"] // 2
    text.update(MID_TEXT, max_window_layers=MID_TEXT["num_hidden_layers"])
    text.pop("layer_types", None)
    text["rope_parameters"]["mrope_section"] = [head - 2 * (head // 3), head // 3, head // 3]
    values["vision_config"].update(MID_VISION, out_hidden_size=MID_TEXT["hidden_size"], window_size=112)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**values), dtype=torch.float32)
    model.save_pretrained(folder)
    return folder
