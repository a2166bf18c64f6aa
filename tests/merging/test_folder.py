"""What is written, for every shipped recipe; and what the check says of it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlmft.merging.check as checking
from tests.data.making import qa
from tests.merging.support import exchange, merge
from tests.recipes.test_merge import apart, bound, exact, on_base
from tests.recipes.training import EACH, save_trained, shipped, train, trained_recipe
from tests.support import compose, policy, save_noise, tiny, with_policies
from vlmft.errors import ConfigError, DifferentAnswersError
from vlmft.merging.card import hub_id
from vlmft.merging.check import check, difference, num_same
from vlmft.merging.exchange import Exchange
from vlmft.merging.write import choose_samples, coarser, write
from vlmft.models import Qwen25VL
from vlmft.recipes.saved import open_saved


@pytest.mark.parametrize("recipe", EACH)
def test_transformers_loads_the_folder_and_nothing_is_missing(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = trained_recipe(recipe)
    folder = merge(tmp_path, save_trained(trained, tmp_path / "final"), samples=2)
    assert ("its 8-bit layers dequantised" in capsys.readouterr().out) == (recipe == "lora_llm_int8")
    model, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert {kind: set(names) for kind, names in found.items() if names} == {}
    assert model.lm_head.weight is model.get_input_embeddings().weight
    if recipe == "lora_llm_int8":
        trained = exact(trained, tmp_path / "exact")
    assert apart(model, trained.model) <= bound(model, torch.float32)
    base = tiny().folder()
    ours, its = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in ours.items()} == {n: (t.dtype, t.shape) for n, t in its.items()}
    assert (folder / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()
    suffixes = {path.suffix for path in folder.iterdir()}
    assert suffixes == {".json", ".jinja", ".safetensors", ".md"}


def test_a_bf16_base_stays_bf16_and_the_screen_says_what_that_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(on_base(shipped("lora_llm", "bf16"), "bf16"))
    folder = merge(tmp_path, save_trained(trained, tmp_path / "final"))
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForImageTextToText.from_pretrained(folder).dtype == torch.bfloat16
    said = r"rounded  to bfloat16, the base's dtype; this changes a weight by at most 0\.\d\d% \(model\.\S+\)\n"
    assert re.search(said, capsys.readouterr().out)


def test_ends_that_an_adapter_has_untied_stay_untied(tmp_path: Path) -> None:
    config = with_policies(compose("recipe=lora_llm"), llm=policy("lora", targets=["lm_head", "q_proj"]))
    trained = train(config)
    model = AutoModelForImageTextToText.from_pretrained(merge(tmp_path, save_trained(trained, tmp_path / "final")))
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert apart(model, trained.model) <= bound(model, torch.float32)


def test_the_processor_is_the_trainings_own(tmp_path: Path) -> None:
    config = compose("recipe=projector", "model.image.max_pixels=3136", "model.image.min_pixels=1568")
    final = save_trained(train(config, steps=0), tmp_path / "final")
    template = (final / "chat_template.jinja").read_text()
    (final / "chat_template.jinja").write_text("{{ 'mine: ' }}" + template)
    processor = AutoProcessor.from_pretrained(merge(tmp_path, final, samples=0))
    assert dict(processor.image_processor.size) == {"shortest_edge": 1568, "longest_edge": 3136}
    asked = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    written = processor.apply_chat_template(asked, tokenize=False)
    assert written.startswith("mine: <|im_start|>") and written.endswith("What?<|im_end|>\n")


def test_the_processor_knows_the_trainings_frame_rule(tmp_path: Path) -> None:
    config = compose("recipe=projector", "model.video.fps=3", "model.video.max_frames=6", "model.video.max_pixels=3136")
    final = save_trained(train(config, steps=0), tmp_path / "final")
    videos = AutoProcessor.from_pretrained(merge(tmp_path, final, samples=0)).video_processor
    assert (videos.fps, videos.num_frames, videos.max_frames) == (3, None, 6)
    assert videos.size["longest_edge"] == 3136


def test_weights_are_cut_into_shards(tmp_path: Path) -> None:
    folder = merge(tmp_path, save_trained(trained_recipe("projector"), tmp_path / "final"), max_shard_size="500KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2


def test_a_base_that_has_changed_or_gone_is_refused(tmp_path: Path) -> None:
    base = shutil.copytree(tiny().folder(), tmp_path / "base")
    config = compose("recipe=projector")
    family = Qwen25VL(**(dict(config.model) | {"path": str(base)}))
    run = save_trained(train(config.model_copy(update={"model": family}), steps=0), tmp_path / "final")
    between = exchange(tmp_path, run)
    save_file({"x": torch.zeros(1)}, base / "model.safetensors")
    with pytest.raises(ConfigError, match=r"was trained on a base whose model\.safetensors has sha256"):
        write(between)
    shutil.rmtree(base)
    with pytest.raises(ConfigError, match=r"there is no folder .*base"):
        write(between)
    assert not (tmp_path / "merged").exists()


class TestSamples:
    def config(self, folder: Path, *words: str, rows: list[dict[str, Any]] | None = None, **entry: Any) -> str:
        """A run's config.yaml over three rows, each with the same picture if not told otherwise; all are trained on."""
        save_noise(folder / "0.png", 56, 56)
        (folder / "rows.json").write_text(json.dumps(rows or [qa(id=name, image="0.png") for name in "abc"]))
        dataset = {"_target_": "vlmft.data.LLaVADataset", "data_path": str(folder / "rows.json")} | entry
        return json.dumps(_values(compose("recipe=projector", *words)) | {"dataset": {"mine": dataset}})

    def chosen(self, folder: Path, config: str | None, number: int = 2) -> tuple[list[str], str]:
        more = {} if config is None else {"config": config}
        saved = open_saved(save_trained(trained_recipe("projector"), folder / "final", **more))
        samples, kind = choose_samples(saved, number)
        return [sample.id for sample in samples], kind

    def test_held_out_ones_first(self, tmp_path: Path) -> None:
        ids, kind = self.chosen(tmp_path, self.config(tmp_path, "holdout=0.5"))
        assert kind == "held-out samples" and 1 <= len(ids) <= 2 and set(ids) <= {"mine/a", "mine/b", "mine/c"}

    def test_else_what_was_trained_on(self, tmp_path: Path) -> None:
        ids, kind = self.chosen(tmp_path, self.config(tmp_path))
        assert kind == "training samples" and len(ids) == 2

    @pytest.mark.parametrize("key", ["image", "video"])
    def test_text_where_a_picture_or_a_frame_is_gone(self, key: str, tmp_path: Path) -> None:
        config = self.config(tmp_path, rows=[qa(id="a", **{key: ["0.png", "0.png"]})])
        assert self.chosen(tmp_path, config) == (["mine/a"], "training samples")
        (tmp_path / "0.png").unlink()
        ids, kind = self.chosen(tmp_path, config)
        assert ids == ["text/0", "text/1"] and kind.startswith("text prompts")

    def test_text_where_nothing_is_known_of_the_data(self, tmp_path: Path) -> None:
        assert self.chosen(tmp_path, None, number=50)[0] == [f"text/{i}" for i in range(8)]

    def test_none(self, tmp_path: Path) -> None:
        assert self.chosen(tmp_path, None, number=0)[0] == []


def _values(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_config().items() if name != "_target_"} | {
        "run": {"name": "x", "dir": "x"}
    }


@pytest.mark.parametrize(
    ("rows", "entry", "by_processor"),
    [
        ([qa(id="a", image="0.png")], {}, True),
        ([qa(id="a", image="0.png")], {"image": {"max_pixels": 28 * 28}}, False),
        ([qa(id="a", video=["0.png", "0.png"])], {}, False),
        ([qa("A kite at [0.1, 0.2, 0.5, 0.6]?", id="a", image="0.png")], {"coordinates": "unit"}, True),
    ],
    ids=["a picture", "an entry's own budget", "a video", "boxes written the family's way"],
)
def test_samples_of_every_kind_are_compared(
    rows: list[dict[str, Any]], entry: dict[str, Any], by_processor: bool, tmp_path: Path, capsys: Any
) -> None:
    """The processor alone makes the inputs anew where it is told all that the training was."""
    config = TestSamples().config(tmp_path, rows=rows, **entry)
    merge(tmp_path, save_trained(trained_recipe("projector"), tmp_path / "final", config=config), samples=1)
    assert "compared 1 of 1 answers" in capsys.readouterr().out
    (asked,) = Exchange(tmp_path / "between").handover().asked
    assert (asked.images is not None) == by_processor


def test_a_sample_that_cannot_be_read_is_named_and_left_out(tmp_path: Path, capsys: Any) -> None:
    config = TestSamples().config(tmp_path, rows=[qa(id="a", image="1.png"), qa(id="b", image="0.png")])
    (tmp_path / "1.png").write_bytes(b"no picture")
    merge(tmp_path, save_trained(trained_recipe("projector"), tmp_path / "final", config=config), samples=2)
    out = capsys.readouterr().out
    assert f"left out mine/a ({tmp_path}/rows.json:1, row 0): {tmp_path}/1.png" in out
    assert "compared 1 of 1 answers" in out


class TestTheCheck:
    @pytest.fixture
    def between(self, tmp_path: Path) -> Any:
        """After a merge's first step."""
        found = exchange(tmp_path, save_trained(trained_recipe("fft"), tmp_path / "final"))
        write(found)
        return found

    def change(self, folder: Path, **changes: Any) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        for name, change in changes.items():
            (full,) = [found for found in tensors if found.endswith(name.replace("__", "."))]
            made = change(tensors.pop(full))
            if made is not None:
                tensors[full] = made
        save_file(tensors, file, metadata={"format": "pt"})

    def test_passes_what_was_written(self, between: Any, capsys: pytest.CaptureFixture[str]) -> None:
        check(between)
        said = "compared 8 of 8 answers are token for token the trained model's; their logits differ by at most "
        assert said in capsys.readouterr().out

    def test_another_model_answers_differently(self, between: Any) -> None:
        self.change(between.request.out, embed_tokens__weight=lambda tensor: tensor.flip(0))
        with pytest.raises(
            DifferentAnswersError, match=r"text/0: token \d+ of the merged model's answer is \d+, of"
        ) as e:
            check(between)
        assert e.value.exit_code == 3 and "rounding can turn up to" in str(e.value)

    def test_logits_tell_where_no_answer_does(self, between: Any) -> None:
        self.change(between.request.out, model__norm__weight=lambda tensor: tensor * 1.01)
        with pytest.raises(DifferentAnswersError) as error:
            check(between)
        (problem,) = error.value.problems
        assert problem.startswith("the merged model's logits differ from the trained model's by up to 0.0")

    def test_a_missing_weight(self, between: Any) -> None:
        self.change(between.request.out, layers__1__mlp__up_proj__weight=lambda _: None)
        with pytest.raises(DifferentAnswersError, match=r"1 missing keys: model\..*layers\.1\.mlp\.up_proj\.weight"):
            check(between)

    def test_a_difference_within_rounding_is_let_through(
        self, between: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real = checking.greedy

        def other(*args: Any) -> Any:
            found = real(*args)
            return found | {"answer": found["answer"].clone().index_fill_(0, torch.tensor([0]), 7)}

        monkeypatch.setattr(checking, "greedy", other)
        monkeypatch.setattr(checking, "difference", lambda *_: (1, 7, 1e-7))
        check(between)
        assert "compared 0 of 8 answers are token for token" in capsys.readouterr().out
        monkeypatch.setattr(checking, "difference", lambda *_: (1, 7, 1e-3))
        with pytest.raises(DifferentAnswersError, match=r"token 1 of .* preferred by 0\.001; rounding can turn up to"):
            check(between)

    def test_another_pixel_budget(self, tmp_path: Path) -> None:
        samples = TestSamples().config(tmp_path)
        final = save_trained(trained_recipe("projector"), tmp_path / "final", config=samples)
        found = exchange(tmp_path, final)
        write(found)
        file = found.request.out / "processor_config.json"
        values = json.loads(file.read_text())
        values["image_processor"]["size"] = {"shortest_edge": 28 * 28 * 16, "longest_edge": 28 * 28 * 64}
        file.write_text(json.dumps(values))
        with pytest.raises(DifferentAnswersError, match=r"mine/.: the merged folder's processor makes another "):
            check(found)


def test_where_answers_part() -> None:
    side = {
        "answer": torch.tensor([4, 5]),
        "tokens": torch.tensor([[4, 5], [5, 6]]),
        "values": torch.tensor([[3.0, 1], [2, 1]]),
    }
    assert num_same(side["answer"], torch.tensor([4, 6, 7])) == 1
    assert num_same(side["answer"], torch.tensor([4])) == 1
    assert difference(side, side | {"answer": torch.tensor([4, 6])}, 1) == (5, 6, 1.0)
    assert difference(side, side | {"answer": torch.tensor([9, 6])}, 0) == (4, 9, 2.0)  # at least


@pytest.mark.parametrize(
    ("dtype", "precision", "found"),
    [
        ("float32", "fp32", "float32"),
        ("float32", "bf16", "bfloat16"),
        ("bfloat16", "fp32", "bfloat16"),
        ("float32", "fp16", "float16"),
    ],
)
def test_the_coarser_of_base_and_run_is_what_rounds(dtype: str, precision: str, found: str) -> None:
    assert coarser(dtype, precision) == found


class TestCard:
    def card(self, folder: Path, **changes: Any) -> ModelCard:
        final = save_trained(
            trained_recipe("lora_llm"), folder / "my-run" / "final", datasets={"mine": {"rows": 7, "sha256": "ab"}}
        )
        result = {
            "state": "done",
            "steps": 12,
            "eval": {
                "base": {"exact_match": 0.25},
                "tuned": {"exact_match": 0.75},
                "intervals": {"base": {"exact_match": [0.2, 0.3]}, "tuned": {"exact_match": [0.7, 0.8]}},
                "n": 300,
                "p_value": 0.001,
                "tests": {
                    "exact_match": {"name": "McNemar", "p_value": 0.001},
                    "iou": {"name": "permutation", "p_value": 0.0312},
                },
            },
        }
        (final.parent / "result.json").write_text(json.dumps(result))
        return ModelCard.load(merge(folder, final, samples=0, **changes) / "README.md")

    def test_says_what_the_model_is_and_leaves_its_use_to_the_author(self, tmp_path: Path) -> None:
        card = self.card(tmp_path, base_model="some/base")
        assert card.data.base_model == "some/base"
        assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
        assert card.data.tags == ["vlmft", "vision-language", "lora"]
        digest = open_saved(tmp_path / "my-run").record["base"]["sha256"]["model.safetensors"]
        for said in (
            "# my-run, merged",
            "| mine | 7 | ab |",
            "| llm | lora r=16 |",
            "12 optimiser steps, computed in fp32.",
            "On 300 held-out samples; in brackets the 95 % interval.",
            "| exact_match | 0.250 [0.200, 0.300] | 0.750 [0.700, 0.800] |",
            "Base against this model, two-sided: exact_match: p = 0.001 (exact McNemar test); iou: p = 0.031 (paired "
            "permutation test).",
            f"| `model.safetensors` | `{digest}` |",
            "## Intended use\n\n**To be written by the author before this model is published:** whom it is for",
        ):
            assert said in card.content
        assert str(tiny().folder().parent) not in card.content  # nor any other path of this machine
        assert str(tmp_path) not in card.content

    def test_a_base_without_an_id_is_left_to_the_author_too(self, tmp_path: Path) -> None:
        card = self.card(tmp_path)
        assert card.data.base_model is None
        text = (tmp_path / "merged" / "README.md").read_text()
        assert "\n# base_model: the base's id on the hub, where it has one" in text.partition("\n---\n")[0]

    def test_says_how_to_ask_where_the_template_alone_does_not(self, tmp_path: Path, capsys: Any) -> None:
        for model, said in (
            (
                "tiny_qwen35",
                "It was trained to answer without thinking: `apply_chat_template(..., enable_thinking=False)`",
            ),
            (
                "tiny_glm46v",
                r"It was trained to answer behind `'<|assistant|>\n<think></think>\n'`, which its chat template",
            ),
            ("tiny_llava_onevision", None),
        ):
            final = save_trained(
                train(compose(f"model={model}", "recipe=projector"), steps=0), tmp_path / model / "final"
            )
            card = (merge(tmp_path / model, final, samples=0) / "README.md").read_text()
            printed = "".join(capsys.readouterr().out.split())
            assert ("It was trained to answer" in card) == ("prompts" in printed) == (said is not None)
            assert said is None or said in card

    def test_without_a_score_there_is_none(self, tmp_path: Path) -> None:
        folder = merge(tmp_path, save_trained(trained_recipe("fft"), tmp_path / "final"), samples=0)
        card = (folder / "README.md").read_text()
        assert "the run scored no held-out samples" in card and "Not recorded." in card


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("/x/hub/models--Qwen--Qwen2.5-VL-7B/snapshots/0f", "Qwen/Qwen2.5-VL-7B"),
        ("/weights/mine", None),
        (None, None),
    ],
)
def test_the_bases_id_on_the_hub(path: str | None, found: str | None) -> None:
    assert hub_id(Qwen25VL(**(dict(tiny()) | {"path": path}))) == found
