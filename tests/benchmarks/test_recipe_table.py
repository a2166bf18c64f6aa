"""The table of recipes: README's is made of the recorded result, the screen's fits, and second copies are measured."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft.tuners import lora  # noqa: F401  # its tables would count

from tests.recipes.expected import SHIPPED
from tests.support import CPU, PROJECT, compose, literally
from vlmft.recipes.apply import apply_recipe
from vlmft.recipes.base import load_base
from vlmft.recipes.table import component_rows


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, by its path: pytest knows tests/recipes by the same name."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    spec = importlib.util.spec_from_file_location("benchmark_of_recipes", PROJECT / "benchmarks/recipes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_says_what_the_recorded_result_does(recipes: ModuleType) -> None:
    result = recipes.read_result()
    text = (PROJECT / "README.md").read_text()
    assert text == recipes.with_block(text, recipes.readme_block(result)), "python benchmarks/recipes.py --readme"
    assert result["recipes"].keys() == SHIPPED.keys()
    for name, figures in result["recipes"].items():
        trains = {part for part in ("vision_tower", "projector", "llm") if getattr(SHIPPED[name], part)}
        assert figures["trains"].keys() == trains, name


def test_it_is_written_between_its_marks(recipes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    monkeypatch.setattr(recipes, "README", readme)
    monkeypatch.setattr(sys, "argv", ["recipes.py", "--readme"])
    readme.write_text(f"before\n{recipes.BEGIN}\nold\n{recipes.END}\nafter\n")
    assert recipes.main() == 0
    lines = readme.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and "old" not in lines
    assert sum(line.startswith("| `") for line in lines) == len(SHIPPED)
    readme.write_text(f"before\n{recipes.BEGIN}\n")
    with pytest.raises(ValueError, match=literally(f"README.md has no {recipes.BEGIN} followed by {recipes.END}")):
        recipes.main()


def test_the_screens_tables_fit_80_columns(recipes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    recipes.show_tables(recipes.read_result()["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert rows == 2 * list(recipes.read_result()["recipes"])  # none is folded


MERGER = 4 * (64 + (256 * 256 + 256) + (256 * 64 + 64))
TOWER = 4 * 158_592 + MERGER  # the merger lies in the tower's module


@pytest.mark.parametrize(
    ("recipe", "shown", "beside"),
    [
        ("lora_llm", MERGER, 0),
        ("ln_vt_lora_llm_nf4", MERGER + 4 * 4 * 64, 0),  # with two norms of each of two blocks
        ("fft_vt_lora_llm", TOWER, 4 * 8),  # with the tower's rotary frequencies, a buffer
    ],
)
def test_second_copies_take_what_the_runs_table_says(recipes: ModuleType, recipe: str, shown: int, beside: int) -> None:
    config = compose(f"recipe={recipe}")
    model = load_base(config.model, config.recipe, torch.float32, CPU)
    held = recipes.live_bytes()
    model = apply_recipe(model, config.recipe, config.model, torch.float32)
    adapters = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if ".lora_" in name)
    measured = recipes.live_bytes() - held - adapters
    rows = component_rows(model, config.recipe, config.model, 0.01, config.optim.state_bytes)
    assert (sum(row.copies_bytes for row in rows), measured) == (shown, shown + beside)


def test_a_storage_counts_once(recipes: ModuleType) -> None:
    before = recipes.live_bytes()
    tensor = torch.zeros(1000)
    views = [tensor[:10], tensor.view(10, 100)]
    assert recipes.live_bytes() - before == 4000
    del tensor, views
    assert recipes.live_bytes() == before
