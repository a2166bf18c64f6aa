"""The first samples in TensorBoard, read back from its files."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tests.previewing.making import EVIL_ID, EVIL_TEXT, shown, write_samples
from tests.support import noise
from vlmft.previewing.album import Album
from vlmft.previewing.board import SamplesOnBoard

BEGINNING = SimpleNamespace(global_step=0)


def written(folder: Path, *ids: str, step: int = 0) -> EventAccumulator:
    album = Album()
    samples = shown(write_samples(folder), *ids, album=album)
    writer = SummaryWriter(str(folder / "tb"))
    SamplesOnBoard(SimpleNamespace(tb_writer=writer), samples, album).on_train_begin(
        None, SimpleNamespace(global_step=step), None
    )
    writer.close()
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    return events


def text_of(events: EventAccumulator, tag: str) -> str:
    (event,) = events.Tensors(f"{tag}/text_summary")
    return str(event.tensor_proto.string_val[0].decode())


def test_pictures_and_frames_are_images(tmp_path: Path) -> None:
    events = written(tmp_path, "several", "video")
    tags = events.Tags()["images"]
    numbers = sorted({tag.partition(" ")[0] for tag in tags})
    assert len(tags) == 3 and len(numbers) == 2
    sizes = {tag.partition(" ")[2]: (e.width, e.height) for tag in tags for e in events.Images(tag)}
    assert (sizes["picture 1"], sizes["picture 2"]) == ((112, 56), (56, 84))
    (tag,) = [tag for tag in tags if tag.endswith("picture 1")]
    shown_picture = PIL.Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string))
    assert (np.asarray(shown_picture) == np.asarray(noise(56, 112, 1))).all()
    assert sizes["video 1"][0] >= 84 and sizes["video 1"][0] * sizes["video 1"][1] >= 6 * 84 * 56


def test_text_is_code_with_what_is_trained_in_brackets(tmp_path: Path) -> None:
    events = written(tmp_path, "boxes", EVIL_ID, "damaged")
    texts = [text_of(events, tag.removesuffix("/text_summary")) for tag in events.Tags()["tensors"]]
    assert len(texts) == 3
    assert all(line.startswith("    ") for text in texts for line in text.split("\n"))
    boxes, evil, damaged = (next(t for t in texts if name in t) for name in ("mine/boxes", EVIL_ID, "mine/damaged"))
    assert "[picture 1: 8 tokens]" in boxes and "Where is it?" in boxes
    assert '⟦{"bbox_2d": [28, 14, 56, 42]} and {"point_2d": [14, 7]}<|im_end|>⟧' in boxes
    assert f"⟦{EVIL_TEXT.replace(chr(0x2028), '<U+2028>')}<|im_end|>⟧" in evil
    assert "is no picture in a known format" in damaged


def test_a_run_that_goes_on_writes_them_no_second_time(tmp_path: Path) -> None:
    assert written(tmp_path, "boxes", step=5).Tags()["images"] == []


def test_nothing_happens_without_a_writer(tmp_path: Path) -> None:
    SamplesOnBoard(SimpleNamespace(tb_writer=None), [], Album()).on_train_begin(None, BEGINNING, None)
