import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import CPU, literally, tiny
from vlmft.errors import ConfigError
from vlmft.models import Qwen25VL


def checkpoint(path: str | None, **values: Any) -> Qwen25VL:
    return Qwen25VL(**(dict(tiny()) | {"path": path} | values))


def test_a_folder_is_given_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("weights", "./weights", "~/weights", str(tmp_path / "weights")):
        assert checkpoint(path).folder() == tmp_path / "weights"
        assert checkpoint(path).located().path == str(tmp_path / "weights")


def test_a_hub_id_stays_one() -> None:
    assert checkpoint("Qwen/Qwen2.5-VL-7B-Instruct").located().path == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert tiny().located() == tiny()


def test_no_path() -> None:
    with pytest.raises(ConfigError, match=literally("model.path: names no checkpoint; give a folder or a hub id")):
        checkpoint(None).folder()


@pytest.mark.parametrize("path", ["/nowhere/weights", "./weights", "../weights", "~/weights"])
def test_a_folder_that_does_not_exist(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=literally(f"model.path: there is no folder {path}")):
        checkpoint(path).folder()


@pytest.mark.parametrize("path", ["somebody/some-model", "a/b/c", "no such name", "weights"])
def test_a_hub_id_that_cannot_be_fetched(path: str) -> None:
    message = rf"^model\.path: '{path}' is neither a folder here nor a checkpoint that the hub gives: .*\S"
    with pytest.raises(ConfigError, match=message) as raised:
        checkpoint(path).folder()
    assert len(raised.value.problems) == 1 and "\n" not in raised.value.problems[0]


def test_weights_that_run_code_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny().folder(), folder)
    (folder / "model.safetensors").unlink()
    torch.save(tiny().load_model(CPU).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=literally(f"{folder} holds no *.safetensors; other weight files are not")):
        checkpoint(str(folder)).load_model(CPU)


@pytest.mark.parametrize("damage", ["missing", "another shape"])
def test_weights_that_would_start_at_random_are_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny().folder(), folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.0.mlp.up_proj" in name)
    found = weights.pop(name)
    if damage == "another shape":
        weights[name] = found[1:].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = (
        f"model.path: {folder} lacks 1 weights of Qwen2_5_VLForConditionalGeneration, or has them in another shape: "
    )
    with pytest.raises(ConfigError, match=f"^{literally(message)}.*layers.0.mlp.up_proj.weight; it is damaged"):
        checkpoint(str(folder)).load_model(CPU)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_implementation_is_the_chosen_one(attention: str) -> None:
    model = checkpoint(str(tiny().folder()), attention=attention).load_model(CPU)
    assert model.config._attn_implementation == attention
    assert model.model.visual.config._attn_implementation == attention


def test_weights_keep_the_dtype_they_were_saved_in(tmp_path: Path) -> None:
    tiny().load_model(CPU).to(torch.bfloat16).save_pretrained(tmp_path)
    model = checkpoint(str(tmp_path)).load_model(CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in tiny().load_model(CPU).parameters()} == {torch.float32}
