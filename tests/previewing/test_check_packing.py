"""`python -m vlmft.preview check=packing`: the user's samples in packs of the user's model, against each alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recipes.training import save_trained, trained_recipe
from vlmft.config.app import run_app
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.models import ModelSpec
from vlmft.models.packing import borders
from vlmft.models.tower import SEGMENTS
from vlmft.preview import PreviewConfig, preview

Typed = Callable[..., tuple[int, str, str]]
MINE = ("dataset=mine", "check=packing", "precision=fp32")


@pytest.fixture
def typed(mine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """The command on six samples with no, one and two pictures, in an empty folder: code, stdout, stderr."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def type_(*words: str) -> tuple[int, str, str]:
        code = run_app("preview", PreviewConfig, preview, argv=words)
        return code, *capsys.readouterr()

    return type_


def rows(out: str) -> dict[str, list[str]]:
    """Of the table of packs: what stands behind each name."""
    below = out[out.index("samples in a pack against themselves alone") :]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in below.splitlines() if line[:1] == "│"]
    return {name: values for name, *values in cells}


@pytest.mark.parametrize("recipe", ["fft", "lora_llm"])
def test_each_sample_is_shown_beside_itself_alone(typed: Typed, recipe: str) -> None:
    code, out, err = typed(*MINE, "n=6", f"recipe={recipe}", "batching.max_tokens=200")
    assert code == 0, err
    found = rows(out)
    samples, packs = ({k: v for k, v in found.items() if k.startswith(start)} for start in ("mine/", "pack "))
    assert len(samples) == 6 and 2 <= len(packs) < 6 and samples.keys() | packs.keys() == found.keys()
    assert sum(int(values[0]) for values in samples.values()) == sum(int(values[0]) for values in packs.values())
    assert all(float(value) < 1e-5 for values in samples.values() for value in values[1:3])
    assert all(float(value) < 1e-5 for values in packs.values() for value in values[1:])
    assert "fp32, at most 1e-05 is allowed" in out and Path("preview.html").exists()


def test_the_model_is_checked_as_it_trains(typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained = trained_recipe("lora_llm")
    earlier = save_trained(trained, tmp_path / "earlier")
    checked: list[Any] = []

    def look(model: Any, *_: Any) -> list[Any]:
        checked.append(model)
        return []

    monkeypatch.setattr("vlmft.training.pack_check.check_packs", look)
    code, _, err = typed(*MINE, "n=2", "recipe=lora_llm", f"model.adapter={earlier}")
    assert code == 0, err
    (model,) = checked
    found = {name: p for name, p in model.named_parameters() if ".lora_B." in name}
    expected = {name: p for name, p in trained.model.named_parameters() if ".lora_B." in name}
    assert found.keys() == expected.keys()
    assert all(p.any() and torch.equal(p, expected[name]) for name, p in found.items())
    assert SEGMENTS in {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")}


def test_a_leak_is_seen_in_every_figure_and_ends_with_2(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Collator.for_loss

    def leaking(self: Collator, samples: Sequence[Encoded], model: Any) -> Any:
        inputs, labels = real(self, samples, model)
        return inputs | {"attention_mask": borders([labels.shape[1]], labels.device)}, labels

    monkeypatch.setattr(Collator, "for_loss", leaking)
    code, out, err = typed(*MINE, "n=6")
    assert code == 2
    assert err.splitlines()[-1] == (
        "error: check=packing: packs 1 of 1 are not computed as their samples alone, within 1e-05; take "
        "batching=grouped, and report this with the model's name"
    )
    assert all(float(value) > 1e-4 for value in rows(out)["pack 1, 6 samples"][1:])


def test_an_llm_that_nobody_has_looked_at_is_refused(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmft.models.packing.PACKED_LLMS", frozenset({"llama"}))
    code, _, err = typed(*MINE)
    said = (
        "TinyQwen25VL takes no packs: this checkpoint's LLM is of type qwen2_5_vl_text, and nobody has looked at that"
    )
    assert (code, err) == (2, f"error: check=packing: {said}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=tiny_gemma3",), "batching=packed: TinyGemma3 takes no packs: its pictures' tokens see each other by"),
        (("model.attention=eager",), "batching=packed computes attention by a function of its own in sdpa's place"),
        (("eval=true", "holdout=0.5"), "check=packing: packs are for training; leave eval=true out"),
        (("n=1",), "check=packing: 1 of these samples can be packed, and it takes two; raise n"),
    ],
)
def test_what_has_no_packs_is_refused_before_weights_load(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(ModelSpec, "load_model", lambda *args: pytest.fail("weights were loaded"))
    code, _, err = typed(*MINE, *words)
    assert code == 2 and err.splitlines()[-1].startswith(f"error: {said}")
