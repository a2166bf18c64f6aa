import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmft.config.grammar import MixtureValue, expand
from vlmft.errors import ConfigError

ENTRIES = ["A", "B", "C", "sample-qa_2"]
MIXTURES: dict[str, MixtureValue] = {
    "ab": "A + B@0.5",
    "listed": ["B", "C*2"],
    "nested": "ab*3",
    "loop_a": "loop_b",
    "loop_b": ["C", "loop_a*2"],
    "self": "self",
    "void": [],
    "dangling": "A+nope",
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("A", {"A": 1.0}),
        ("B+A", {"B": 1.0, "A": 1.0}),
        ("A*3", {"A": 3.0}),
        ("A@3", {"A": 3.0}),
        ("A@0.25", {"A": 0.25}),
        ("A@.5+B@2.", {"A": 0.5, "B": 2.0}),
        ("A@1e-3", {"A": 0.001}),
        (" A * 2 + B ", {"A": 2.0, "B": 1.0}),
        ("sample-qa_2*2", {"sample-qa_2": 2.0}),
        ("ab", {"A": 1.0, "B": 0.5}),
        ("C+ab*2", {"C": 1.0, "A": 2.0, "B": 1.0}),
        ("listed@0.5", {"B": 0.5, "C": 1.0}),
        ("nested@2", {"A": 6.0, "B": 3.0}),
    ],
)
def test_an_expression_expands_in_order(expression: str, expected: dict[str, float]) -> None:
    factors = expand(expression, ENTRIES, MIXTURES)
    assert list(factors.items()) == list(expected.items())
    assert all(isinstance(factor, float) for factor in factors.values())


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("", "'': term 1 of 1 is empty"),
        ("A++B", "'A++B': term 2 of 3 is empty"),
        ("A+", "'A+': term 2 of 2 is empty"),
        ("A*0", "A: the number after * should be whole and at least 1 (a part is written @0.25); found '0'"),
        ("A*0.5", "A: the number after * should be whole and at least 1 (a part is written @0.25); found '0.5'"),
        ("A*-1", "A: the number after * should be whole and at least 1 (a part is written @0.25); found '-1'"),
        ("A**2", "A: the number after * should be whole and at least 1 (a part is written @0.25); found '*2'"),
        ("A*", "A: the number after * should be whole and at least 1 (a part is written @0.25); found ''"),
        ("A@0", "A: the number after @ should be finite and above 0; found '0'"),
        ("A@-1", "A: the number after @ should be finite and above 0; found '-1'"),
        ("A@nan", "A: the number after @ should be finite and above 0; found 'nan'"),
        ("A@inf", "A: the number after @ should be finite and above 0; found 'inf'"),
        ("A@1e999", "A: the number after @ should be finite and above 0; found '1e999'"),
        ("A@2@3", "A: the number after @ should be finite and above 0; found '2@3'"),
        ("a b", "'a b': a name has only letters, digits, '_' and '-'"),
        ("*3", "'*3': a name has only letters, digits, '_' and '-'"),
        ("ä", "'ä': a name has only letters, digits, '_' and '-'"),
        ("sample-qa2", "sample-qa2: unknown dataset; did you mean sample-qa_2?"),
        ("A+none", "none: none chooses nothing and must stand alone"),
        ("A+A", "A: A is there twice; first reached as A"),
        ("A+nested", "nested -> ab -> A: A is there twice; first reached as A"),
        ("ab+ab", "ab: ab is there twice; first reached as ab"),
        ("loop_a", "loop_a -> loop_b -> loop_a: a mixture cannot contain itself"),
        ("self", "self -> self: a mixture cannot contain itself"),
        ("void", "void: is an empty mixture"),
        ("dangling", "dangling -> nope: unknown dataset"),
    ],
)
def test_a_wrong_expression_shows_the_chain(expression: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(expression, ENTRIES, MIXTURES)
    assert any(found.startswith(problem) for found in caught.value.problems), caught.value.problems


def test_all_problems_are_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        expand("Ax++B*0+A+A", ENTRIES, {})
    assert len(caught.value.problems) == 4


def test_an_unknown_name_without_a_near_one_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="zzzz: unknown metric; known: exact, none$"):
        expand("zzzz", ["exact"], kind="metric")


def test_factors_that_multiply_out_of_range_are_refused() -> None:
    deep: dict[str, MixtureValue] = {"m": "A@1e-300"}
    with pytest.raises(ConfigError, match=r"m -> A: the factors multiply to 0\.0"):
        expand("m@1e-300", ["A"], deep)


def test_the_number_of_paths_through_nested_mixtures_does_not_matter() -> None:
    doubling = {f"m{i}": f"m{i + 1}+m{i + 1}" for i in range(45)} | {"m45": "A"}
    with pytest.raises(ConfigError) as caught:
        expand("m0", ["A"], doubling)
    assert len(caught.value.problems) == 45


def test_endless_nesting_is_refused() -> None:
    chain = {f"m{i}": f"m{i + 1}" for i in range(5000)} | {"m5000": "A"}
    with pytest.raises(ConfigError, match=r"m0 -> m1 -> m2 -> \.\.\.: mixtures are nested more than 50 deep"):
        expand("m0", ["A"], chain)


NAMES = st.sampled_from(["A", "B", "m", "n", "none", "", "x", " ", "ä"])
NUMBERS = st.sampled_from(["", "0", "1", "2", "0.5", "-1", "nan", "inf", "1e999", "9" * 5000, "²", "٣", "1_0", "0x1"])
TERMS = st.builds(
    lambda name, mark, number: name + (mark and mark + number), NAMES, st.sampled_from(["", *"*@"]), NUMBERS
)
EXPRESSIONS = st.one_of(st.text(), st.text("AB+*@.0123456789mn -"), st.lists(TERMS).map("+".join))
MIXTURE_SETS = st.dictionaries(st.sampled_from("mnAx"), st.one_of(EXPRESSIONS, st.lists(EXPRESSIONS, max_size=3)))


@given(EXPRESSIONS, MIXTURE_SETS)
def test_any_text_expands_or_is_a_config_error(expression: str, mixtures: dict[str, MixtureValue]) -> None:
    try:
        factors = expand(expression, ["A", "B"], mixtures)
    except ConfigError as error:
        assert error.problems
        return
    assert factors
    assert set(factors) <= {"A", "B"}
    assert all(0 < factor < math.inf for factor in factors.values())


@given(st.permutations(["A", "B", "C"]), st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=3))
def test_what_is_written_is_what_is_read(names: list[str], factors: list[float]) -> None:
    texts = [f"{factor:.12f}" for factor in factors]
    expression = "+".join(f"{name}@{text}" for name, text in zip(names, texts, strict=True))
    assert list(expand(expression, ENTRIES).items()) == [(n, float(t)) for n, t in zip(names, texts, strict=True)]
