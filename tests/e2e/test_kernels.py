"""`model.kernels` from the command line: shown in the table of what trains, or refused."""

from typing import Any

import pytest

from tests.e2e.conftest import Typed, read_result, run_here

SHORT = ("dataset.shapes.train_samples=32", "evaluation=none", "trainer.max_steps=1", "preview=0")


@pytest.fixture
def no_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.is_liger_kernel_available", lambda: False)


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ("auto", "fused kernels: none; liger-kernel is not installed (pip install liger-kernel)"),
        ("none", "fused kernels: none"),
    ],
)
def test_a_run_shows_what_it_computes_with(
    no_liger: None, tmp_path: Any, capsys: pytest.CaptureFixture[str], wanted: str, line: str
) -> None:
    words = (*SHORT, f"model.kernels={wanted}", "model.attention=eager", f"run.dir={tmp_path / 'run'}")
    assert run_here(*words) == 0
    lines = [found.rstrip() for found in capsys.readouterr().out.splitlines()]
    assert lines[lines.index(line) - 1] == "attention: vision_tower eager; llm eager"


def test_what_cannot_be_had_ends_the_run(no_liger: None, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(*SHORT, "model.kernels=liger", f"run.dir={tmp_path / 'run'}") == 2
    reason = "model.kernels: liger is not to be had: liger-kernel is not installed (pip install liger-kernel)"
    assert f"error: {reason}; take kernels=auto or none" in capsys.readouterr().err
    assert read_result(tmp_path / "run")["exit_code"] == 2


def test_another_word_is_refused_before_a_rank_starts(typed: Typed) -> None:
    ended = typed("model.kernels=fast")
    assert ended.code == 2
    assert ended.errors == ["model.kernels: Input should be 'auto', 'liger' or 'none' (found 'fast')"]
