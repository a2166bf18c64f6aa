"""The command: what it finds, refuses and prints."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from vlmft.config.app import run_app
from vlmft.errors import ConfigError
from vlmft.plan import PlanConfig, plan
from vlmft.planning.plan import GRAIN, Load, Plan, Planner
from vlmft.planning.sizes import Size, showing_all
from vlmft.planning.trace import Traced

SMALL = ("model=tiny_qwen25vl", "dataset=shapes", "n=48", "device.reserved=1MB")


def planned(*words: str) -> tuple[int, list[Plan]]:
    """The exit code of `python -m vlmft.plan *words`, and the plans."""
    plans: list[Plan] = []
    code = run_app("plan", PlanConfig, lambda config, made: plan(config, made, plans), argv=[*SMALL, *words])
    return code, plans


@pytest.fixture
def without_weights(tmp_path: Path) -> Path:
    """A checkpoint's folder as it is planned with: config and processor."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny().folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_prints_memory_by_part_and_operations_from_a_folder_without_weights(
    without_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("recipe=lora_llm", f"model.path={without_weights}", "device.memory=24GB", "device.name=4090")
    code, (found,) = planned(*words, "precision=bf16", "search=false", "trainer.max_steps=7")
    said = capsys.readouterr().out
    assert code == 0
    for part in ("weights", "adapters and second copies", "optimiser", "activations, llm", "head and loss", "peak"):
        assert f"│ {part} " in said
    assert "of 375,296 parameters train" in said
    assert "a step, 7 steps: less than a minute" in said
    assert sum(found.kept.parts.values()) == found.kept.peak
    assert found.recomputed.peak < found.kept.peak


def test_operations_of_the_tower_are_counted_where_the_heaviest_sample_has_no_picture(mine: Path) -> None:
    rows = json.loads(mine.read_text())
    (text,) = (row for row in rows if row["id"] == "none")
    text["conversations"][1]["value"] = "jumps over the lazy dog " * 40
    mine.write_text(json.dumps(rows))
    code, (found,) = planned("dataset=mine", "n=6", "recipe=lora_llm", "search=false")
    assert code == 0 and found.work is not None
    assert found.heaviest.sizes[0].vision_tokens == 0
    assert found.work.rates.vision_token > 0


def test_operations_are_counted_of_samples_that_show_all_of_them() -> None:
    nothing, text, picture, both = (
        Size(0, 9, vision, supervised, 0) for vision, supervised in ((0, 0), (0, 2), (4, 0), (4, 2))
    )
    assert showing_all([nothing, text, picture, both]) == [both]
    assert showing_all([nothing, text, picture]) == [picture, text]
    assert showing_all([nothing, text]) == [text]
    assert showing_all([nothing]) == [nothing]


@pytest.mark.slow
def test_the_largest_budget_fits_and_the_next_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (roomy,) = planned("device.memory=24GB")
    assert roomy.budgets == {False: roomy.whole_step, True: roomy.whole_step}
    planners: list[Planner] = []
    made = Planner.__init__

    def kept(self: Planner, *args: Any) -> None:
        planners.append(self)
        made(self, *args)

    monkeypatch.setattr(Planner, "__init__", kept)
    tight = (roomy.kept.peak + 10**6) / 10**6 * 0.75
    code, (found,) = planned(f"device.memory={tight:.1f}MB")
    budget = found.budgets[False]
    assert code == 0 and budget is not None and budget < roomy.whole_step
    (planner,) = planners
    with planner.hollow:
        planner._recompute(False)
        peaks: Sequence[int] = [planner._heaviest(tokens)[1].peak for tokens in (budget, budget + GRAIN)]
    assert found.memory is not None and peaks[0] <= found.memory < peaks[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer=dpo", "dataset=demo_dpo"], "only the step of trainer=sft is planned"),
        (["device.memory=24"], "'24' is no size; write a number and a unit, such as 24GB"),
        (["device.memory=1MB"], "device.reserved: 1MB leaves nothing of device.memory=1MB"),
        (["device.name=H900"], "the peak of 'H900' is not known; known are B200, "),
        (["model.path=./nowhere"], "model.path: there is no folder ./nowhere"),
    ],
)
def test_refuses_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, plans = planned(*words)
    assert (code, plans) == (2, [])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_names_a_model_whose_code_does_not_run_without_contents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def looks_at_values(self: Planner) -> None:
        raise RuntimeError("a value is asked for")

    monkeypatch.setattr(Planner, "_build", looks_at_values)
    assert planned()[0] == 2
    assert "cannot be run on tensors without contents (RuntimeError: a value is asked for)" in capsys.readouterr().err


def opened(monkeypatch: pytest.MonkeyPatch, *words: str) -> Planner:
    """The planner of a command, before it builds a model."""
    planners: list[Planner] = []

    def keep(self: Planner, *_: Any) -> Plan:
        planners.append(self)
        raise ConfigError("kept")

    with monkeypatch.context() as patched:
        patched.setattr(Planner, "plan", keep)
        planned(*words)
    return planners[0]


def test_a_sample_that_exceeds_the_budget_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Planner, "_build", lambda self: None)
    assert planned("batching=grouped", "batching.max_tokens=20")[0] == 2
    err = capsys.readouterr().err
    assert "tokens exceeds batching.max_tokens=20; raise it" in err and "without contents" not in err


def test_micro_batches_are_cut_by_kind_as_training_cuts_them(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny()), "batch_kind", lambda self, media: len(media))
    planner = opened(monkeypatch, "dataset=mine", "n=6", "batching=packed")
    loads = planner._loads(planner._budget_of_steps())
    pictures = [sorted(len(planner._unit(size).media) for size in load.sizes) for load in loads]
    assert sorted(pictures) == [[0], [1, 1, 1, 1], [2]]
    assert max(load.places for load in loads) > planner._budget_of_steps() - GRAIN


def test_the_budget_is_searched_to_the_end_where_costs_mislead(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = opened(monkeypatch, "global_batch_size=48", "batching=packed")
    whole = planner._budget_of_steps()
    most = max(load.places for load in planner._loads(whole // 2))
    tried: list[int] = []

    def jumps(load: Load) -> Traced:
        """All at rest, so that no budget is told from another."""
        tried.append(load.places)
        return Traced(1 if load.places <= most else 10**6, {}, 0)

    monkeypatch.setattr(planner, "_trace", jumps)
    heaviest = max(planner._loads(whole), key=lambda load: load.places)
    budget = planner._largest_budget(1000, heaviest, jumps(heaviest))
    assert budget is not None
    assert max(load.places for load in planner._loads(budget)) <= most
    assert max(load.places for load in planner._loads(budget + GRAIN)) > most
    assert len(tried) < 14


def test_data_of_which_nothing_can_be_encoded_is_named(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(mine.read_text())
    mine.write_text(json.dumps([row | {"conversations": row["conversations"][:1]} for row in rows]))
    assert planned("dataset=mine")[0] == 2
    assert "mine/one" in capsys.readouterr().err
