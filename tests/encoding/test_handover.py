"""What crosses from a loader process arrives as it was sent."""

import pytest
import torch

from vlmft.encoding.encoder import Encoded
from vlmft.encoding.handover import unwrap, wrap


def encoded(name: str, tokens: int, pictures: list[tuple[int, ...]]) -> Encoded:
    made = torch.Generator().manual_seed(tokens)
    return Encoded(
        id=name,
        input_ids=torch.randint(0, 500, (tokens,), generator=made),
        supervised=torch.rand(tokens, generator=made) > 0.5,
        media=[
            {
                "patches": torch.randint(0, 256, shape, generator=made).to(torch.uint8),
                "grid": torch.tensor([1, 2, 3]),
                "scale": torch.rand(3, generator=made),
            }
            for shape in pictures
        ],
        num_vision_tokens=len(pictures),
    )


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [encoded("a", 5, [])],
        [encoded("a", 5, [(3, 3, 7)]), encoded("b", 1, [(1, 3, 5), (4, 3, 196)]), encoded("c", 13, [])],
    ],
    ids=["none", "text", "mixed"],
)
def test_samples_come_out_as_they_went_in(samples: list[Encoded]) -> None:
    received = unwrap(wrap(samples))
    assert [sample.id for sample in received] == [sample.id for sample in samples]
    for sent, got in zip(samples, received, strict=True):
        assert got.num_vision_tokens == sent.num_vision_tokens
        tensors = [(sent.input_ids, got.input_ids), (sent.supervised, got.supervised)]
        for before, after in zip(sent.media, got.media, strict=True):
            assert before.keys() == after.keys()
            tensors += [(before[name], after[name]) for name in before]
        for before, after in tensors:
            assert before.dtype == after.dtype and torch.equal(before, after)


def test_one_buffer_holds_every_tensor() -> None:
    parcel = wrap([encoded("a", 5, [(3, 3, 7)]), encoded("b", 3, [])])
    storages = {
        tensor.untyped_storage().data_ptr()
        for sample in unwrap(parcel)
        for tensor in (sample.input_ids, sample.supervised, *(t for item in sample.media for t in item.values()))
    }
    assert storages == {parcel.buffer.untyped_storage().data_ptr()}
