import numpy as np
import pytest

from tests.data.making import Listed, numbered, qa
from vlmft.data import split
from vlmft.data.split import refuse_overlap, select_rows, split_holdout, subset
from vlmft.errors import ConfigError, DataError


def test_a_share_is_held_out_and_nothing_overlaps():
    train, held_out = split_holdout(numbered(10_000), 0.05)
    assert sorted([*train, *held_out]) == list(range(10_000))
    assert 420 < len(held_out) < 580
    assert list(train) == sorted(train)


def test_no_share_holds_out_nothing():
    train, held_out = split_holdout(numbered(10), 0)
    assert (list(train), len(held_out)) == (list(range(10)), 0)


def test_rows_that_are_added_move_no_other():
    small, large = split_holdout(numbered(500), 0.2)[1], split_holdout(numbered(2000), 0.2)[1]
    assert list(small) == [row for row in large if row < 500]
    reordered = Listed([f"{i:05d}" for i in reversed(range(500))])
    assert {reordered.ids[row] for row in split_holdout(reordered, 0.2)[1]} == {f"{row:05d}" for row in small}


def test_a_larger_share_holds_out_the_same_and_more():
    assert set(split_holdout(numbered(1000), 0.1)[1]) < set(split_holdout(numbered(1000), 0.2)[1])


def test_the_share_is_not_the_one_that_a_factor_takes():
    held_out = set(split_holdout(numbered(10_000), 0.5)[1])
    taken = set(select_rows(numbered(10_000), range(10_000), 0.5))
    assert 2300 < len(held_out & taken) < 2700


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_impossible_shares(share):
    with pytest.raises(ConfigError, match="holdout should be at least 0 and below 1; found"):
        split_holdout(numbered(10), share)


def test_a_share_that_leaves_a_side_empty_says_what_would_do():
    with pytest.raises(
        ConfigError, match="holdout=0.0001 holds out none of the 10 samples of mine; raise holdout to"
    ) as caught:
        split_holdout(numbered(10), 0.0001)
    enough = float(str(caught.value).partition("raise holdout to ")[2].split()[0])
    assert len(split_holdout(numbered(10), enough)[1]) == 1
    with pytest.raises(
        ConfigError, match="holds out all 10 samples of mine, so none is left to train on; lower"
    ) as caught:
        split_holdout(numbered(10), 0.9999)
    little = float(str(caught.value).partition("lower holdout to ")[2].split(",")[0])
    assert len(split_holdout(numbered(10), little)[0]) == 1
    with pytest.raises(ConfigError, match="add samples, or name held-out data with eval_dataset="):
        split_holdout(numbered(1), 0.5)


def test_a_factor_below_one_takes_exactly_its_rows():
    assert len(select_rows(numbered(1797), range(1797), 0.25)) == round(0.25 * 1797) == 449
    assert len(select_rows(numbered(3), range(3), 0.01)) == 1
    assert list(select_rows(numbered(5), [4, 2], 3)) == [4, 2]


def test_a_subset_is_capped_sorted_and_stable():
    few = subset(numbered(100), range(100), 10)
    assert len(few) == 10
    assert list(few) == sorted(few)
    assert set(few) < set(subset(numbered(100), range(100), 20))
    assert list(subset(numbered(5), np.array([1, 3]), 10)) == [1, 3]


def test_overlap_by_row_of_one_file():
    train, held_out = numbered(10, "train"), numbered(10, "held")
    train.content_key = held_out.content_key = lambda row: str(np.random.random()).encode()
    refuse_overlap([(train, range(5))], [(held_out, range(5, 10))])
    with pytest.raises(DataError, match=r"^1 training samples are also held out .*: train/00005 = held/00005; remove"):
        refuse_overlap([(train, range(6))], [(held_out, range(5, 10))])


def test_rows_of_sets_of_files_in_one_folder_are_not_the_same_by_their_numbers():
    train, held_out = numbered(10, "train"), Listed([f"other {n}" for n in range(10)], "held")
    train.shards = held_out.shards = [10]
    refuse_overlap([(train, range(10))], [(held_out, range(10))])
    with pytest.raises(DataError, match="train/00003 = train/00003"):
        refuse_overlap([(train, range(10))], [(train, [3])])


def test_what_a_cheap_hint_tells_apart_is_not_read():
    train, held_out = Listed([f"{n:05d}" for n in range(10)], "train", "/data/a"), Listed(["x"], "held", "/data/b")
    looked = []
    for source in (train, held_out):
        content_key = source.content_key
        source.content_hint = lambda row, key=content_key: key(row)[-1:]
        source.content_key = lambda row, key=content_key, name=source.name: looked.append((name, row)) or key(row)
    held_out.ids = [f"held {n}" for n in range(11)] + ["00004"]
    with pytest.raises(DataError, match="^1 training samples .*: train/00004 = held/00004;"):
        refuse_overlap([(train, range(10))], [(held_out, [3, 11])])
    assert looked == [("train", 3), ("held", 3), ("train", 4), ("held", 11)]


@pytest.mark.parametrize("processes", [1, 3])
def test_several_processes_find_what_one_finds(dataset, monkeypatch, processes):
    monkeypatch.setattr(split, "cores", lambda: processes)
    monkeypatch.setattr(split, "_WORTH_A_PROCESS", 10)
    train = dataset([qa("Q", f"A{i}", id=i) for i in range(50)], "train")
    held_out = dataset([qa("Q", f"A{i}") for i in range(45, 90)], "held")
    expected = ", ".join(f"train/{45 + i} = held/{i}" for i in range(5))
    with pytest.raises(DataError, match=f"^5 training samples are also held out .*: {expected}; remove"):
        refuse_overlap([(train, range(50))], [(held_out, range(45))])


def test_overlap_by_content():
    train, held_out = Listed(["x", "y"], "train", "/data/train.json"), Listed(["z", "y"], "held", "/data/held.json")
    with pytest.raises(DataError, match=r"train/y = held/y; .*draw both from one entry with holdout="):
        refuse_overlap([(train, range(2))], [(held_out, range(2))])
    refuse_overlap([(train, [0])], [(held_out, range(2))])
    refuse_overlap([(train, range(2))], [])


def test_a_long_overlap_is_cut(dataset):
    source = dataset([qa("Q", f"A{i}") for i in range(30)])
    with pytest.raises(DataError, match=r"^30 training samples .* and 25 more; remove them"):
        refuse_overlap([(source, range(30))], [(source, range(30))])


def test_a_holdout_of_a_file_with_twins_is_caught(dataset):
    source = dataset([qa("Q", f"A{i % 50}") for i in range(100)])
    train, held_out = split_holdout(source, 0.3)
    with pytest.raises(DataError, match="are also held out"):
        refuse_overlap([(source, train)], [(source, held_out)])
