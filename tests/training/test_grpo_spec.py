from typing import Any

import pytest

from tests.support import literally
from tests.training.rolling import grpo_values
from vlmft.config.spec import validate
from vlmft.errors import ConfigError
from vlmft.training import Grpo


def grpo(**changes: Any) -> Grpo:
    return validate(Grpo, grpo_values() | changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_generations": 1}, "num_generations: Input should be greater than or equal to 2 (found 1)"),
        ({"temperature": 0}, "temperature: Input should be greater than 0 (found 0)"),
        ({"top_p": 0}, "top_p: Input should be greater than 0 (found 0)"),
        ({"top_k": 0}, "top_k: Input should be greater than or equal to 1 (found 0)"),
        ({"loss": "ppo"}, "loss: Input should be 'grpo', 'bnpo', 'dapo', 'dr_grpo', 'cispo', 'sapo', 'luspo' or 'vesp"),
        ({"beta": -0.1}, "beta: Input should be greater than or equal to 0 (found -0.1)"),
        ({"steps_per_generation": 0}, "steps_per_generation: Input should be greater than or equal to 1 (found 0)"),
        ({"loss": "cispo"}, "epsilon_high=0.2 is the largest ratio itself in loss=cispo, and should be above 1"),
        ({"loss": "luspo"}, "loss=luspo needs importance_sampling=sequence; found token"),
        (
            {"loss": "vespo", "importance_sampling": "sequence"},
            "loss=vespo needs importance_sampling=token; found sequence",
        ),
        ({"loss": "sapo", "delta": 4.0}, "delta=4 has no part in loss=sapo; set it to null"),
        ({"delta": 1.1}, "delta=1.1 should be above 1 + epsilon_high=1.2, where clips begin"),
        (
            {"off_policy_threshold": 0.5},
            "off_policy_threshold=0.5 leaves nothing out: with steps_per_generation=1 the model",
        ),
        ({"weighed_kl": True}, "weighed_kl=true has no part where beta=0; set it to false, or beta above 0"),
        ({"top_entropy": 1.5}, "top_entropy: Input should be less than or equal to 1 (found 1.5)"),
        ({"sapo_temperatures": [1.0, 0.0]}, "sapo_temperatures=[1.0, 0.0] should be two numbers above 0"),
        ({"vespo_k": [-1.0, 2.0]}, "vespo_k=[-1.0, 2.0] should be two numbers above 0"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=literally(problem)):
        grpo(**changes)


def test_contradictions_are_listed_together() -> None:
    with pytest.raises(ConfigError, match="delta=4 has no part in loss=vespo.*; loss=vespo needs"):
        grpo(loss="vespo", delta=4.0, importance_sampling="sequence")


@pytest.mark.parametrize(
    "changes",
    [{"loss": "cispo", "epsilon_high": 5.0}, {"loss": "grpo", "importance_sampling": "sequence"}, {"delta": 4.0}],
)
def test_what_papers_use_is_taken(changes: dict[str, Any]) -> None:
    assert {name: getattr(grpo(**changes), name) for name in changes} == changes
