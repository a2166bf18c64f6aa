from collections.abc import Sequence

import numpy as np
import pytest

from tests.checking.support import config_of, write_rows
from tests.data.making import Listed, qa
from vlmft.checking.counts import BAD, COUNTED, READ, TOO_LONG, TOO_MUCH_VISION, Counts, Target
from vlmft.checking.figures import Figures, TokenFigures, figures_of, limits_of, plain
from vlmft.checking.tables import bars, mix_table, token_table

GOOD = READ | COUNTED
# question, tokens, vision tokens, supervised tokens, pictures, videos, state
A = [
    (1, 10, 0, 4, 0, 0, GOOD),
    (2, 16, 8, 4, 1, 0, GOOD),
    (1, 17, 0, 1, 0, 0, GOOD),
    (3, 100, 90, 1, 2, 0, GOOD | TOO_LONG | BAD),
    (0, 0, 0, 0, 0, 0, BAD),
]
B = [(2, 64, 32, 2, 0, 1, GOOD), (4, 65, 32, 3, 1, 1, GOOD | TOO_MUCH_VISION | BAD)]
HELD_OUT = [(1, 33, 0, 0, 0, 0, GOOD), (9, 0, 0, 0, 1, 0, READ)]


def made(*parts: tuple[str, bool, Sequence[tuple[int, ...]]]) -> Figures:
    counts = Counts(sum(len(rows) for _, _, rows in parts))
    targets: list[Target] = []
    for name, held_out, rows in parts:
        start = targets[-1].stop if targets else 0
        source = Listed([f"{number}" for number in range(len(rows))], name)
        targets.append(Target(source, range(len(rows)), start, held_out))  # type: ignore[arg-type]
        for number, row in enumerate(rows):
            counts.table[start + number] = row
    shares = [len(rows) / 7 for _, held_out, rows in parts if not held_out]
    return figures_of(counts.table, targets, shares)


@pytest.fixture
def figures() -> Figures:
    return made(("a", False, A), ("b", False, B), ("e", True, HELD_OUT))


def test_each_entry_is_added_up(figures: Figures) -> None:
    a, b = figures.trained
    assert (a.name, a.samples, a.share, a.bad, a.repeated) == ("a", 5, 5 / 7, 2, 1)
    assert a.mix == {"text": 2, "image": 1, "images": 1, "video": 0, "mixed": 0}
    assert b.mix == {"text": 0, "image": 0, "images": 0, "video": 1, "mixed": 1}
    assert a.tokens == TokenFigures(
        samples=4,
        total=143,
        least=10,
        median=16,
        p95=100,
        most=100,
        histogram={16: 2, 32: 1, 128: 1},
        most_vision=90,
        vision_share=98 / 143,
        supervised_share=10 / 143,
        too_long=1,
        too_much_vision=0,
    )
    assert b.tokens is not None and b.tokens.histogram == {64: 1, 128: 1}
    assert (figures.total.samples, figures.total.bad, figures.total.repeated) == (7, 3, 2)
    assert figures.total.tokens is not None and figures.total.tokens.total == 143 + 129
    (held_out,) = figures.held_out
    assert (held_out.share, held_out.bad, held_out.repeated) == (None, 0, 0)
    assert held_out.tokens is not None and held_out.tokens.samples == 1


def test_repeats_name_the_first_that_asks_the_same_in_whatever_entry(figures: Figures) -> None:
    """What is held out is no repeat: that would be an overlap. A row that cannot be read asks nothing."""
    assert figures.repeated_pairs == [("a/2", "a/0"), ("b/0", "a/1")]
    many = made(("a", False, [(7, 1, 0, 1, 0, 0, GOOD)] * 9 + [(0, 0, 0, 0, 0, 0, BAD)] * 2))
    assert many.total.repeated == 8
    assert many.repeated_pairs == [(f"a/{number}", "a/0") for number in range(1, 6)]


def test_nothing_was_counted() -> None:
    figures = made(("a", False, [(0, 0, 0, 0, 1, 0, READ)]))
    assert figures.total.tokens is None
    assert limits_of(config_of({}), figures) == {}
    assert token_table(figures) is None


def test_the_most_that_is_known_is_summed_in_64_bits() -> None:
    tokens = made(("a", False, [(n, 2**31 - 1, 2**31 - 1, 1, 0, 1, GOOD) for n in range(3)])).total.tokens
    assert tokens is not None and tokens.total == 3 * (2**31 - 1) and tokens.vision_share == 1
    assert tokens.histogram == {2**31: 3}


def test_limits(root, figures: Figures) -> None:
    a, e = write_rows(root, [qa()], "a"), write_rows(root, [qa()], "e")
    entries = {"a": a, "b": write_rows(root, [qa()], "b", max_vision_tokens=9)}, {"e": e}
    config = config_of(*entries, max_tokens=99)
    assert limits_of(config, figures) == {
        "batching.max_tokens": {"is": 99, "over": 1, "fits_all": 100},
        "dataset.b.max_vision_tokens": {"is": 9, "over": 1, "fits_all": 32},
    }
    limited = config.model_copy(update={"model": config.model.model_copy(update={"max_vision_tokens": 50})})
    assert limits_of(limited, figures)["model.max_vision_tokens"] == {
        "is": 50,
        "over": 0,
        "fits_all": 90,
    }


def test_figures_as_json(figures: Figures) -> None:
    a = plain(figures.trained[0])
    assert a["tokens"]["histogram"] == {"16": 2, "32": 1, "128": 1}
    assert a["share"] == 0.714286 and a["mix"]["text"] == 2
    assert plain(figures.repeated_pairs) == [["a/2", "a/0"], ["b/0", "a/1"]]


def test_bars_are_scaled_to_the_highest_and_none_vanishes() -> None:
    assert bars({16: 2, 32: 1, 128: 1}, 8, 128) == " █▄ ▄"
    assert bars({16: 100_000, 64: 1}, 16, 64) == "█ ▁"


def cells(table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_tables(figures: Figures) -> None:
    assert cells(mix_table(figures)) == [
        ["a", "5", "71.4%", "2", "1", "1", "-", "-", "1", "2"],
        ["b", "2", "28.6%", "-", "-", "-", "1", "1", "1", "1"],
        ["all", "7", "100.0%", "2", "1", "1", "1", "1", "2", "3"],
        ["e, held out", "2", "-", "1", "1", "-", "-", "-", "-", "-"],
    ]
    tokens = token_table(figures)
    assert tokens is not None
    assert cells(tokens) == [
        ["a", "143", "10", "16", "100", "100", "█▄ ▄", "68.5%", "7.0%", "1"],
        ["b", "129", "64", "64", "65", "65", "  ██", "49.6%", "3.9%", "1"],
        ["all", "272", "10", "17", "100", "100", "█▄▄█", "59.6%", "5.5%", "2"],
        ["e, held out", "33", "33", "33", "33", "33", "  █ ", "0.0%", "-", "-"],
    ]
    assert tokens.caption == "histogram: a bar for each doubling, from 9 to 128 tokens"


def test_a_single_entry_needs_no_sum(figures: Figures) -> None:
    assert [row[0] for row in cells(mix_table(made(("a", False, A))))] == ["a"]


def test_counts_are_a_few_bytes_a_sample() -> None:
    table = Counts(1000).table
    assert table.nbytes == 25_000 and not np.any(table["state"])
    assert len(Counts(0).table) == 0
