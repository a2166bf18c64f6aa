import numpy as np
import pytest

from tests.data.making import Listed, in_new_process, numbered, qa
from vlmft.data.hashing import hash_texts, id_hashes, mix, mix_each, rows_with_twins, salt

_CODE = """
import json
from tests.data.making import numbered
from vlmft.data.mixture import Mixture, MixturePart
source = numbered(20)
mixture = Mixture([MixturePart(source, 1.5, range(20))], seed=3)
print(json.dumps([[ref.row, ref.copy, ref.key] for ref in map(mixture.at, range(60))]))
"""


def test_splitmix64_is_the_published_one():
    # The first outputs of the reference generator from state 0: its state grows by the golden gamma each time.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([0, gamma], dtype=np.uint64)
    from vlmft.data.hashing import _step

    assert [hex(x) for x in _step(states).tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def test_hashes_depend_on_the_id_alone():
    assert id_hashes(numbered(3), [2]).tolist() == id_hashes(numbered(9), range(2, 3)).tolist()
    assert id_hashes(Listed(["\ud83d"]), [0]).dtype == np.uint64


def test_the_hash_of_an_id_is_the_one_that_runs_rely_on():
    # Recorded: another hash would move every split, share and order.
    assert [hex(x) for x in hash_texts(["mine/0", "mine/é", ""]).tolist()] == [
        "0xa72cbed15e33e152",
        "0x830ba6f199a9ff3e",
        "0xb4b2797457a0a6e4",
    ]


def test_a_source_that_has_its_hashes_is_asked_for_them(dataset):
    source = dataset([qa(id="b"), qa(), qa(id=7)])
    assert id_hashes(source, range(3)).tolist() == hash_texts(["mine/b", "mine/1", "mine/7"]).tolist()
    with_hashes = Listed(["x"])
    with_hashes.id_hashes = lambda rows: np.arange(5, dtype=np.uint64)
    assert id_hashes(with_hashes, range(1)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 100])
def test_rows_with_the_same_id_are_found_a_few_hashes_at_a_time(at_once):
    assert rows_with_twins(Listed(["a", "b", "a", "c", "d", "b", "a", "e"]), at_once) == [0, 1, 2, 5, 6]
    assert rows_with_twins(numbered(9), at_once) == rows_with_twins(numbered(0), at_once) == []


def test_numbers_are_mixed_in_one_by_one():
    hashes = id_hashes(numbered(100), range(100))
    drawn = [mix(hashes, *numbers) for numbers in ((0, 1), (1, 0), (0,), (1,), (-1,), (0, 0))]
    assert len({tuple(x.tolist()) for x in drawn}) == 6
    assert mix(hashes, -1).tolist() == mix(hashes, 2**64 - 1).tolist()
    assert mix_each(hashes, np.zeros(100, dtype=np.uint64)).tolist() == mix(hashes, 0).tolist()


def test_draws_are_even():
    shares = mix(id_hashes(numbered(20_000), range(20_000)), salt("a")) / 2.0**64
    assert np.histogram(shares, 10, (0, 1))[0].min() > 1800
    other = mix(id_hashes(numbered(20_000), range(20_000)), salt("b")) / 2.0**64
    assert abs(np.corrcoef(shares, other)[0, 1]) < 0.03


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_nothing_depends_on_the_process(hash_seed):
    from vlmft.data.mixture import Mixture, MixturePart

    mixture = Mixture([MixturePart(numbered(20), 1.5, range(20))], seed=3)
    here = [[ref.row, ref.copy, ref.key] for ref in map(mixture.at, range(60))]
    assert in_new_process(_CODE, PYTHONHASHSEED=hash_seed) == here
