"""What `trainer=grpo` refuses before weights are loaded, and how it judges."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import compose, encoding, literally, read_llava, tiny, tiny_processor, with_recipe, write_llava
from vlmft.data import LLaVADataset
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.encoding.encoder import Encoder
from vlmft.errors import ConfigError, DataError
from vlmft.evaluation.compare import Comparison
from vlmft.evaluation.rewarded import RewardedEvaluator
from vlmft.tasks import task_of
from vlmft.tasks.grpo import GrpoTask
from vlmft.types import Message, Sample, Solution, Video

REWARDED = ("trainer=grpo", "reward=format@2.0+correctness@5.0")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("trainer=grpo",),
            "reward: trainer=grpo learns from rewards, and none is chosen; choose such as "
            "reward=format@2.0+correctness@5.0. Known: choice, correctness, exact_match, field_accuracy, format, iou, ",
        ),
        (
            ("reward=format+correctness",),
            "reward: format+correctness is for trainer=grpo; answers of another trainer's model are scored by "
            "metric=format+correctness",
        ),
        (
            (*REWARDED, "trainer.max_new_tokens=512", "batching.max_tokens=512"),
            "trainer.max_new_tokens: 512 leave no room for a prompt in batching.max_tokens=512",
        ),
        (
            (*REWARDED, "evaluation.best_by=format", "evaluation.every_steps=5"),
            "evaluation.best_by: 'format' is not among this run's metrics: reward, rewards/format, "
            "rewards/correctness, exact_match",
        ),
    ],
)
def test_contradictions_are_refused_in_the_driver(words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=literally(problem)):
        task_of(compose(*words)).check()


def test_a_metric_may_not_take_the_name_of_the_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "registry/metrics").mkdir(parents=True)
    (tmp_path / "registry/metrics/mine.yaml").write_text("reward: {_target_: vlmft.scoring.Format}\n")
    monkeypatch.setenv("VLMFT_PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="metric: reward is what the sum of all rewards is called"):
        task_of(compose(*REWARDED, "metric=reward")).check()


def test_a_users_own_reward_is_chosen_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "registry/rewards").mkdir(parents=True)
    (tmp_path / "registry/rewards/mine.yaml").write_text("brief: {_target_: vlmft.scoring.Length, most: 3}\n")
    monkeypatch.setenv("VLMFT_PATH", str(tmp_path))
    config = compose("trainer=grpo", "reward=brief@0.5+format")
    task_of(config).check()
    assert {name: reward.weight for name, reward in config.reward.items()} == {"brief": 0.5, "format": 1.0}


def test_what_is_chosen_well_passes() -> None:
    for words in (REWARDED, (*REWARDED, "evaluation.best_by=reward", "evaluation.every_steps=5")):
        task = task_of(compose(*words))
        task.check()
        assert isinstance(task, GrpoTask)


def kit(folder: Path) -> Any:
    source = LLaVADataset(data_path=write_llava(folder)).open("mine")
    mixture = Mixture([MixturePart(source, 1, range(len(source)))], 0)
    encoder = Encoder(tiny(), tiny_processor(), learns=Solution)
    return SimpleNamespace(data=SimpleNamespace(mixture=mixture), encoder=encoder)


def test_solutions_that_a_reward_cannot_use_are_listed_before_weights_are_loaded(tmp_path: Path) -> None:
    task = task_of(compose("trainer=grpo", "reward=format+iou"))
    with pytest.raises(DataError) as caught:
        task.check_data(kit(tmp_path))
    assert len(caught.value.problems) == 6
    assert any("reward iou, sample mine/two: its reference 'seven' has no box" in p for p in caught.value.problems)
    task_of(compose(*REWARDED)).check_data(kit(tmp_path))
    task_of(compose("trainer=grpo", "reward=iou", "check_s=0")).check_data(kit(tmp_path))  # there is no time to look


SERVED = ("trainer/rollouts=vllm", "trainer.rollouts.urls=[http://127.0.0.1:9]", "trainer.rollouts.model=tiny")


def test_servers_are_looked_at_and_videos_refused_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(compose(*REWARDED, *SERVED, "trainer.rollouts.wait_s=0"))
    given = kit(tmp_path)
    with pytest.raises(ConfigError, match=literally("before training: http://127.0.0.1:9/health: not reachable (")):
        task.check_data(given)
    looked: list[int] = []
    monkeypatch.setattr("vlmft.training.vllm_server.look_at", lambda spec, longest: looked.append(longest))
    task.check_data(given)
    assert looked == [8192]
    filmed = Sample("mine/film", (Message("user", (Video(tmp_path / "a.mp4"), "What?")),), target=Solution("yes"))
    monkeypatch.setattr("vlmft.data.check.examine", lambda *args: filmed)
    with pytest.raises(DataError, match="mine/film: holds a video, and the server takes frames without their times"):
        task.check_data(given)


def test_a_mixture_of_experts_is_not_served(tmp_path: Path) -> None:
    task = task_of(compose(*REWARDED, *SERVED, "model=tiny_qwen3vl_moe"))
    task.check()
    with pytest.raises(ConfigError, match="is a mixture of experts, and nobody has looked at how a vLLM server takes"):
        task.check_data(kit(tmp_path))


@pytest.mark.parametrize(("most", "warned"), [(8, False), (9, True)])
def test_an_evaluation_that_cuts_answers_shorter_than_training_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, most: int, warned: bool
) -> None:
    config = compose(*REWARDED, f"trainer.max_new_tokens={most}", "evaluation.max_new_tokens=8")
    given = kit(tmp_path)
    given.collator, given.stop = encoding()[1], SimpleNamespace(obey=lambda: None)
    task = task_of(config)
    assert task.judge_of(given, config.evaluation, []).num_samples == 0  # type: ignore[arg-type]
    said = "evaluation.max_new_tokens=8 cuts held-out answers that training lets grow to 9 tokens"
    assert (said in caplog.text) == warned


def judged(tmp_path: Path, *metrics: str) -> tuple[RewardedEvaluator, Any]:
    config = compose(*REWARDED, f"metric={'+'.join(metrics)}", "evaluation.max_new_tokens=4")
    samples = read_llava(write_llava(tmp_path))[:3]
    encoder = Encoder(tiny(), tiny_processor(), learns=Solution)
    parts = (config.evaluation, encoder, encoding()[1], samples)
    return RewardedEvaluator(*parts, rewards=config.reward, metrics=config.metric), with_recipe(config)  # type: ignore


def test_held_out_answers_are_scored_by_rewards_and_metrics(tmp_path: Path) -> None:
    judge, model = judged(tmp_path, "length")
    texts = iter(["<think>It is.</think><answer>red</answer>", "seven", "no"])
    judge.said = lambda model, encoded: [next(texts) for _ in encoded]  # type: ignore[method-assign]
    answers = judge.answer(model)
    expected = [(7.0, 1.0, 1.0), (5.0, 0.0, 1.0), (0.0, 0.0, 0.0)]
    assert [tuple(answer.scores.values())[:3] for answer in answers] == expected
    assert list(answers[0].scores) == ["reward", "rewards/format", "rewards/correctness", "length"]
    assert judge.scores(answers)["reward"] == pytest.approx(4.0)


def test_the_sum_of_rewards_has_an_interval_in_its_own_unit(tmp_path: Path) -> None:
    judge, model = judged(tmp_path, "length")
    for text, mean in (("<think>x</think><answer>y</answer>", 2.0), ("zzz", 0.0)):
        judge.said = lambda model, encoded, text=text: [text for _ in encoded]  # type: ignore[method-assign]
        answers = judge.answer(model)
        compared: list[Comparison] = judge.compare(answers, answers)
        assert [c.metric for c in compared] == ["reward", "rewards/format", "rewards/correctness", "length"]
        assert (compared[0].tuned.value, compared[0].tuned.low, compared[0].tuned.high) == (mean, mean, mean)
        assert compared[0].test == "permutation" and compared[1].test == "McNemar"
