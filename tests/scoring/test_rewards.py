import math
from typing import Any

import pytest

from tests.support import compose, literally
from vlmft.config.spec import Spec, validate
from vlmft.errors import ConfigError, DataError, ScoringError
from vlmft.scoring import Correctness, Format, Length, MetricSpec, Reward, rewards_of, weighted_sum

# A published recipe's own example of a GRPO sample, on which its own format reward gives 0.
SOLUTION = (
    "<think>Let's analyze the image step-by-step. The angle at point B is a right angle.</think>\n\n<answer>A</answer>"
)


class Chosen(Spec):
    reward: dict[str, Reward]


class Picky(MetricSpec):
    """Fails on one text, gives no share for another."""

    def score(self, prediction: str, reference: str) -> float:
        if reference == "unusable":
            raise DataError("its reference 'unusable' is no number")
        return {"bad": math.nan, "large": 7.0}.get(prediction, 0.5) if prediction != "fails" else 1 / 0


def entry(**values: Any) -> Reward:
    return validate(Chosen, {"reward": {"x": values}}).reward["x"]


def test_an_entry_is_a_metric_with_its_weight_beside() -> None:
    found = entry(_target_="vlmft.scoring.Length", most=7, weight=2.5)
    assert found == Reward(weight=2.5, metric=Length(most=7))
    assert validate(Reward, found.to_config()) == found


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"_target_": "vlmft.scoring.Format", "weight": 0}, "reward.x.weight: Input should be greater than 0"),
        ({"_target_": "vlmft.scoring.Format", "weight": math.inf}, "reward.x.weight: Input should be a finite number"),
        ({"_target_": "vlmft.scoring.Format"}, "reward.x.weight: Field required"),
        (
            {"_target_": "vlmft.scoring.Length", "moste": 7, "weight": 1},
            "reward.x.moste: unknown key; did you mean most?",
        ),
        ({"weight": 1}, "reward.x: needs a _target_ that names a MetricSpec"),
        ({"_target_": "vlmft.data.Shapes", "weight": 1}, "reward.x: _target_ 'vlmft.data.Shapes' is not allowed"),
    ],
)
def test_a_wrong_entry_is_named_by_the_users_own_key(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=literally(problem)):
        entry(**values)


def test_scores_are_kept_apart_and_summed_by_weight() -> None:
    rewards = compose("reward=format@2.0+correctness@5.0").reward
    scores = rewards_of(rewards, "mine/1", "<think>red?</think><answer>blue</answer>", "red")
    assert scores == {"format": 1.0, "correctness": 0.0}
    assert weighted_sum(rewards, scores) == 2.0
    assert weighted_sum(rewards, rewards_of(rewards, "mine/1", "red", "Red.")) == 5.0


def test_a_published_example_earns_all_that_there_is() -> None:
    rewards = compose("reward=format@2.0+correctness@5.0+choice").reward
    scores = rewards_of(rewards, "mine/1", SOLUTION, SOLUTION)
    assert scores == {"format": 1.0, "correctness": 1.0, "choice": 1.0}
    assert weighted_sum(rewards, scores) == 8.0


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        ("fails", r"^reward picky, sample mine/1: ZeroDivisionError: .*; the answer was 'fails', the reference 'red'$"),
        ("bad", r"^reward picky, sample mine/1: a score should be in \[0, 1\]; found nan; the answer was 'bad'$"),
        ("large", r"^reward picky, sample mine/1: a score should be in \[0, 1\]; found 7.0; the answer was 'large'$"),
    ],
)
def test_a_reward_that_fails_names_itself_the_sample_and_the_completion(completion: str, problem: str) -> None:
    rewards = {"format": Reward(weight=1, metric=Format()), "picky": Reward(weight=1, metric=Picky())}
    with pytest.raises(ScoringError, match=problem):
        rewards_of(rewards, "mine/1", completion, "red")


def test_a_solution_that_cannot_be_used_is_named() -> None:
    with pytest.raises(DataError, match="^reward picky, sample mine/1: its reference 'unusable' is no number$"):
        rewards_of({"picky": Reward(weight=1, metric=Picky())}, "mine/1", "red", "unusable")


def test_weights_do_not_change_scores() -> None:
    heavy = {"c": Reward(weight=100.0, metric=Correctness())}
    assert rewards_of(heavy, "mine/1", "red", "red") == {"c": 1.0}
