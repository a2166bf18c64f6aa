import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import CPU, compose, literally, read_llava, save_noise, tiny, write_llava
from vlmft.config.media import MediaRules
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoder
from vlmft.errors import DataError, ScoringError
from vlmft.evaluation import Generate
from vlmft.evaluation.answers import Answer, write_answers
from vlmft.evaluation.generate import Evaluator
from vlmft.models import Qwen25VL
from vlmft.recipes.apply import apply_recipe
from vlmft.scoring import ExactMatch
from vlmft.types import Image, Message, Sample

# Each of these changes what the tiny model says, if it is let to.
BENT = [
    {"do_sample": True, "temperature": 3.0, "top_p": 0.9, "top_k": 20},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"num_beams": 3},
    {"suppress_tokens": list(range(0, 500, 2))},
]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return read_llava(write_llava(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny().load_model(CPU)


@pytest.fixture(autouse=True)
def _training(model: Any) -> None:
    model.train()


MakeEvaluator = Callable[..., Evaluator]


@pytest.fixture
def evaluator(samples: list[Sample]) -> MakeEvaluator:
    def make(batch_size: int = 4, family: Any = None, some: list[Sample] | None = None, **options: Any) -> Evaluator:
        family = family or tiny()
        processor = family.load_processor()
        spec = Generate(
            base=True, every_steps=None, best_by=None, max_samples=None, max_new_tokens=12, batch_size=batch_size
        )
        parts = (Encoder(family, processor), Collator(family, processor))
        return Evaluator(spec, *parts, samples if some is None else some, {"exact_match": ExactMatch()}, **options)

    return make


def texts(answers: list[Answer]) -> list[str]:
    return [answer.prediction for answer in answers]


def checkpoint(folder: Path, **generation: Any) -> Qwen25VL:
    """A copy of the tiny checkpoint whose generation_config.json says more."""
    shutil.copytree(tiny().folder(), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | generation))
    return Qwen25VL(**(tiny().model_dump() | {"path": str(folder)}))


@torch.no_grad()
def by_hand(model: Any, evaluator: Evaluator, sample: Sample) -> list[int]:
    """The most likely token, again and again, without a cache."""
    model.eval()
    batch = evaluator.collator([evaluator.encoder.encode_prompt(sample)])
    inputs = tiny().model_inputs(evaluator.collator.processor, batch.inputs)
    new: list[int] = []
    while len(new) < 12 and not (new and new[-1] in model.generation_config.eos_token_id):
        ids = torch.cat([batch.inputs["input_ids"], torch.tensor([new], dtype=torch.long)], dim=1)
        types = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(new)))
        longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}
        new.append(int(model(**inputs | longer, use_cache=False).logits[0, -1].argmax()))
    return new


class TestAnswers:
    def test_stand_in_the_samples_order_with_ids_questions_and_references(
        self, evaluator: MakeEvaluator, model: Any, samples: list[Sample]
    ) -> None:
        answers = evaluator(batch_size=2).answer(model)
        assert [answer.id for answer in answers] == [sample.id for sample in samples]
        assert [(answer.question, answer.reference) for answer in answers] == [
            ("What colour is the shape?", "red"),
            ("Which digit is written here?", "seven"),
            ("The quick brown fox?", "jumps over the lazy dog"),
            ("And the background?", "a black background"),
            ("Name the digit.", "nine"),
            ("Answer with one word.", "no"),
        ]
        assert model.training  # left as it came

    def test_do_not_depend_on_their_neighbours(self, evaluator: MakeEvaluator, model: Any) -> None:
        one, two, all_at_once = (texts(evaluator(batch_size=size).answer(model)) for size in (1, 2, 6))
        assert one == two == all_at_once
        assert len(set(one)) > 1

    def test_are_the_same_where_samples_cannot_share_a_batch(
        self, evaluator: MakeEvaluator, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = texts(evaluator(batch_size=6).answer(model))
        made = evaluator(batch_size=6)
        monkeypatch.setattr(type(made.collator.family), "batch_kind", lambda self, media: len(media))
        sizes = []
        answer = made.said
        monkeypatch.setattr(
            made, "said", lambda model, encoded: (sizes.append(len(encoded)), answer(model, encoded))[1]
        )
        assert texts(made.answer(model)) == expected
        assert sum(sizes) == 6 and len(sizes) == 3

    def test_are_what_the_model_would_say_next(self, evaluator: MakeEvaluator, model: Any) -> None:
        made = evaluator()
        decode = made.collator.processor.tokenizer.decode
        said = [decode(by_hand(model, made, sample), skip_special_tokens=True) for sample in made.samples]
        assert texts(made.answer(model)) == said

    def test_boxes_are_compared_as_the_model_was_taught_to_write_them(
        self, evaluator: MakeEvaluator, model: Any, tmp_path: Path
    ) -> None:
        picture = Image(save_noise(tmp_path / "a.png", 56, 112))
        turns = (Message("user", (picture, "Where?")), Message("assistant", ("<box>0.25,0.5,0.5,1</box>",)))
        sample = Sample("mine/1", turns, rules=MediaRules(coordinates="unit"))
        (answer,) = evaluator(some=[sample]).answer(model)
        assert answer.reference == "<box>28,28,56,56</box>"

    def test_are_scored_against_the_reference(
        self, evaluator: MakeEvaluator, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = evaluator()
        monkeypatch.setattr(made, "_all_said", lambda model, encoded: ["Red.", "six", "", "a black background"])
        made.samples = made.samples[:4]
        assert [answer.scores for answer in made.answer(model)] == [{"exact_match": s} for s in (1.0, 0.0, 0.0, 1.0)]

    def test_that_a_metric_fails_on_are_named(
        self, evaluator: MakeEvaluator, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = evaluator()
        monkeypatch.setattr(made, "_all_said", lambda model, encoded: ["red", "six", "", "dark"])
        monkeypatch.setattr(ExactMatch, "score", lambda self, prediction, reference: 1 / len(prediction))
        with pytest.raises(ScoringError, match="^metric exact_match, sample mine/none: ZeroDivisionError: division by"):
            made.answer(model)
        assert model.training

    def test_a_reference_that_a_metric_cannot_use_is_named_before_any_answer(
        self, evaluator: MakeEvaluator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def check(self: ExactMatch, reference: str) -> None:
            if " " in reference:
                raise DataError(f"its reference {reference!r} is no word")

        monkeypatch.setattr(ExactMatch, "check", check)
        with pytest.raises(DataError) as caught:
            evaluator()
        assert caught.value.problems == (
            "metric exact_match, sample mine/none: its reference 'jumps over the lazy dog' is no word",
            "metric exact_match, sample mine/turns: its reference 'a black background' is no word",
        )

    def test_are_written_one_a_line(self, tmp_path: Path, evaluator: MakeEvaluator, model: Any) -> None:
        answers = [*evaluator().answer(model), Answer("mine/ü", "Größe?", "5 µm", "5\nµm", {"exact_match": 0.0})]
        write_answers(tmp_path / "new" / "tuned.jsonl", answers)
        rows = [json.loads(line) for line in (tmp_path / "new" / "tuned.jsonl").read_text("utf-8").splitlines()]
        assert [Answer(**row) for row in rows] == answers
        assert list(rows[0]) == ["id", "question", "reference", "prediction", "scores"]
        assert "Größe" in (tmp_path / "new" / "tuned.jsonl").read_text("utf-8")


class TestGreedy:
    @pytest.mark.parametrize("bend", BENT, ids=lambda bend: next(iter(bend)))
    def test_ignores_what_the_checkpoint_says_about_generation(
        self,
        tmp_path: Path,
        evaluator: MakeEvaluator,
        model: Any,
        bend: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        family = checkpoint(tmp_path / "bent", **bend)
        bent = family.load_model(CPU)
        made = evaluator(family=family)
        asked = dict(bent.generation_config.to_dict())
        assert {key: asked[key] for key in bend} == bend
        assert texts(made.answer(bent)) == texts(evaluator().answer(model))
        assert bent.generation_config.to_dict() == asked  # and what it says stays with it
        monkeypatch.setattr("vlmft.evaluation.generate.generating", lambda model, collator: contextlib.nullcontext())
        assert texts(made.answer(bent)) != texts(evaluator().answer(model))

    def test_holds_under_adapters(self, tmp_path: Path, evaluator: MakeEvaluator, model: Any) -> None:
        family = checkpoint(tmp_path / "bent", repetition_penalty=1.5)
        config = compose("recipe=lora_llm")
        adapted = apply_recipe(family.load_model(CPU), config.recipe, family, torch.float32)
        assert texts(evaluator(family=family).answer(adapted)) == texts(evaluator().answer(model))

    def test_stops_where_the_checkpoint_says_and_not_later(
        self, tmp_path: Path, evaluator: MakeEvaluator, model: Any, samples: list[Sample]
    ) -> None:
        made = evaluator(some=samples[1:2])
        first = by_hand(model, made, samples[1])
        end = next(token for token in first[2:] if token != first[0])
        family = checkpoint(tmp_path / "short", eos_token_id=[end], min_new_tokens=12)
        cut = texts(evaluator(family=family, some=samples[1:2]).answer(family.load_model(CPU)))
        assert cut == [made.collator.processor.tokenizer.decode(first[: first.index(end) + 1])]
        assert first.index(end) + 1 < len(first)


class TestRanks:
    def test_share_the_samples_and_all_get_every_answer(
        self, evaluator: MakeEvaluator, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone = evaluator().answer(model)
        sent: list[dict[int, Answer]] = []

        def gather(shares: list[Any], mine: dict[int, Answer]) -> None:
            sent.append(mine)
            shares[:] = sent if len(sent) == 2 else [mine, {}]

        monkeypatch.setattr("torch.distributed.all_gather_object", gather)
        with pytest.raises(KeyError):  # this rank's own answers are not all of them
            evaluator(rank=0, world_size=2).answer(model)
        together = evaluator(rank=1, world_size=2).answer(model)
        assert [sorted(share) for share in sent] == [[0, 2, 4], [1, 3, 5]]
        assert together == alone


class TestErrors:
    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_a_sample_that_cannot_be_read_is_named(
        self, tmp_path: Path, evaluator: MakeEvaluator, model: Any, num_workers: int
    ) -> None:
        some = read_llava(write_llava(tmp_path))
        (tmp_path / "1.png").unlink()
        (tmp_path / "1.png").write_bytes(b"no picture")
        expected = f"mine/two ({tmp_path}/dataset.json:1, row 1): {tmp_path}/1.png is no picture in a known format"
        with pytest.raises(DataError, match=f"^{literally(expected)}"):
            evaluator(batch_size=2, some=some, num_workers=num_workers).answer(model)
        assert model.training

    def test_loader_processes_change_nothing(self, evaluator: MakeEvaluator, model: Any) -> None:
        assert evaluator(num_workers=1).answer(model) == evaluator().answer(model)


def test_a_batch_crosses_from_the_loader_process_in_one_buffer(
    evaluator: MakeEvaluator, samples: list[Sample], model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that crosses by itself takes a file descriptor: a large batch would use them up and hang."""
    judge = evaluator(batch_size=len(samples), num_workers=1)
    storages: list[set[int]] = []

    def generate(model: Any, encoded: list[Any]) -> list[str]:
        tensors = [t for e in encoded for t in (e.input_ids, e.supervised, *(v for m in e.media for v in m.values()))]
        storages.append({tensor.untyped_storage().data_ptr() for tensor in tensors})
        return ["" for _ in encoded]

    monkeypatch.setattr(judge, "_all_said", generate)
    assert len(judge.answer(model)) == len(samples) > 1
    assert [len(found) for found in storages] == [1]
