import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vlmft import summary
from vlmft.data.check import CheckReport
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.compare import compare
from vlmft.models.kernels import KernelsInUse
from vlmft.recipes.table import ComponentRow
from vlmft.run_folder import RunFolder
from vlmft.scoring import ExactMatch, MetricSpec


class Graded(MetricSpec):
    """Any number from 0 to 1."""

    def score(self, prediction: str, reference: str) -> float:
        raise NotImplementedError


def answers(**scores: list[float]) -> list[Answer]:
    rows = zip(*scores.values(), strict=True)
    return [Answer(f"e/{i}", "Q?", "A", "B", dict(zip(scores, row, strict=True))) for i, row in enumerate(rows)]


def shown(renderable: Any, width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


class TestCompare:
    def test_right_or_wrong(self) -> None:
        """10 samples: base right on 3, tuned on 8; tuned alone on 6, base alone on 1, so p = 2 * (1 + 7) / 2**7."""
        base = answers(exact_match=[1, 1, 1] + [0] * 7)
        tuned = answers(exact_match=[0] + [1] * 8 + [0])
        (found,) = compare(base, tuned, {"exact_match": ExactMatch()})
        assert (found.metric, found.n, found.tuned.value, found.p_value) == ("exact_match", 10, 0.8, 2 * 8 / 128)
        assert found.base is not None and found.base.value == 0.3
        # Wilson's interval for 8 of 10, by hand: (0.8 + z2/20 +- z sqrt(0.016 + z2/400)) / (1 + z2/10), z2 = 3.8415.
        assert (found.tuned.low, found.tuned.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))

    def test_without_a_base_nothing_is_compared(self) -> None:
        (found,) = compare(None, answers(exact_match=[1, 0]), {"exact_match": ExactMatch()})
        assert (found.base, found.p_value, found.tuned.value) == (None, None, 0.5)

    def test_a_graded_metric_is_tested_by_permutation(self) -> None:
        """All of 4 pairs got better, which 2 of 2**4 sign patterns are as far out as."""
        graded, exact = compare(
            answers(graded=[0.2, 0.4, 0.1, 0.3], exact=[0, 0, 0, 0]),
            answers(graded=[0.5, 0.7, 0.4, 0.4], exact=[1, 0, 0, 0]),
            {"graded": Graded(), "exact": ExactMatch()},
        )
        assert graded.tuned.value == pytest.approx(0.5)
        assert (graded.test, graded.p_value) == ("permutation", pytest.approx(2 / 16))
        # Student's t for 3 degrees of freedom, 3.1824, times sqrt(0.02 / 4): the deviation is sqrt(0.06 / 3).
        assert graded.tuned.high == pytest.approx(0.5 + 3.1824 * (0.02 / 4) ** 0.5, abs=1e-4)
        assert (exact.test, exact.p_value) == ("McNemar", 1.0)


class TestResult:
    def test_has_base_tuned_intervals_and_p_value(self) -> None:
        comparisons = compare(
            answers(exact_match=[0, 0, 0, 1]), answers(exact_match=[1, 1, 0, 1]), {"exact_match": ExactMatch()}
        )
        result = summary.as_result(comparisons)
        assert result["base"] == {"exact_match": 0.25}
        assert result["tuned"] == {"exact_match": 0.75}
        assert (result["n"], result["p_value"]) == (4, 0.5)
        assert result["tests"] == {"exact_match": {"name": "McNemar", "p_value": 0.5}}
        low, high = result["intervals"]["tuned"]["exact_match"]
        assert 0.2 < low < 0.75 < high < 1

    def test_has_no_base_where_there_was_none(self) -> None:
        result = summary.as_result(compare(None, answers(m=[1]), {"m": ExactMatch()}))
        assert "base" not in result and result["p_value"] is None

    def test_table_shows_all_of_it(self, tmp_path: Path) -> None:
        comparisons = compare(answers(m=[0] * 9 + [1]), answers(m=[1] * 10), {"m": ExactMatch()})
        table = shown(summary.result_table(comparisons, RunFolder(Path("/runs/x"))))
        assert "base" in table and "tuned" in table and "p (McNemar)" in table
        assert "0.100 [0.018, 0.404]" in table and "1.000 [0.722, 1.000]" in table
        assert "0.0039" in table and " 10 " in table
        for path in ("/runs/x/final", "/runs/x/predictions", "/runs/x/metrics.jsonl"):
            assert path in table

    def test_table_says_which_test_where_there_are_two(self) -> None:
        kinds = {"m": ExactMatch(), "g": Graded()}
        base, tuned = answers(m=[0] * 4, g=[0.0, 0.1, 0.2, 0.3]), answers(m=[1] * 4, g=[0.5, 0.5, 0.5, 0.5])
        table = shown(summary.result_table(compare(base, tuned, kinds), RunFolder(Path("x"))))
        assert "0.12 (McNemar)" in table and "0.12 (permutation)" in table and " p " in table
        only = compare(base, tuned, {"g": Graded()})
        assert "p (permutation)" in shown(summary.result_table(only, RunFolder(Path("x"))))

    def test_table_without_a_base(self) -> None:
        comparisons = compare(None, answers(m=[1] * 10), {"m": ExactMatch()})
        row = next(
            line
            for line in shown(summary.result_table(comparisons, RunFolder(Path("x")))).splitlines()
            if "m " in line and "1.000" in line
        )
        assert [cell.strip() for cell in row.split("│")[1:-1]] == ["m", "-", "1.000 [0.722, 1.000]", "-", "10"]


PLAIN = KernelsInUse(attention={"vision_tower": ("sdpa",), "llm": ("sdpa",)}, fused={})


class TestRecipeTable:
    ROWS = (
        ComponentRow("vision_tower", "frozen", 1_000_000, 0, "bfloat16", (0.0, 0.0), 2_000_000, 0),
        ComponentRow("llm", "lora r=16", 3_000_000, 40_000, "bfloat16", (2e-4, 2e-4), 6 * 1024**2, 1024),
    )

    def test_each_component_and_the_sum(self) -> None:
        rows = [
            [cell.strip() for cell in line.split("│")[1:-1]]
            for line in shown(summary.recipe_table(self.ROWS, [], PLAIN)).splitlines()
            if line.startswith("│")
        ]
        assert rows == [
            ["vision_tower", "frozen", "1,000,000", "0", "bfloat16", "-", "1.9 MiB"],
            ["llm", "lora r=16", "3,000,000", "40,000", "bfloat16", "2.0e-04", "6.0 MiB"],
            ["all", "", "4,000,000", "40,000 (1.00%)", "", "", "7.9 MiB"],
        ]

    def test_several_rates_and_what_copies_take(self) -> None:
        row = ComponentRow("llm", "full", 10, 10, "float32", (1e-6, 2e-4), 2048, 1024)
        table = shown(summary.recipe_table([row], [], PLAIN))
        assert "1.0e-06 to 2.0e-04" in table
        assert "of it 1.0 KiB are originals, kept beside what trains in full" in table

    def test_what_no_gradient_reaches_is_named(self) -> None:
        table = shown(summary.recipe_table(self.ROWS, ["tower.blocks.23.weight", "tower.post_norm.bias"], PLAIN))
        assert (
            "no gradient reaches 2 trained weights, now frozen: tower.blocks.23.weight, tower.post_norm.bias" in table
        )

    def test_the_kernels_that_were_found(self) -> None:
        fused = {"vision_tower": ("LigerLayerNorm",), "llm": ("LigerRMSNorm", "rotary positions")}
        kernels = KernelsInUse(attention={"vision_tower": ("eager",), "llm": ("eager", "sdpa")}, fused=fused)
        lines = shown(summary.recipe_table(self.ROWS, [], kernels)).splitlines()
        assert "attention: vision_tower eager; llm eager, sdpa" in [line.strip() for line in lines]
        found = "fused kernels: vision_tower LigerLayerNorm; llm LigerRMSNorm, rotary positions"
        assert found in [line.strip() for line in lines]

    def test_why_there_are_none(self) -> None:
        table = shown(summary.recipe_table(self.ROWS, [], PLAIN, "it is not installed"))
        assert "attention: vision_tower sdpa; llm sdpa" in table and "fused kernels: none; it is not installed" in table
        assert shown(summary.recipe_table(self.ROWS, [], PLAIN)).rstrip().endswith("fused kernels: none")

    def test_what_auto_found(self) -> None:
        found = ["projector: model.merger", "proven on 4 samples"]
        lines = shown(summary.recipe_table(self.ROWS, [], PLAIN, None, found)).rstrip().splitlines()
        assert [line.strip() for line in lines[-3:]] == ["fused kernels: none", *found]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1024**3, "1.0 GiB"), (5e13, "46566.1 GiB")]
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert summary.format_bytes(count) == text


def test_check_says_how_far_it_came_and_what_was_bad() -> None:
    whole = CheckReport([], checked=6300, total=6300, complete=True)
    assert summary.check_line(whole) == "checked  6300 of 6300 samples"
    part = CheckReport(["a/1 (f:1, row 0): bad"], checked=10, total=90, complete=False)
    assert summary.check_line(part).splitlines() == [
        "checked  10 of 90 samples, 1 of them bad and to be left out; the rest is checked as it is read "
        "(check_s= gives the check more time)",
        "         a/1 (f:1, row 0): bad",
    ]
