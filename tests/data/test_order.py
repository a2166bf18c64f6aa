from collections import Counter

import numpy as np
import pytest

from tests.data.making import Listed, numbered
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.data.order import Schedule
from vlmft.errors import ConfigError


def sharded(shards: list[int], name: str = "S", window: int = 16) -> Listed:
    source = numbered(sum(shards), name)
    source.shards, source.shuffle_window = shards, window
    return source


def stream(mixed: Mixture, start: int, stop: int) -> list[tuple[str, int, int]]:
    refs = [mixed.at(position) for position in range(start, stop)]
    return [(mixed.sample_id(ref), ref.epoch, ref.copy) for ref in refs]


@pytest.mark.parametrize("shards", [[40, 25, 35], [1, 0, 99, 0], [100], [7] * 14 + [2]])
@pytest.mark.parametrize("window", [1, 16, 1000])
def test_every_row_of_every_shard_comes_once_an_epoch(shards, window):
    mixed = Mixture([MixturePart(sharded(shards, window=window), 1, range(sum(shards)))], 0)
    assert len(mixed) == 100
    for epoch in range(3):
        visits = stream(mixed, epoch * 100, (epoch + 1) * 100)
        assert Counter(sample for sample, _, _ in visits) == Counter(f"S/{row:05d}" for row in range(100))
        assert {(e, c) for _, e, c in visits} == {(epoch, 0)}


def test_shards_and_rows_come_in_another_order_each_epoch_and_seed():
    def order(seed: int, epoch: int) -> list[str]:
        mixed = Mixture([MixturePart(sharded([20] * 10), 1, range(200))], seed)
        return [sample for sample, _, _ in stream(mixed, epoch * 200, (epoch + 1) * 200)]

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert len({tuple(o) for o in orders}) == 3
    assert order(0, 0) == orders[0]
    shard_orders = [tuple(dict.fromkeys(int(s[2:]) // 20 for s in o)) for o in orders]
    assert len(set(shard_orders)) == 3


def test_reading_stays_near_the_order_of_the_files():
    # 10 shards of 100 rows, windows of 16: what is read within a window lies in one shard, or two where they meet.
    mixed = Mixture([MixturePart(sharded([100] * 10), 1, range(1000))], 0)
    rows = [mixed.at(position).row for position in range(1000)]
    for start in range(0, 1000, 16):
        window = rows[start : start + 16]
        assert len({row // 100 for row in window}) <= 2
        for shard in {row // 100 for row in window}:
            own = [row for row in window if row // 100 == shard]
            assert max(own) - min(own) < 16


def test_ranks_share_the_stream_without_loss_or_repeat():
    shards = [33, 5, 62, 28]
    mixed = Mixture([MixturePart(sharded(shards, window=10), 1, range(128))], 3)
    for world in (1, 2, 4):
        shares = [[mixed.sample_id(mixed.at(p)) for p in range(rank, 128, world)] for rank in range(world)]
        assert sorted(sum(shares, [])) == [f"S/{row:05d}" for row in range(128)]


def test_the_stream_goes_on_anywhere_as_if_it_had_been_read_from_the_start():
    def mixed() -> Mixture:
        return Mixture(
            [MixturePart(sharded([33, 5, 62]), 2.5, range(100)), MixturePart(numbered(40, "A"), 1, range(40))], 1
        )

    whole = stream(mixed(), 0, 900)
    for start in (1, 16, 289, 290, 777):
        assert stream(mixed(), start, start + 50) == whole[start : start + 50]


def test_a_factor_makes_passes_over_shards():
    mixed = Mixture([MixturePart(sharded([30, 70]), 2.25, range(100))], 0)
    assert len(mixed) == 225
    visits = stream(mixed, 0, 225)
    counts = Counter(sample for sample, _, _ in visits)
    assert len(counts) == 100 and sorted(counts.values()) == [2] * 75 + [3] * 25
    assert Counter(copy for _, _, copy in visits) == {0: 100, 1: 100, 2: 25}
    assert len({mixed.at(position).key for position in range(225)}) == 225


def test_held_out_rows_of_shards_do_not_come():
    rows = np.array([row for row in range(100) if row % 3])
    mixed = Mixture([MixturePart(sharded([30, 40, 30]), 1, rows)], 0)
    assert sorted(mixed.at(position).row for position in range(len(mixed))) == rows.tolist()


def test_concatenated_shards_make_exact_epochs():
    parts = [MixturePart(sharded([50, 13], "S"), 1, range(63)), MixturePart(numbered(37, "A"), 2, range(37))]
    mixed = Mixture(parts, 0)
    assert len(mixed) == 63 + 74
    assert mixed.visits(len(mixed)) == {"S": 63, "A": 74}
    assert mixed.visits(2 * len(mixed)) == {"S": 126, "A": 148}
    assert {epoch for _, epoch, _ in stream(mixed, 0, len(mixed))} == {0}
    assert {epoch for _, epoch, _ in stream(mixed, len(mixed), 2 * len(mixed))} == {1}


def weighted(temperature: float | None = None, **weights: float | None) -> Mixture:
    sizes = {"A": 900, "B": 90, "C": 10}
    parts = [MixturePart(numbered(sizes[n], n), 1, range(sizes[n]), w) for n, w in weights.items()]
    return Mixture(parts, 0, temperature)


@pytest.mark.parametrize(
    ("temperature", "weights", "shares"),
    [
        (None, {"A": 1, "B": 1, "C": 2}, (0.25, 0.25, 0.5)),
        (1.0, {"A": 3, "B": 1}, (0.75, 0.25)),
        (2.0, {"A": 9, "B": 1}, (0.75, 0.25)),
        (1.0, {"A": None, "B": None, "C": None}, (0.9, 0.09, 0.01)),
        (2.0, {"A": None, "B": None}, (10**0.5 / (10**0.5 + 1), 1 / (10**0.5 + 1))),
        (1e9, {"A": None, "B": None, "C": None}, (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_weights_and_temperature_are_shares_of_every_stretch(temperature, weights, shares):
    mixed = weighted(temperature, **weights)
    assert mixed.shares == pytest.approx(shares)
    for start, stop in ((0, 40), (1000, 1100), (7000, 12000)):
        found = Counter(mixed.at(position).part for position in range(start, stop))
        for part, share in enumerate(shares):
            assert abs(found[part] - share * (stop - start)) <= len(shares)
    # What is said to have come is what came.
    came = Counter(mixed.parts[mixed.at(position).part].source.name for position in range(5000))
    assert mixed.visits(5000) == {name: came[name] for name in weights}


def test_a_small_part_with_a_large_weight_comes_round_in_epochs_of_its_own():
    mixed = weighted(A=1, C=1)
    assert len(mixed) == 910
    refs = [mixed.at(position) for position in range(200)]
    small = [ref for ref in refs if ref.part == 1]
    for epoch in range(10):
        assert sorted(ref.row for ref in small if ref.epoch == epoch) == list(range(10))
    assert {ref.epoch for ref in refs if ref.part == 0} == {0}
    assert len({ref.key for ref in refs}) == 200


def test_a_part_without_a_weight_among_parts_that_have_one_is_refused():
    with pytest.raises(
        ConfigError, match=r"A has a weight, and B, C have none; give every entry .* \(dataset.B.weight=1\)"
    ):
        weighted(A=1, B=None, C=None)


@pytest.mark.parametrize("weights", [[1.0], [1, 1e-6], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.2, 0.7], [5, 1000, 3, 3]])
def test_a_schedule_is_the_same_wherever_it_is_begun(weights):
    def read(start: int, stop: int) -> list[tuple[int, int]]:
        schedule = Schedule(weights)
        return [schedule.at(position) for position in range(start, stop)]

    whole = read(0, 13_000)
    for part in range(len(weights)):
        assert [visit for p, visit in whole if p == part] == list(range(sum(p == part for p, _ in whole)))
    for start in (4090, 8191, 12_287):
        assert read(start, start + 20) == whole[start : start + 20]
    far = Schedule(weights)
    assert far.visits(10**12)[0] == pytest.approx(far.shares[0] * 10**12, abs=len(weights))
    assert far.at(10**12)[1] >= 0
