"""How pictures that were encoded alone become a batch, once it is known how."""

import pytest
import torch

from vlmft.errors import DataError
from vlmft.models.manner import NUM_FEATURES, Join, Manner, between, folded, rows, stacks
from vlmft.models.spec import Media


def medium(features: int, *shape: int) -> Media:
    return {"x": torch.full(shape, float(shape[-1])), NUM_FEATURES: torch.tensor([features])}


@pytest.mark.parametrize(
    ("join", "expected"),
    [(rows, [[1, 0, 0], [3, 3, 3], [2, 2, 0]]), (stacks, [[1, 3, 3, 3], [2, 2, 0, 0]])],
    ids=["rows", "stacks"],
)
def test_a_picture_goes_to_the_sample_whose_feature_tokens_it_has(join: Join, expected: list[list[float]]) -> None:
    """What is short is filled up with zeros; a sample of text alone has no row."""
    manner = Manner("<image>", 5, "<image>", {"types": (0, 1)}, {"x": join})
    ids = torch.tensor([[5, 5, 5], [1, 1, 1], [5, 1, 1]])
    joined = manner.collate(ids, [medium(2, 1, 1), medium(1, 1, 3), medium(1, 1, 2)])
    assert joined["x"].tolist() == expected
    assert joined["types"].tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert manner.collate(ids[1:2], []).keys() == {"types"}


def test_pictures_of_different_dimensions_are_not_joined() -> None:
    manner = Manner("<image>", 5, "<image>", {}, {"x": rows})
    with pytest.raises(DataError, match="pictures of a batch cannot be joined: their x have different dimensions"):
        manner.collate(torch.tensor([[5], [5]]), [medium(1, 1, 2), medium(1, 1, 2, 2)])


def test_runs_of_feature_tokens_are_folded() -> None:
    found = folded("<row><i><i><i>\n<row><i>", "<i>")
    assert (found.text, found.runs, found.num_features) == ("<row><i>\n<row><i>", (3, 1), 4)


@pytest.mark.parametrize(("text", "found"), [("LxR", "x"), ("LR", ""), ("xR", None), ("Lx", None), (" LxR", None)])
def test_what_stands_between_two_ends(text: str, found: str | None) -> None:
    assert between(text, "L", "R") == found
