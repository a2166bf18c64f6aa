import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import compose, literally
from vlmft.encoding import BatchingSpec, Grouped, Packed, Padded
from vlmft.errors import DataError

BUDGET = 100
KINDS = st.sampled_from([Grouped, Padded, Packed])
LENGTHS = st.lists(st.integers(1, BUDGET), min_size=1, max_size=40)


def places(kind: type[BatchingSpec], lengths: list[int]) -> int:
    """Token places that samples of these lengths take in a micro-batch."""
    return sum(lengths) if kind is Packed else len(lengths) * max(lengths)


@given(kind=KINDS, lengths=LENGTHS, data=st.data())
def test_every_sample_is_in_one_micro_batch_within_the_budget(
    kind: type[BatchingSpec], lengths: list[int], data: st.DataObject
) -> None:
    at_least = data.draw(st.integers(1, len(lengths)))
    batches = kind(max_tokens=BUDGET).micro_batches(lengths, at_least)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batch for batch in batches)
    assert all(places(kind, [lengths[index] for index in batch]) <= BUDGET for batch in batches)
    assert len(batches) >= at_least


@given(kind=KINDS, lengths=LENGTHS, data=st.data())
def test_asking_for_more_micro_batches_gives_exactly_so_many(
    kind: type[BatchingSpec], lengths: list[int], data: st.DataObject
) -> None:
    spec = kind(max_tokens=BUDGET)
    fewest = len(spec.micro_batches(lengths))
    wanted = data.draw(st.integers(fewest, len(lengths)))
    assert len(spec.micro_batches(lengths, wanted)) == wanted


@given(lengths=LENGTHS, data=st.data())
def test_padded_keeps_the_order_of_the_data(lengths: list[int], data: st.DataObject) -> None:
    at_least = data.draw(st.integers(1, len(lengths)))
    batches = Padded(max_tokens=BUDGET).micro_batches(lengths, at_least)
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))


@given(lengths=LENGTHS)
def test_grouped_goes_from_long_to_short_and_pads_no_more(lengths: list[int]) -> None:
    spec = Grouped(max_tokens=BUDGET)
    batches = spec.micro_batches(lengths)
    order = [index for batch in batches for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    padded = Padded(max_tokens=BUDGET).micro_batches(lengths)
    assert len(batches) <= len(padded) + 1


def test_by_hand() -> None:
    lengths = [30, 90, 30, 40, 20]
    assert Padded(max_tokens=BUDGET).micro_batches(lengths) == [[0], [1], [2, 3], [4]]
    assert Grouped(max_tokens=BUDGET).micro_batches(lengths) == [[1], [3, 0], [2, 4]]
    assert Grouped(max_tokens=200).micro_batches(lengths) == [[1, 3], [0, 2, 4]]
    assert Grouped(max_tokens=200).micro_batches(lengths, at_least=4) == [[1], [3], [0, 2], [4]]


@given(kind=KINDS, lengths=LENGTHS, data=st.data())
def test_kinds_are_kept_apart(kind: type[BatchingSpec], lengths: list[int], data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    at_least = data.draw(st.integers(1, len(lengths)))
    batches = kind(max_tokens=BUDGET).micro_batches(lengths, at_least, kinds)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len({kinds[index] for index in batch}) == 1 for batch in batches)
    assert all(places(kind, [lengths[index] for index in batch]) <= BUDGET for batch in batches)
    assert len(batches) >= at_least


@given(kind=KINDS, lengths=LENGTHS, data=st.data())
def test_where_all_are_of_one_kind_the_cut_is_as_without(
    kind: type[BatchingSpec], lengths: list[int], data: st.DataObject
) -> None:
    at_least = data.draw(st.integers(1, len(lengths)))
    spec = kind(max_tokens=BUDGET)
    assert spec.micro_batches(lengths, at_least, [3] * len(lengths)) == spec.micro_batches(lengths, at_least)


def test_kinds_by_hand() -> None:
    lengths, kinds = [30, 90, 30, 40, 20], [0, 0, 1, 1, 0]
    assert Padded(max_tokens=BUDGET).micro_batches(lengths, kinds=kinds) == [[0], [1], [2, 3], [4]]
    assert Grouped(max_tokens=BUDGET).micro_batches(lengths, kinds=kinds) == [[1], [3, 2], [0, 4]]


def test_a_sample_longer_than_the_budget() -> None:
    message = "a sample of 101 tokens exceeds batching.max_tokens=100; raise it"
    for kind in (Grouped, Padded, Packed):
        with pytest.raises(DataError, match=literally(message)):
            kind(max_tokens=100).micro_batches([5, 101])


@pytest.mark.parametrize(("lengths", "at_least"), [([5, 6], 3), ([], 1)])
def test_more_micro_batches_than_samples(lengths: list[int], at_least: int) -> None:
    message = f"{len(lengths)} samples cannot be cut into {at_least} micro-batches"
    with pytest.raises(DataError, match=literally(message)):
        Grouped(max_tokens=BUDGET).micro_batches(lengths, at_least)


@pytest.mark.parametrize(("option", "kind"), [("grouped", Grouped), ("padded", Padded), ("packed", Packed)])
def test_the_options_are_what_their_names_say(option: str, kind: type[BatchingSpec]) -> None:
    chosen = compose(f"batching={option}", "batching.max_tokens=77").batching
    assert type(chosen) is kind and chosen.max_tokens == 77


def test_packs_by_hand() -> None:
    """First-fit decreasing: 30 goes beside 60, not beside 40, where 40 of the same length stands later."""
    lengths = [30, 90, 40, 60, 40, 10]
    assert Packed(max_tokens=BUDGET).micro_batches(lengths) == [[1, 5], [3, 2], [4, 0]]
    assert Packed(max_tokens=270).micro_batches(lengths) == [[1, 3, 2, 4, 0, 5]]
    assert Packed(max_tokens=BUDGET).micro_batches(lengths, at_least=4) == [[1], [5], [3, 2], [4, 0]]
    assert Packed(max_tokens=BUDGET).micro_batches(lengths, kinds=[0, 0, 1, 0, 0, 1]) == [[1], [3, 4], [2, 5], [0]]


@given(lengths=LENGTHS)
def test_no_two_packs_would_fit_into_one(lengths: list[int]) -> None:
    filled = [sum(lengths[i] for i in pack) for pack in Packed(max_tokens=BUDGET).micro_batches(lengths)]
    assert all(one + other > BUDGET for i, one in enumerate(filled) for other in filled[:i])
