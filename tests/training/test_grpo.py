"""Completions, their groups and what is learned from them, on the tiny Qwen2.5-VL."""

import io
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support import compose, encoding, literally, read_llava, tiny, tiny_processor, with_recipe, write_llava
from tests.training.rolling import VARIED, drawn, figures, gradients, objective, prompts
from vlmft.encoding.batching import Padded
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.loading import EncodedGroup
from vlmft.errors import DataError, ScoringError
from vlmft.models.shared_vision import SharedVision
from vlmft.scoring import MetricSpec, Reward
from vlmft.training.answered import Completion
from vlmft.training.grpo_loss import group_advantages
from vlmft.training.reference import StartValues
from vlmft.types import Sample, Solution

G = 3


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return read_llava(write_llava(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def asked(samples: list[Sample]) -> list[Encoded]:
    return prompts(samples)


@pytest.fixture(scope="module")
def group(asked: list[Encoded]) -> EncodedGroup:
    """One picture, two, none, several turns."""
    return EncodedGroup(asked[:4])


def answering(*words: str) -> Any:
    """A tiny model of which every sixth token ends an answer, so that some completions end and some are cut."""
    model = with_recipe(compose(*words))
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    owner.generation_config.eos_token_id = list(range(0, 555, 6))
    return model.train()


@pytest.fixture
def model() -> Any:
    return answering()


@pytest.fixture(scope="module")
def still() -> Any:
    """A model that no test changes."""
    return answering()


def test_a_conversations_last_answer_is_its_solution(samples: list[Sample], asked: list[Encoded]) -> None:
    assert [one.target for one in asked] == [Solution(sample.messages[-1].text) for sample in samples]


def test_a_prompts_completions_stand_together_behind_it_and_share_its_media(still: Any, group: EncodedGroup) -> None:
    made = objective(still).begin(0, group)
    assert [one.id for one in made] == [prompt.id for prompt in group.samples for _ in range(G)]
    ends = set(still.generation_config.eos_token_id)
    for number, one in enumerate(made):
        prompt = group.samples[number // G]
        ids, length = one.rollout.ids, len(prompt.input_ids)
        assert one.encoded.media is prompt.media
        assert torch.equal(one.encoded.input_ids, torch.cat([prompt.input_ids, ids]))
        assert one.encoded.supervised.tolist() == [False] * length + [True] * len(ids)
        assert 1 <= len(ids) <= 6 and one.rollout.ended == (int(ids[-1]) in ends)
        assert not ends & set(ids[:-1].tolist())
        assert one.num_supervised == len(ids) and one.num_tokens == one.num_places == length + len(ids)
    assert {one.rollout.ended for one in made} == {True, False}  # both are met here


def test_no_token_of_a_pictures_features_is_drawn(model: Any, group: EncodedGroup) -> None:
    features = tiny().feature_tokens(tiny_processor())
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[sorted(features)] = head.mean(0) * 50  # else the likeliest by far
    made = objective(model).begin(0, group)
    assert not features & {token for ids in drawn(made) for token in ids}


def test_seed_step_and_rank_alone_decide_what_is_drawn(
    still: Any, group: EncodedGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = drawn(objective(still).begin(3, group))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert drawn(objective(still).begin(3, group)) == first
    assert drawn(objective(still).begin(4, group)) != first
    assert drawn(objective(still, seed=1).begin(3, group)) != first
    monkeypatch.setattr("vlmft.training.rollouts.rank", lambda: 1)
    assert drawn(objective(still).begin(3, group)) != first


def test_the_model_answers_without_dropout_and_trains_on_as_before(group: EncodedGroup) -> None:
    model = answering("recipe=lora_llm", "recipe.llm.dropout=0.9")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    dropped = objective(model).begin(0, group)
    assert model.training
    model.eval()
    assert drawn(objective(model).begin(0, group)) == drawn(dropped)


@pytest.mark.parametrize("changes", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_where_sampling_leaves_one_token_all_completions_are_the_greedy_answer(
    still: Any, group: EncodedGroup, changes: dict[str, Any]
) -> None:
    made = objective(still, **changes)
    completions = made.begin(0, group)
    inputs, _ = encoding()[1].on_device(group.samples[:1], still)
    still.eval()
    greedy = still.generate(**inputs, do_sample=False, max_new_tokens=6, repetition_penalty=1.0)
    still.train()
    expected = greedy[0, inputs["input_ids"].shape[1] :].tolist()
    assert drawn(completions)[:G] == [expected[: len(ids)] for ids in drawn(completions)[:G]]
    assert all(len(set(map(tuple, drawn(completions)[i : i + G]))) == 1 for i in range(0, len(completions), G))
    loss, found = gradients(made, [completions])
    assert loss == 0.0 and all(gradient.eq(0).all() for gradient in found.values())  # nothing to compare
    assert figures(made, completions)["frac_reward_zero_std"] == 1.0


def test_a_repetition_penalty_is_obeyed(still: Any, group: EncodedGroup) -> None:
    plain, fined = (objective(still, top_k=1, repetition_penalty=p).begin(0, group) for p in (1.0, 1e6))
    assert drawn(plain) != drawn(fined)
    prompt = set(group.samples[0].input_ids.tolist())
    assert not prompt & set(fined[0].rollout.ids.tolist())


def test_rewards_are_weighted_and_compared_within_the_group(still: Any, group: EncodedGroup) -> None:
    rewards = VARIED | {"long": Reward(weight=0.5, metric=compose("metric=length").metric["length"])}
    for scale in ("group", "batch", "none"):
        made = objective(still, rewards=rewards, scale_rewards=scale)
        completions = made.begin(0, group)
        earned = [2.0 * one.scores["varied"] + 0.5 * one.scores["long"] for one in completions]
        assert [one.reward for one in completions] == pytest.approx(earned)
        table = torch.tensor(earned).view(-1, G)
        expected, spread = group_advantages(table, scale)
        assert [one.advantage for one in completions] == pytest.approx(expected.flatten().tolist(), abs=1e-5)
        assert len({round(one.advantage, 6) for one in completions}) > 4
        said = figures(made, completions)
        assert said["reward"] == pytest.approx(sum(earned) / len(earned))
        assert said["reward_std"] == pytest.approx(float(spread.mean()), abs=1e-6)
        assert said["rewards/varied"] == pytest.approx(sum(o.scores["varied"] for o in completions) / len(earned))
        assert said["rewards/long"] == pytest.approx(sum(o.scores["long"] for o in completions) / len(earned))
        assert said["completion_length"] == pytest.approx(sum(map(len, drawn(completions))) / len(earned))
        assert said["truncated"] == pytest.approx(sum(not o.rollout.ended for o in completions) / len(earned))
        assert 0 < said["entropy"] < math.log(len(tiny_processor().tokenizer))
        assert (said["frac_reward_zero_std"], said["clip_ratio"]) == (0.0, 0.0)


def test_the_loss_is_the_policy_gradient_of_the_completions(still: Any, group: EncodedGroup) -> None:
    """Against autograd on the plain formula: the mean over all tokens of -advantage x log-prob, at the temperature."""
    made = objective(still, temperature=0.7)
    completions = made.begin(0, group)
    _, found = gradients(made, [completions])
    still.zero_grad(set_to_none=True)
    total = sum(len(one.rollout.ids) for one in completions)
    for one in completions:
        inputs, _ = encoding()[1].on_device([one.encoded], still)
        logits = still(**inputs).logits[0] / 0.7
        own = logits[-len(one.rollout.ids) - 1 : -1].log_softmax(-1)
        picked = own.gather(1, one.rollout.ids[:, None]).sum()
        (-one.advantage * picked / total).backward()
    for name, parameter in still.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize(
    "changes", [{"loss": "grpo"}, {"loss": "dapo", "top_entropy": 0.4, "entropy_bonus": 0.5, "weighed_kl": True}]
)
def test_any_cut_into_micro_batches_is_the_same_step(model: Any, group: EncodedGroup, changes: dict[str, Any]) -> None:
    start = StartValues(model)
    made = objective(model, beta=0.3, reference=start.put_in, mask_truncated=True, **changes)
    move(model)
    completions = made.begin(0, group)
    expected, whole = gradients(made, [completions])
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-2
    for size in (1, 5):
        cuts = [completions[i : i + size] for i in range(0, len(completions), size)]
        total, found = gradients(made, cuts)
        assert total == pytest.approx(expected, abs=1e-6)
        for name, gradient in whole.items():
            torch.testing.assert_close(found[name], gradient, atol=5e-6, rtol=1e-3)


def test_only_the_steps_least_certain_tokens_are_learned_from(model: Any, group: EncodedGroup) -> None:
    made = objective(model, top_entropy=0.25)
    completions = made.begin(0, group)
    certain, uncertain = [], []
    for one in completions:
        inputs, _ = encoding()[1].on_device([one.encoded], model)
        with torch.no_grad():
            rows = model.eval()(**inputs).logits[0, -len(one.rollout.ids) - 1 : -1].float().log_softmax(-1)
        entropy = -(rows.exp() * rows).sum(-1)
        assert one.learnt is not None and one.learnt.shape == one.rollout.ids.shape
        certain += entropy[~one.learnt].tolist()
        uncertain += entropy[one.learnt].tolist()
    assert min(uncertain) >= max(certain) - 1e-5
    assert len(uncertain) / (len(certain) + len(uncertain)) == pytest.approx(0.25, abs=0.05)
    completions_, tokens, learnt = made.weights(completions)
    assert (completions_, learnt) == (len(completions), len(uncertain)) and tokens == len(certain) + len(uncertain)


def move(model: Any, by: float = 0.05) -> None:
    """Move every trained weight, always alike, as steps would."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=random)


def test_truncated_completions_are_masked_where_asked(still: Any, group: EncodedGroup) -> None:
    made = objective(still, mask_truncated=True)
    completions = made.begin(0, group)
    ended = [one for one in completions if one.rollout.ended]
    assert 0 < len(ended) < len(completions)
    tokens = sum(len(one.rollout.ids) for one in ended)
    assert made.weights(completions) == (len(completions), tokens, tokens)
    assert objective(still).weights(completions)[1] == sum(len(one.rollout.ids) for one in completions)
    _, found = gradients(made, [completions])
    cut = [replace_advantage(one, 100.0) if not one.rollout.ended else one for one in completions]
    _, same = gradients(made, [cut])
    assert all(torch.equal(found[name], same[name]) for name in found)


def replace_advantage(one: Completion, advantage: float) -> Completion:
    return replace(one, advantage=advantage)


def test_the_kl_divergence_is_from_the_model_of_the_start(model: Any, group: EncodedGroup) -> None:
    start = StartValues(model)
    made = objective(model, beta=0.5, reference=start.put_in)
    first = made.begin(0, group)
    assert figures(made, first)["kl"] == pytest.approx(0.0, abs=1e-6)
    before = [one.ref_logps for one in first]
    move(model)
    with start.put_in():
        again = made.log_probs(first)
    assert all(torch.equal(one, was) for one, was in zip(again, before, strict=True))
    assert figures(made, first)["kl"] > 1e-3
    assert model.training


def test_a_reward_that_fails_names_itself_the_sample_and_the_completion(still: Any, group: EncodedGroup) -> None:
    class Failing(MetricSpec):
        """Never gives a score."""

        def score(self, prediction: str, reference: str) -> float:
            raise KeyError("nothing")

    made = objective(still, rewards={"mine": Reward(weight=1, metric=Failing())})
    text = objective(still).begin(0, group)[0].rollout.text
    problem = r"^reward mine, sample mine/one: KeyError: 'nothing' \(.*test_grpo.py:\d+\); the answer was "
    with pytest.raises(ScoringError, match=problem + literally(repr(text))):
        made.begin(0, group)


def test_a_prompt_that_leaves_no_room_for_a_completion_is_refused_not_cut(samples: list[Sample]) -> None:
    long = len(prompts(samples[:1])[0].input_ids)
    fits = Encoder(tiny(), tiny_processor(), long + 6, learns=Solution, room=6)
    assert len(fits.encode(samples[0]).input_ids) == long
    tight = Encoder(tiny(), tiny_processor(), long + 5, learns=Solution, room=6)
    problem = (
        rf"^mine/one .*{long} tokens, \d+ of them vision tokens, and 6 of a completion "
        rf"\(trainer.max_new_tokens\), exceed batching.max_tokens={long + 5}"
    )
    with pytest.raises(DataError, match=problem):
        tight.encode(samples[0])


class TestImages:
    def test_another_picture_gives_other_log_probs(self, still: Any, asked: list[Encoded]) -> None:
        made = objective(still)
        completions = made.begin(0, EncodedGroup(asked[:1]))
        own = made.log_probs(completions)
        noisy = [torch.randint_like(t, 255) if t.dtype == torch.uint8 else t for t in asked[0].media[0].values()]
        media = [dict(zip(asked[0].media[0], noisy, strict=True))]
        swapped = made.log_probs([replace(o, encoded=replace(o.encoded, media=media)) for o in completions])
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(own, swapped, strict=True))

    def test_the_tower_sees_each_prompts_own_pictures(self, still: Any, asked: list[Encoded]) -> None:
        """In generation and in training; once where a batch has as many completions of each prompt."""
        seen: list[torch.Tensor] = []
        made = objective(still, rollout_batch_size=2)
        handle = still.model.visual.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        try:
            completions = made.begin(0, EncodedGroup(asked[:3]))  # one picture, two, none
            while_made = torch.cat(seen)
            seen.clear()
            for start in range(0, len(completions), 4):
                made.share(still, completions[start : start + 4], (9.0, 9.0, 9.0))
            while_trained = torch.cat(seen)
        finally:
            handle.remove()
        one, two = (encoding()[1].on_device([prompt], still)[0]["pixel_values"] for prompt in asked[:2])
        assert torch.equal(while_made, torch.cat([one, one, two, two]))  # of batches 1 1, 1 2, 2 2
        assert torch.equal(while_trained, torch.cat([one, one, one, two, two]))  # of 1 1 1 2, 2 2

    def test_a_step_learns_the_same_where_pictures_are_seen_once(
        self, model: Any, group: EncodedGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model.generation_config.eos_token_id = 1
        rows: list[int] = []
        model.model.visual.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        found = {}
        for shared in (True, False):
            if not shared:
                monkeypatch.setattr(SharedVision, "repeated", lambda self, times: nullcontext())
            rows.clear()
            made = objective(model, top_k=1, rollout_batch_size=32, steps_per_generation=2, num_steps=1)
            completions = made.begin(0, group)
            for number, one in enumerate(completions):  # those of a group are equal here, and would earn nothing
                one.advantage = 1.0 - number % 5
            found[shared] = drawn(completions), completions, gradients(made, [completions]), list(rows)
        (tokens, once, (loss, gradient), few), (same, apart, (expected, whole), many) = found[True], found[False]
        assert tokens == same and loss == pytest.approx(expected, abs=1e-6) and abs(loss) > 1e-3
        assert len(few) == 3 and [3 * number for number in few] == many  # made, their log-probs, learned from
        for one, other in zip(once, apart, strict=True):
            torch.testing.assert_close(one.old_logps, other.old_logps, atol=1e-5, rtol=1e-5)
        assert any("visual" in name for name in whole)
        for name, value in whole.items():
            torch.testing.assert_close(gradient[name], value, atol=1e-5, rtol=1e-3)


class TestStepsPerGeneration:
    """Two steps' completions are made at the first; at the second they come from an older model."""

    @pytest.fixture
    def steps(self, asked: list[Encoded]) -> dict[int, EncodedGroup]:
        return {0: EncodedGroup(asked[:2]), 1: EncodedGroup(asked[2:4]), 2: EncodedGroup(asked[4:6])}

    def test_the_second_step_learns_from_what_the_first_made(self, model: Any, steps: dict[int, EncodedGroup]) -> None:
        made = objective(model, steps_per_generation=2, ahead=steps.__getitem__, epsilon_high=0.1, epsilon_low=0.1)
        first = made.begin(0, steps[0])
        assert figures(made, first)["clip_ratio"] == 0.0
        move(model)
        second = made.begin(1, steps[1])
        assert [one.id for one in second] == [p.id for p in steps[1].samples for _ in range(G)]
        fresh = made.log_probs(second)
        assert all((one.old_logps - new).abs().max() > 1e-3 for one, new in zip(second, fresh, strict=True))
        assert figures(made, second)["clip_ratio"] > 0.1

    def test_old_log_probs_are_those_of_the_model_that_made_them(
        self, model: Any, steps: dict[int, EncodedGroup]
    ) -> None:
        made = objective(model, steps_per_generation=2, ahead=steps.__getitem__)
        made.begin(0, steps[0])
        second = made.begin(1, steps[1])
        for one, logps in zip(second, made.log_probs(second), strict=True):
            torch.testing.assert_close(one.old_logps, logps)

    def test_nothing_is_made_for_steps_that_never_come(self, still: Any, steps: dict[int, EncodedGroup]) -> None:
        asked_for: list[int] = []

        def ahead(step: int) -> EncodedGroup:
            asked_for.append(step)
            return steps[step]

        made = objective(still, steps_per_generation=4, num_steps=3, ahead=ahead)
        made.begin(0, steps[0])
        assert asked_for == [1, 2]

    def test_what_waits_survives_a_checkpoint_to_the_bit(self, still: Any, steps: dict[int, EncodedGroup]) -> None:
        made = objective(still, steps_per_generation=2, ahead=steps.__getitem__)
        made.begin(0, steps[0])
        file = io.BytesIO()
        torch.save(made.state(), file)
        file.seek(0)
        again = objective(still, steps_per_generation=2)
        again.restore(torch.load(file, weights_only=True))
        one, other = made.begin(1, steps[1]), again.begin(1, steps[1])
        assert drawn(one) == drawn(other)
        for a, b in zip(one, other, strict=True):
            assert (a.rollout.text, a.rollout.ended, a.scores, a.advantage) == (
                b.rollout.text,
                b.rollout.ended,
                b.scores,
                b.advantage,
            )
            assert a.old_logps is not None and torch.equal(a.old_logps, b.old_logps)

    def test_a_run_that_goes_on_within_a_generation_without_it_makes_the_rest(
        self, still: Any, steps: dict[int, EncodedGroup]
    ) -> None:
        made = objective(still, steps_per_generation=3, ahead=steps.__getitem__)
        assert [one.id for one in made.begin(1, steps[1])] == [p.id for p in steps[1].samples for _ in range(G)]
        assert sorted(made.state()["waiting"]) == [2]

    def test_a_sample_that_could_not_be_read_then_is_left_out(self, still: Any, steps: dict[int, EncodedGroup]) -> None:
        ahead = {1: EncodedGroup(steps[1].samples[:1])}
        made = objective(still, steps_per_generation=2, ahead=ahead.__getitem__)
        made.begin(0, steps[0])
        assert {one.id for one in made.begin(1, steps[1])} == {steps[1].samples[0].id}
        made.begin(0, steps[0])
        with pytest.raises(
            DataError, match="^step 2: none of its samples could be read when its completions were made$"
        ):
            made.begin(1, steps[2])


def test_long_completions_are_scored_in_micro_batches_of_the_budget(still: Any, group: EncodedGroup) -> None:
    longest = max(len(prompt.input_ids) for prompt in group.samples) + 6
    sizes: list[int] = []
    made = objective(still, batching=Padded(max_tokens=longest), steps_per_generation=2, num_steps=1)
    handle = still.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].numel()) if "labels" not in kwargs else None,
        with_kwargs=True,
    )
    try:
        completions = made.begin(0, group)
        sizes.clear()
        made.log_probs(completions)
    finally:
        handle.remove()
    assert len(sizes) > 3 and max(sizes) <= longest


def test_left_padded_generation_and_right_padded_training_agree(still: Any, asked: list[Encoded]) -> None:
    """TRL's issue 5785: with prompts of several lengths in a batch, positions have to be counted alike."""
    from tests.training.agreement import check

    check(still, asked[:4], encoding()[1])
