"""Each sample of a step with another one's answer: a function of the place in the stream alone."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.support import literally
from vlmft.data import LLaVADataset, UnpairedDataset
from vlmft.data.mismatch import MismatchedMixture, refuse_one_kind
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.errors import DataError
from vlmft.types import Rated, Sample


def row(name: str, good: bool = True) -> dict[str, Any]:
    return {"id": name, "prompt": f"Q {name}?", "completion": f"A {name}.", "label": good}


def mixture(folder: Path, rows: list[Any], factor: float = 1) -> Mixture:
    (folder / "rows.json").write_text(json.dumps(rows))
    source = UnpairedDataset(data_path=folder / "rows.json").open("mine")
    return Mixture([MixturePart(source, factor, range(len(source)))], seed=0)


def read(stream: Mixture, position: int) -> tuple[str, str | None]:
    """Own and mismatched answer."""
    sample = stream.read(stream.at(position))
    assert isinstance(sample, Sample) and isinstance(sample.target, Rated)
    return sample.target.answer, sample.target.mismatched


def test_each_prompt_has_the_answer_of_the_sample_before_it_in_the_step(tmp_path: Path) -> None:
    plain = mixture(tmp_path, [row(name, name < "d") for name in "abcdefg"])
    stream: MismatchedMixture = pickle.loads(pickle.dumps(MismatchedMixture(plain, 3)))
    own = [plain.read(plain.at(position)).target.answer for position in range(12)]  # type: ignore[union-attr]
    for step in range(4):
        a, b, c = own[3 * step : 3 * step + 3]
        assert [read(stream, 3 * step + place) for place in range(3)] == [(a, c), (b, a), (c, b)]
    assert len(stream) == 7 and stream.shares == plain.shares and stream.visits(9) == plain.visits(9)
    ref, was = stream.at(5), plain.at(5)
    assert (ref.part, ref.row, ref.epoch, ref.copy, ref.key) == (was.part, was.row, was.epoch, was.copy, was.key)
    assert stream.sample_id(ref) == plain.sample_id(was)


def test_the_same_sample_once_more_and_what_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    stream = MismatchedMixture(mixture(tmp_path, [row("a"), row("b"), {"id": "bad", "prompt": "Q"}]), 9)  # three passes
    found = {}
    for position in range(9):
        if stream.sample_id(stream.at(position)) != "mine/bad":
            found[position] = read(stream, position)
    assert len(found) == 6
    assert {*found.values()} == {("A a.", "A b."), ("A b.", "A a.")}


def test_where_no_other_is_left_there_is_none(tmp_path: Path) -> None:
    stream = MismatchedMixture(mixture(tmp_path, [row("a")]), 4)
    assert [read(stream, position) for position in range(4)] == [("A a.", None)] * 4


def test_answers_of_one_kind_are_refused(tmp_path: Path) -> None:
    refuse_one_kind(mixture(tmp_path, [row("a"), row("b", False)]))
    alone = "dataset: all 2 training samples have 'label': true; trainer=kto tells good answers from bad ones"
    with pytest.raises(DataError, match=literally(alone) + ".*add the other kind, or take trainer=sft"):
        refuse_one_kind(mixture(tmp_path, [row("a"), row("b"), {"id": "bad"}]))
    with pytest.raises(DataError, match="'label': false; .* there are bad ones alone: add the other kind$"):
        refuse_one_kind(mixture(tmp_path, [row("a", False)]))
    asked = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    (tmp_path / "llava.json").write_text(json.dumps([{"conversations": asked}]))
    source = LLaVADataset(data_path=tmp_path / "llava.json").open("other")
    refuse_one_kind(Mixture([MixturePart(source, 1, range(1))], seed=0))  # whoever encodes it says what it is
