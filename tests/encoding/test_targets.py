"""What is encoded of a sample that asks for something else than its answers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import literally, save_noise, tiny, tiny_processor
from vlmft.encoding.encoder import Encoded, Encoder, Mismatched, Rating, Rejected, as_conversation
from vlmft.encoding.handover import unwrap, wrap
from vlmft.errors import DataError
from vlmft.types import Image, Labels, Message, Preference, Rated, Sample, Solution, Target

QUESTION = "Which colour is it?"


def learner(target: type[Target] | None, max_tokens: int | None = None) -> Encoder:
    return Encoder(tiny(), tiny_processor(), max_tokens, learns=target)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    """Two turns about a picture and a last question."""
    picture = Image(save_noise(tmp_path / "a.png", 84, 56))
    turns = (
        Message("user", (picture, "What is this?")),
        Message("assistant", ("A square.",)),
        Message("user", (QUESTION,)),
    )
    return Sample("mine/a", turns, "a.json:1")


def text(ids: torch.Tensor, chosen: torch.Tensor) -> str:
    return str(tiny_processor().tokenizer.decode(ids[chosen]))


def plain(encoded: Encoded) -> tuple[object, ...]:
    media = [{name: tensor.tolist() for name, tensor in item.items()} for item in encoded.media]
    return encoded.id, encoded.input_ids.tolist(), encoded.supervised.tolist(), media, encoded.num_vision_tokens


def test_a_pair_is_two_sequences_over_one_picture(sample: Sample) -> None:
    pair = replace(sample, target=Preference("Red.", "It is blue, I think."))
    encoder = learner(Preference)
    encoded, counted = encoder.encode(pair), encoder.count(pair)
    assert isinstance(encoded.target, Rejected)
    # Of both, the last answer alone is asked for; the prompt is the same.
    assert text(encoded.input_ids, encoded.supervised) == "Red.<|im_end|>"
    assert text(encoded.target.input_ids, encoded.target.supervised) == "It is blue, I think.<|im_end|>"
    prompt = learner(None).encode_prompt(sample).input_ids
    for ids in (encoded.input_ids, encoded.target.input_ids):
        assert torch.equal(ids[: len(prompt)], prompt)
    assert len(encoded.media) == 1
    short, long = len(encoded.input_ids), len(encoded.target.input_ids)
    assert short < long
    assert (encoded.num_tokens, encoded.num_places) == (short + long, 2 * long)
    assert encoded.num_supervised == int(encoded.supervised.sum() + encoded.target.supervised.sum())
    assert (counted.num_tokens, counted.num_supervised) == (encoded.num_places, encoded.num_supervised)
    says = rf"mine/a \(a.json:1\): {2 * long} tokens, .* exceed batching.max_tokens={2 * long - 1}"
    with pytest.raises(DataError, match=says):
        learner(Preference, 2 * long - 1).count(pair)
    assert learner(Preference, 2 * long).count(pair).num_tokens == 2 * long


def test_a_rated_answer_has_another_sample_s_answer_beside_it(sample: Sample) -> None:
    rated = replace(sample, target=Rated("Red.", True, mismatched="It is seven, I think."))
    encoder = learner(Rated)
    encoded, counted = encoder.encode(rated), encoder.count(rated)
    assert isinstance(encoded.target, Rating) and encoded.target.good
    assert text(encoded.input_ids, encoded.supervised) == "Red.<|im_end|>"
    other = encoded.target.mismatched
    assert other is not None and text(other.input_ids, other.supervised) == "It is seven, I think.<|im_end|>"
    prompt = learner(None).encode_prompt(sample).input_ids
    for ids in (encoded.input_ids, other.input_ids):
        assert torch.equal(ids[: len(prompt)], prompt)
    # What is learned is the answer alone.
    plainly = learner(None).encode(as_conversation(rated))
    assert torch.equal(encoded.input_ids, plainly.input_ids)
    assert encoded.num_tokens == encoded.num_places == counted.num_tokens == len(plainly.input_ids)
    assert encoded.num_supervised == counted.num_supervised == int(encoded.supervised.sum())
    assert encoder.encode_prompt(rated).target is None
    bad = encoder.encode(replace(sample, target=Rated("Red.", False)))
    assert bad.target == Rating(False) and plain(bad) == plain(encoded)


def test_another_answer_that_has_no_place_is_left_out_and_the_sample_is_not(sample: Sample) -> None:
    rated = Rated("Red.", True, mismatched="It is seven, I think.")
    length = learner(Rated).count(replace(sample, target=rated)).num_tokens
    longer = learner(Rated, length).encode(replace(sample, target=rated))
    assert longer.target == Rating(True) and len(longer.input_ids) == length
    placeholder = learner(Rated).encode(replace(sample, target=replace(rated, mismatched="<|image_pad|>")))
    assert placeholder.target == Rating(True)
    with pytest.raises(DataError, match=f"{length} tokens, .* exceed batching.max_tokens={length - 1}"):
        learner(Rated, length - 1).count(replace(sample, target=rated))


@pytest.mark.parametrize("target", [Solution("red"), Labels(("red",)), Labels((), multi=True)])
def test_a_solution_and_labels_stand_beside_the_prompt(sample: Sample, target: Solution | Labels) -> None:
    encoded = learner(type(target)).encode(replace(sample, target=target), key=3)
    assert encoded.target == target
    assert not encoded.supervised.any() and encoded.num_supervised == 0
    assert torch.equal(encoded.input_ids, learner(None).encode_prompt(sample).input_ids)


def test_the_last_answer_of_a_conversation_is_a_solution_as_well(sample: Sample) -> None:
    answered = replace(sample, messages=(*sample.messages, Message("assistant", ("Red.",))))
    encoded = learner(Solution).encode(answered)
    assert encoded.target == Solution("Red.")
    assert plain(encoded) == plain(learner(Solution).encode(replace(sample, target=Solution("Red."))))


@pytest.mark.parametrize(
    ("learns", "target", "says"),
    [
        (None, Labels(("red",)), "it holds a class (trainer=classification learns from such samples); trainer=sft"),
        (Preference, Solution("red"), "it holds a solution to check answers against (trainer=grpo learns from such"),
        (Labels, None, "it holds answers (trainer=sft learns from such samples); trainer=classification learns from a"),
        (Solution, Preference("a", "b"), "it holds a chosen and a rejected answer (trainer=dpo learns from such"),
    ],
)
def test_another_trainers_sample_is_refused(
    sample: Sample, learns: type[Target] | None, target: Target | None, says: str
) -> None:
    with pytest.raises(DataError, match=literally(says)):
        learner(learns).count(replace(sample, target=target))


def test_targets_cross_from_loader_processes(sample: Sample) -> None:
    pair = learner(Preference).encode(replace(sample, target=Preference("Red.", "Blue.")))
    asked = learner(Labels).encode(replace(sample, target=Labels(("red", "round"), multi=True)))
    answered = learner(None).encode(as_conversation(replace(sample, target=Solution("Red."))))
    rated = learner(Rated).encode(replace(sample, target=Rated("Red.", True, mismatched="Blue.")))
    alone = learner(Rated).encode(replace(sample, target=Rated("Red.", False)))
    *found, other, last = unwrap(wrap([pair, asked, answered, rated, alone]))
    assert [plain(one) for one in (*found, other, last)] == [
        plain(one) for one in (pair, asked, answered, rated, alone)
    ]
    assert last.target == Rating(False)
    assert isinstance(other.target, Rating) and other.target.good
    assert isinstance(other.target.mismatched, Mismatched) and isinstance(rated.target, Rating)
    assert rated.target.mismatched is not None
    assert torch.equal(other.target.mismatched.input_ids, rated.target.mismatched.input_ids)
    assert torch.equal(other.target.mismatched.supervised, rated.target.mismatched.supervised)
    assert isinstance(found[0].target, Rejected) and isinstance(pair.target, Rejected)
    assert torch.equal(found[0].target.input_ids, pair.target.input_ids)
    assert torch.equal(found[0].target.supervised, pair.target.supervised)
    assert [one.target for one in found[1:]] == [Labels(("red", "round"), multi=True), None]


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        (Preference("a", "b"), "a"),
        (Rated("b", False), "b"),
        (Solution("c"), "c"),
        (Labels(("d", "e")), "d, e"),
        (Labels((), multi=True), "none"),
    ],
)
def test_as_a_conversation(sample: Sample, target: Target, answer: str) -> None:
    found = as_conversation(replace(sample, target=target))
    assert found.target is None
    assert found.messages == (*sample.messages, Message("assistant", (answer,)))
    assert as_conversation(found) is found
