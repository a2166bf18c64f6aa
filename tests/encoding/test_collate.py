from pathlib import Path

import pytest
import torch

from tests.support import CPU, encoding, logits, make_batches, read_llava, tiny, tiny_processor, write_llava
from vlmft.encoding.collate import IGNORED, Collator
from vlmft.encoding.encoder import Encoded

PAD = tiny_processor().tokenizer.convert_tokens_to_ids("<|endoftext|>")


@pytest.fixture(scope="module")
def collator() -> Collator:
    return encoding()[1]


def text(ids: list[int], supervised: list[int]) -> Encoded:
    return Encoded("x", torch.tensor(ids), torch.tensor(supervised, dtype=torch.bool), [], 0)


def test_the_padding_token_is_the_checkpoint_s(collator: Collator) -> None:
    assert collator.pad_token_id == PAD != tiny_processor().tokenizer.eos_token_id


def test_padded_on_the_right(collator: Collator) -> None:
    batch = collator([text([1, 2, 3, 4], [0, 0, 1, 1]), text([5, 6], [0, 1])])
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, PAD, PAD]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.inputs["mm_token_type_ids"].tolist() == [[0] * 4, [0] * 4]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 3, 4], [IGNORED, 6, IGNORED, IGNORED]]
    assert {batch.labels.dtype, batch.inputs["input_ids"].dtype, batch.inputs["attention_mask"].dtype} == {torch.int64}


def test_padded_on_the_left(collator: Collator) -> None:
    batch = collator([text([5, 6], [0, 1]), text([1, 2, 3, 4], [0, 0, 1, 1])], padding_side="left")
    assert batch.inputs["input_ids"].tolist() == [[PAD, PAD, 5, 6], [1, 2, 3, 4]]
    assert batch.inputs["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, IGNORED, 6], [IGNORED, IGNORED, 3, 4]]


def test_what_a_family_says_of_each_token_knows_the_mask(collator: Collator, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(self: object, input_ids: torch.Tensor, supervised: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"answered": supervised.long(), "doubled": input_ids * 2}

    monkeypatch.setattr(type(collator.family), "token_inputs", told)
    batch = collator([text([1, 2, 3, 4], [0, 0, 1, 1]), text([5, 6], [0, 1])])
    assert batch.inputs["answered"].tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert batch.inputs["doubled"].tolist() == [[2, 4, 6, 8], [10, 12, 2 * PAD, 2 * PAD]]


def test_samples_of_several_kinds_are_refused(collator: Collator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(collator.family), "batch_kind", lambda self, media: len(media))
    samples = [text([1, 2], [0, 1]), Encoded("y", torch.tensor([1]), torch.tensor([True]), [{}, {}], 2)]
    assert collator.kinds(samples) == [0, 2]
    with pytest.raises(ValueError, match=r"^TinyQwen25VL takes no batch of the kinds \[0, 2\] together: "):
        collator(samples)


def test_a_supervised_padding_token_is_still_a_label(collator: Collator) -> None:
    # EOS and padding are one token in many checkpoints; the mask says what is supervised, not the id.
    batch = collator([text([1, PAD], [0, 1]), text([1, 2, 3], [0, 1, 1])])
    assert batch.labels.tolist() == [[IGNORED, PAD, IGNORED], [IGNORED, 2, 3]]


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_pictures_are_marked_and_stand_in_reading_order(tmp_path: Path, padding_side: str) -> None:
    encoder, collator = encoding()
    encoded = [encoder.encode(sample) for sample in read_llava(write_llava(tmp_path))]
    batch = collator(encoded, padding_side=padding_side)
    marked = batch.inputs["mm_token_type_ids"].sum(1).tolist()
    assert marked == [4, 14, 0, 6, 8, 4]
    assert torch.equal(
        batch.inputs["mm_token_type_ids"] == 1, batch.inputs["input_ids"] == tiny_processor().image_token_id
    )
    grids = [[1, 4, 4], [1, 4, 8], [1, 6, 4], [1, 6, 4], [1, 4, 8], [1, 4, 4]]
    assert batch.inputs["image_grid_thw"].tolist() == grids
    assert torch.equal(batch.inputs["patches"], torch.cat([m["patches"] for e in encoded for m in e.media]))
    for row, sample in enumerate(encoded):
        real = batch.inputs["attention_mask"][row] == 1
        assert torch.equal(batch.inputs["input_ids"][row][real], sample.input_ids)
        assert torch.equal(batch.labels[row][real] != IGNORED, sample.supervised)


def test_a_batch_without_a_picture_has_no_pixels(collator: Collator) -> None:
    assert set(collator([text([1], [1])]).inputs) == {"input_ids", "attention_mask", "mm_token_type_ids"}


def test_a_samples_answer_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    samples = read_llava(write_llava(tmp_path))
    model = tiny().load_model(CPU)
    (together,) = make_batches(samples, size=6)
    for row, alone in enumerate(make_batches(samples, size=1)):
        n = alone.labels.shape[1]
        difference = (logits(model, together)[row, :n] - logits(model, alone)[0]).abs().max()
        assert difference < 1e-4, samples[row].id


def test_a_batch_is_copied_to_a_device(collator: Collator) -> None:
    batch = collator([text([1, 2], [0, 1])])
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in (*moved.inputs.values(), moved.labels)} == {"meta"}
    assert moved.inputs.keys() == batch.inputs.keys()
    assert batch.labels.device.type == "cpu"


def test_packed_end_to_end_in_one_row(collator: Collator) -> None:
    """A first token is not predicted: the token before it is another sample's."""
    batch = collator.packed([text([1, 2, 3, 4], [0, 0, 1, 1]), text([5, 6], [1, 1]), text([7], [1])])
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch.inputs.keys() == {"input_ids", "mm_token_type_ids"}
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 3, 4, IGNORED, 6, IGNORED]]


def test_a_pack_as_the_model_takes_it(tmp_path: Path) -> None:
    """Positions restart with each sample, and are the model's own of each row of the padded batch."""
    encoder, collator = encoding()
    packing = Collator(collator.family, collator.processor, packs=True)
    model = collator.family.load_model(CPU)
    samples = [encoder.encode(sample) for sample in read_llava(write_llava(tmp_path))]
    lengths = [sample.num_tokens for sample in samples]
    inputs, labels = packing.for_loss(samples, model)
    assert inputs["position_ids"].shape == (4, 1, sum(lengths)) and labels.shape == (1, sum(lengths))
    assert inputs["attention_mask"].shape == (1, 1, max(lengths), len(lengths) + 1)
    padded, _ = collator.on_device(samples, model)
    rows = {name: padded[name] for name in ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")}
    expected, _ = model.model.get_rope_index(**rows)
    for number, part in enumerate(inputs["position_ids"].split(lengths, dim=2)):
        assert part[0, 0].tolist() == list(range(lengths[number]))
        assert torch.equal(part[1:, 0], expected[:, number, : lengths[number]])
    assert torch.equal(inputs["pixel_values"], padded["pixel_values"])


def test_a_collator_that_does_not_pack_pads_what_is_learned_from(collator: Collator) -> None:
    samples = [text([1, 2, 3], [0, 0, 1]), text([5, 6], [0, 1])]
    model = collator.family.load_model(CPU)
    (one, labels), (other, other_labels) = collator.for_loss(samples, model), collator.on_device(samples, model)
    assert torch.equal(labels, other_labels) and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
