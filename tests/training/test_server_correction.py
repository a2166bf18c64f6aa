"""How a server's completions are weighed, by numbers worked out by hand; and what cannot be served."""

import math
from typing import Any

import pytest
import torch

from tests.support import compose, literally
from tests.training.rolling import grpo_values
from vlmft.config.spec import validate
from vlmft.errors import ConfigError
from vlmft.training import Grpo
from vlmft.training.rollouts_spec import VllmRollouts
from vlmft.training.server_correction import correction_weights

SERVED = ("trainer=grpo", "trainer/rollouts=vllm", "trainer.rollouts.urls=[http://a:1]", "trainer.rollouts.model=m")
LOGS = torch.tensor([0.5, -1.0, 1.2])  # the trainer's less the server's


def rollouts(*words: str, **changes: Any) -> VllmRollouts:
    made = getattr(compose(*SERVED, *words).trainer, "rollouts")  # noqa: B009 (of a trainer's own class)
    return VllmRollouts(**(dict(made) | changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"correction": "token_truncate", "correction_max": 3.0}, [math.exp(0.5), math.exp(-1.0), 3.0]),
        ({"correction": "token_truncate", "correction_max": 3.0, "correction_min": 0.5}, [math.exp(0.5), 0.5, 3.0]),
        ({"correction": "token_mask", "correction_max": 3.0}, [math.exp(0.5), math.exp(-1.0), 0.0]),
        (
            {"correction": "token_mask", "correction_min": 0.5, "correction_max": None},
            [math.exp(0.5), 0, math.exp(1.2)],
        ),
        ({"correction": "sequence_mask", "correction_max": 3.0}, [math.exp(0.7)] * 3),
        ({"correction": "sequence_mask", "correction_max": 2.0}, [0.0] * 3),
        ({"correction": "sequence_truncate", "correction_max": 2.0}, [2.0] * 3),
        ({"correction": "sequence_truncate", "correction_max": None}, [math.exp(0.7)] * 3),
    ],
)
def test_weights(changes: dict[str, Any], expected: list[float]) -> None:
    torch.testing.assert_close(correction_weights(rollouts(**changes), LOGS), torch.tensor(expected))


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (("recipe=lora_llm", "recipe/policy@recipe.projector=frozen"), "adapter"),
        (("recipe=lora_llm", "recipe/policy@recipe.projector=frozen", "recipe.llm.dora=true"), "checkpoint"),
        (("recipe=lora_llm", "recipe/policy@recipe.projector=frozen", "recipe.llm.bias=true"), "checkpoint"),
        (("recipe=lora_llm",), "checkpoint"),  # its projector trains in full
        (("recipe=lora_vt_llm",), "checkpoint"),
        (("recipe=fft",), "checkpoint"),
    ],
)
def test_only_an_adapter_over_the_llm_alone_goes_as_one(words: tuple[str, ...], way: str) -> None:
    config = compose(*SERVED, *words)
    assert rollouts().way(config.recipe, config.model) == way


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("recipe=lora_llm_nf4",),
            "trainer.rollouts: no vLLM server can answer while this recipe trains: recipe.llm.base=nf4: the trainer "
            "computes with rounded weights that the server does not have; set the base to null or bf16, or take "
            "trainer/rollouts=transformers",
        ),
        (
            ("model=tiny_gemma3",),
            "this recipe trains TinyGemma3: nobody has looked at what the server makes of its pictures and weights; "
            "take trainer/rollouts=transformers",
        ),
        (("model=tiny_qwen35",), "nobody has looked at how the server takes the weights of its linear layers"),
        (
            ("trainer.rollouts.api_key_env=VLMFT_NO_SUCH_KEY",),
            "trainer.rollouts.api_key_env: the variable that it names is not set in the environment",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_in_the_driver(words: tuple[str, ...], problem: str) -> None:
    from vlmft.tasks import task_of

    with pytest.raises(ConfigError, match=literally(problem)):
        task_of(compose(*SERVED, "reward=format", *words)).check()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"urls": ("http://me:secret@a:1",)},
            "each of urls should be http:// or https:// with a host, without user, pass",
        ),
        ({"correction_min": 3.0}, "correction_min=3 should be below correction_max=3"),
    ],
)
def test_settings_that_contradict(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=literally(problem)) as caught:
        validate(VllmRollouts, dict(rollouts()) | changes)
    assert "secret" not in str(caught.value)


def test_vespo_takes_no_weight_of_a_whole_completion() -> None:
    words = {"loss": "vespo", "rollouts": rollouts()}
    with pytest.raises(
        ConfigError, match=literally("rollouts.correction=sequence_mask should be token_truncate, token")
    ):
        validate(Grpo, grpo_values() | words)


def test_log_probs_of_some_tokens_alone_weigh_nothing() -> None:
    """The server's are higher then: times as many tokens, every completion would count next to nothing."""
    narrow = grpo_values() | {"top_p": 0.9, "top_k": 20}
    with pytest.raises(ConfigError, match="top_p=0.9, top_k=20: the server's log-probabilities are then of the tokens"):
        validate(Grpo, narrow | {"rollouts": rollouts()})
    validate(Grpo, narrow | {"rollouts": rollouts(correction="none")})
    validate(Grpo, narrow)
