import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.recipes.expected import PROJECTOR, SHIPPED
from tests.recipes.training import IN_BOTH_PRECISIONS, Trained, batches, save_trained, shipped, train, trained_recipe
from tests.support import CPU, compose, literally, logits, policy, tiny, with_policies, with_recipe
from vlmft.errors import ConfigError
from vlmft.models import Qwen25VL
from vlmft.recipes.saved import hash_weights, load, load_earlier
from vlmft.train import TrainConfig

# Policies that the shipped recipes do not combine.
COMBINED = {
    "the tower's last block, adapters on the LLM": lambda: with_policies(
        compose("recipe=lora_llm"), vision_tower=policy("topk", k=1)
    ),
    "adapters on the tower, the LLM's last block": lambda: with_policies(
        compose("recipe=projector"), vision_tower=policy("lora"), llm=policy("topk", k=1)
    ),
    "adapters on the tower, the LLM's norms, nothing on the projector": lambda: with_policies(
        compose("recipe=lora_vt_llm"), projector=policy("frozen"), llm=policy("norms")
    ),
    "other ranks on the tower": lambda: with_policies(
        compose("recipe=lora_vt_llm"), vision_tower=policy("lora", rank=4, alpha=32)
    ),
    "last blocks without adapters": lambda: with_policies(
        compose("recipe=projector"), vision_tower=policy("topk", k=1), llm=policy("topk", k=1)
    ),
}


def answers_alike(trained: Trained, loaded: Any) -> None:
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training
    for batch in batches():
        assert torch.equal(logits(loaded, batch), logits(trained.model, batch))


@pytest.mark.parametrize(("recipe", "precision"), IN_BOTH_PRECISIONS)
def test_a_loaded_model_answers_bit_for_bit_like_the_one_that_trained(
    recipe: str, precision: str, tmp_path: Path
) -> None:
    trained = trained_recipe(recipe, precision)
    answers_alike(trained, load(save_trained(trained, tmp_path))[0])


@pytest.mark.parametrize("combined", COMBINED)
def test_other_combinations_load_bit_for_bit_too(combined: str, tmp_path: Path) -> None:
    trained = train(COMBINED[combined]())
    assert trained.moved() == trained.trainable != set()
    answers_alike(trained, load(save_trained(trained, tmp_path))[0])


def test_a_loaded_model_generates_what_the_trained_one_does(tmp_path: Path) -> None:
    trained = trained_recipe("lora_llm", "bf16")
    loaded, _ = load(save_trained(trained, tmp_path))
    batch = batches()[0]
    inputs = tiny().model_inputs(tiny().load_processor(), batch.inputs)
    answers = [m.generate(**inputs, do_sample=False, max_new_tokens=8) for m in (trained.model, loaded)]
    assert torch.equal(*answers)


def test_what_is_saved_without_adapters_is_every_trained_weight_by_its_live_name(tmp_path: Path) -> None:
    trained = trained_recipe("projector")
    saved = load_file(save_trained(trained, tmp_path) / "trained.safetensors")
    assert set(saved) == set(PROJECTOR)
    live = dict(trained.model.named_parameters())
    assert all(torch.equal(tensor, live[name]) for name, tensor in saved.items())


def test_what_is_saved_with_adapters_is_peft_s_own_form(tmp_path: Path) -> None:
    saved = load_file(save_trained(trained_recipe("lora_llm"), tmp_path) / "adapter_model.safetensors")
    names = {name.replace(".modules_to_save.default", "").replace(".default", "") for name in SHIPPED["lora_llm"].names}
    assert set(saved) == names


@pytest.mark.parametrize("recipe", ["fft", "ln_vt_lora_llm"])
def test_nothing_that_is_saved_is_a_pickle(recipe: str, tmp_path: Path) -> None:
    folder = save_trained(trained_recipe(recipe), tmp_path / "final")
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jinja", ".safetensors"}
    weights = [path.name for path in folder.glob("*.safetensors")]
    assert weights == ["trained.safetensors" if recipe == "fft" else "adapter_model.safetensors"]


@pytest.mark.parametrize("recipe", ["lora_llm", "ln_vt_lora_llm"])
def test_peft_alone_reads_an_adapter(recipe: str, tmp_path: Path) -> None:
    trained = trained_recipe(recipe)
    save_trained(trained, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny().folder())
    loaded = PeftModel.from_pretrained(tiny().load_model(CPU), tmp_path).eval()
    for batch in batches():
        assert torch.equal(logits(loaded, batch), logits(trained.model, batch))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_peft_and_transformers_alone_read_a_result_that_is_all_adapters(precision: str, tmp_path: Path) -> None:
    """The base that adapter_config.json names, and the adapter, without a line of vlmft."""
    config = with_policies(shipped("lora_llm", precision), projector=policy("frozen"))
    save_trained(train(config), tmp_path)
    base = PeftConfig.from_pretrained(tmp_path).base_model_name_or_path
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
    stock = PeftModel.from_pretrained(model, tmp_path).eval()
    ours, _ = load(tmp_path)
    for batch in batches():
        with torch.autocast("cpu", dtype, enabled=precision != "fp32"):
            assert torch.equal(logits(stock, batch), logits(ours, batch))


def test_an_adapter_names_its_base_by_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the copy of it in this machine's cache."""
    monkeypatch.setattr("vlmft.models.spec._fetch", lambda *_, **__: tiny().folder())
    model = Qwen25VL(**(dict(tiny()) | {"path": "some/base", "revision": "v1"}))
    config = compose("recipe=lora_llm").model_copy(update={"model": model})
    save_trained(train(config, steps=0), tmp_path)
    named = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (named["base_model_name_or_path"], named["revision"]) == ("some/base", "v1")
    load(tmp_path)


def test_provenance_says_what_to_put_together(tmp_path: Path) -> None:
    save_trained(trained_recipe("lora_llm", "bf16"), tmp_path, unreached=("a.weight",), datasets={"shapes": "1f"})
    record = json.loads((tmp_path / "vlmft.json").read_text())
    assert set(record) == {"format", "base", "model", "recipe", "precision", "unreached", "datasets"}
    weights = tiny().folder() / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["base"] == {"path": None, "revision": None, "sha256": {"model.safetensors": digest}}
    assert record["model"]["_target_"].endswith(".TinyQwen25VL")
    assert record["recipe"]["llm"]["rank"] == 16
    assert (record["format"], record["precision"], record["unreached"]) == (1, "bf16", ["a.weight"])
    assert record["datasets"] == {"shapes": "1f"}


def test_the_processor_comes_back_with_the_runs_pixel_budget(tmp_path: Path) -> None:
    config = compose("recipe=projector", "model.image.max_pixels=3136", "model.image.min_pixels=1568")
    save_trained(train(config, steps=0), tmp_path)
    _, processor = load(tmp_path)
    assert dict(processor.image_processor.size) == {"shortest_edge": 1568, "longest_edge": 3136}


def test_a_run_folder_is_as_good_as_its_final_folder(tmp_path: Path) -> None:
    save_trained(trained_recipe("projector"), tmp_path / "run" / "final")
    answers_alike(trained_recipe("projector"), load(str(tmp_path / "run"))[0])


def test_a_folder_without_a_saved_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing: holds no saved model; expected a run folder, or its final/"):
        load(tmp_path / "nothing")


def test_another_format_is_refused(tmp_path: Path) -> None:
    save_trained(trained_recipe("projector"), tmp_path)
    record = json.loads((tmp_path / "vlmft.json").read_text())
    (tmp_path / "vlmft.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(ConfigError, match=r"vlmft\.json: format 99, this vlmft reads 1"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "file", "lost"),
    [
        ("projector", "trained.safetensors", "model.visual.merger.ln_q.weight"),
        ("lora_llm", "adapter_model.safetensors", "base_model.model.model.visual.merger.mlp.0.bias"),
        (
            "lora_llm",
            "adapter_model.safetensors",
            "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_A.weight",
        ),
    ],
)
class TestStrictLoading:
    def changed(self, folder: Path, recipe: str, file: str, change: dict[str, torch.Tensor | None]) -> Path:
        saved = load_file(save_trained(trained_recipe(recipe), folder) / file)
        tensors = {name: tensor for name, tensor in (saved | change).items() if tensor is not None}
        save_file(tensors, folder / file)
        return folder

    def test_a_lost_weight(self, recipe: str, file: str, lost: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=literally(f"1 weights missing ['{lost}'], 0 unexpected []")):
            load(self.changed(tmp_path, recipe, file, {lost: None}))

    def test_a_weight_too_many(self, recipe: str, file: str, lost: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=literally("0 weights missing [], 1 unexpected ['stray']")):
            load(self.changed(tmp_path, recipe, file, {"stray": torch.zeros(3)}))

    def test_a_renamed_weight(self, recipe: str, file: str, lost: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=literally(f"1 weights missing ['{lost}'], 1 unexpected ['stray']")):
            load(self.changed(tmp_path, recipe, file, {lost: None, "stray": torch.zeros(3)}))

    def test_a_weight_of_another_shape(self, recipe: str, file: str, lost: str, tmp_path: Path) -> None:
        # A single value would spread over the whole weight without an error.
        with pytest.raises(ConfigError, match=literally(f"1 of another shape ['{lost}']")):
            load(self.changed(tmp_path, recipe, file, {lost: torch.ones(1)}))


@pytest.mark.parametrize(
    ("recipe", "file"), [("fft", "trained.safetensors"), ("lora_llm", "adapter_model.safetensors")]
)
def test_a_weight_file_that_is_lost_or_cut_short(recipe: str, file: str, tmp_path: Path) -> None:
    weights = save_trained(trained_recipe(recipe), tmp_path) / file
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=rf"{file}: cannot be read: .*; copy the saved model again"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(ConfigError, match=rf"{file}: cannot be read: .*; copy the saved model again"):
        load(tmp_path)


def elsewhere(folder: Path, path: str, recipe: str = "projector") -> TrainConfig:
    """A config whose base is a copy of the tiny checkpoint below `folder`, called `path`."""
    shutil.copytree(tiny().folder(), folder / "base")
    model = Qwen25VL(**(dict(tiny()) | {"path": path}))
    return compose(f"recipe={recipe}").model_copy(update={"model": model})


@pytest.mark.parametrize("recipe", ["projector", "lora_llm"])
def test_a_base_with_one_changed_byte_is_refused(recipe: str, tmp_path: Path) -> None:
    config = elsewhere(tmp_path, str(tmp_path / "base"), recipe)
    save_trained(train(config, steps=0), tmp_path / "final")
    load(tmp_path / "final")
    weights = tmp_path / "base/model.safetensors"
    content = bytearray(weights.read_bytes())
    before = hashlib.sha256(content).hexdigest()[:12]
    content[-1] ^= 1
    weights.write_bytes(content)
    after = hashlib.sha256(content).hexdigest()[:12]
    pattern = rf"trained on a base whose model\.safetensors has sha256 {before}\.\.\., .*base has {after}\.\.\."
    with pytest.raises(ConfigError, match=pattern):
        load(tmp_path / "final")


def test_a_base_with_another_weight_file_is_refused(tmp_path: Path) -> None:
    config = elsewhere(tmp_path, str(tmp_path / "base"))
    save_trained(train(config, steps=0), tmp_path / "final")
    save_file({"x": torch.zeros(1)}, tmp_path / "base/more.safetensors")
    with pytest.raises(ConfigError, match=r"a base whose more\.safetensors has sha256 none"):
        load(tmp_path / "final")


def test_a_base_given_by_a_relative_path_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = elsewhere(tmp_path, "base")
    trained = train(config)
    save_trained(trained, tmp_path / "final")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    answers_alike(trained, load(tmp_path / "final")[0])


def test_hashes_are_of_the_weight_files_alone(tmp_path: Path) -> None:
    for name, content in {"b.safetensors": b"two", "a.safetensors": b"one", "config.json": b"{}"}.items():
        (tmp_path / name).write_bytes(content)
    assert hash_weights(tmp_path) == {
        "a.safetensors": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
        "b.safetensors": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
    }


class TestEarlier:
    """`model.adapter`: what an earlier run trained is where this one begins."""

    def begun(self, config: TrainConfig, earlier: Path) -> Any:
        model = with_recipe(config)
        load_earlier(earlier, model, config.model, config.recipe)
        return model

    @pytest.mark.parametrize("recipe", ["lora_llm", "ln_vt_lora_llm", "dora_llm", "fft", "lora_llm_nf4"])
    def test_its_weights_are_the_start_to_the_bit(self, recipe: str, tmp_path: Path) -> None:
        trained = trained_recipe(recipe)
        model = self.begun(trained.config, save_trained(trained, tmp_path))
        for batch in batches():
            assert torch.equal(logits(model, batch), logits(trained.model, batch))
        assert {name for name, p in model.named_parameters() if p.requires_grad} == SHIPPED[recipe].names

    def test_what_is_saved_then_stands_by_itself(self, tmp_path: Path) -> None:
        first = trained_recipe("lora_llm")
        earlier = save_trained(first, tmp_path / "first")
        config = compose("recipe=lora_llm", f"model.adapter={earlier}")
        second = train(config, self.begun(config, earlier))
        assert second.moved() == second.trainable
        saved = save_trained(second, tmp_path / "second")
        shutil.rmtree(earlier)
        answers_alike(second, load(saved)[0])

    def test_of_another_recipe_is_refused(self, tmp_path: Path) -> None:
        earlier = save_trained(trained_recipe("lora_llm"), tmp_path)
        with pytest.raises(ConfigError, match="holds adapters, this recipe trains weights trained in full"):
            self.begun(compose("recipe=fft"), earlier)
        with pytest.raises(ConfigError, match=r"was trained under another recipe: .* weights missing"):
            self.begun(compose("recipe=lora_vt_llm"), earlier)
        with pytest.raises(ConfigError, match=r"was trained under another recipe: .* 28 of another shape"):
            self.begun(compose("recipe=lora_llm", "recipe.llm.rank=4"), earlier)

    def test_of_another_base_is_refused(self, tmp_path: Path) -> None:
        earlier = save_trained(trained_recipe("lora_llm"), tmp_path / "final")
        base = Path(shutil.copytree(tiny().folder(), tmp_path / "base"))
        weights = load_file(base / "model.safetensors")
        next(iter(weights.values())).add_(1)
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        other = Qwen25VL(**(dict(tiny()) | {"path": str(base)}))
        config = compose("recipe=lora_llm").model_copy(update={"model": other})
        with pytest.raises(ConfigError, match="was trained on a base whose model.safetensors has sha256"):
            self.begun(config, earlier)
