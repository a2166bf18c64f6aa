"""Completions in TensorBoard, read back from its files."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tests.support import encoding, noise, read_llava, write_llava
from vlmft.previewing.completions import CompletionsOnBoard, shown_prompts


def row(sample_id: str, completion: str, reward: float, **changes: Any) -> dict[str, Any]:
    texts = {"prompt": "What <|im_end|>\u2028?", "completion": completion, "solution": "red"}
    scores = {"rewards/format": 0.0, "rewards/correctness": reward / 5}
    return {"id": sample_id, **texts, "reward": reward, "advantage": reward - 2.5, **scores, "ended": True} | changes


def test_a_prompts_pictures_and_what_each_completion_earned(tmp_path: Path) -> None:
    encoder, collator = encoding()
    one, two, none = (encoder.encode(sample) for sample in read_llava(write_llava(tmp_path))[:3])
    rows = [
        row("mine/one", "red", 5.0),
        row("mine/one", "blue\n# no heading", 0.0, ended=False),
        row("mine/two", "x", 0.0),
        row("mine/none", "y", 0.0),
    ]
    prompts = shown_prompts(rows, [one.media, one.media, two.media, none.media], collator)
    writer = SummaryWriter(str(tmp_path / "tb"))
    board = CompletionsOnBoard(SimpleNamespace(tb_writer=writer))
    board.show(prompts)
    for step in (7, 8):  # once
        board.on_step_end(None, SimpleNamespace(global_step=step), None)
    writer.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = ["completions/1 medium 1", "completions/2 medium 1", "completions/2 medium 2"]
    assert events.Tags()["images"] == tags
    (picture,) = events.Images(tags[0])
    assert picture.step == 7
    assert (np.asarray(PIL.Image.open(io.BytesIO(picture.encoded_image_string))) == np.asarray(noise(56, 56))).all()
    (event,) = events.Tensors("completions/1/text_summary")
    lines = event.tensor_proto.string_val[0].decode().split("\n")
    assert event.step == 7 and all(line.startswith("    ") for line in lines)
    assert [line[4:] for line in lines] == [
        "mine/one",
        "",
        "What <|im_end|><U+2028>?",
        "",
        "solution: red",
        "",
        "reward 5  advantage +2.50  format 0  correctness 1",
        "red",
        "",
        "reward 0  advantage -2.50  format 0  correctness 0  (cut)",
        "blue",
        "# no heading",
    ]


def test_a_writer_that_could_not_be_opened_is_no_error() -> None:
    board = CompletionsOnBoard(SimpleNamespace(tb_writer=None))
    board.show([])
    board.on_step_end(None, SimpleNamespace(global_step=1), None)
