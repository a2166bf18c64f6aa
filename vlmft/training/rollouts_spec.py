"""Who makes the completions of `trainer=grpo`, and what a server cannot do; no torch."""

import os
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from vlmft.config.spec import Spec
from vlmft.errors import ConfigError
from vlmft.models.spec import ModelSpec
from vlmft.recipes.policies import Frozen
from vlmft.recipes.recipe import Recipe

Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
Way = Literal["adapter", "checkpoint"]
"""How trained weights get to a server: as a LoRA adapter over the weights that it has, or all of them, merged."""

_URL = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")


class RolloutsSpec(Spec, abstract=True):
    """Who makes completions."""

    def check(self, recipe: Recipe, family: ModelSpec) -> None:
        """Refuse what cannot be made so.

        Raises:
            ConfigError: names the keys.
        """
        return


class OwnRollouts(RolloutsSpec):
    """The model that trains, by transformers, in the process that trains it."""


class VllmRollouts(RolloutsSpec):
    """A vLLM server, which is given the trained weights."""

    urls: tuple[str, ...] = Field(min_length=1, description="servers of the same checkpoint, each as http://host:port")
    model: str = Field(min_length=1, description="the checkpoint's name there")
    api_key_env: str | None = Field(description="name of the environment variable that holds the key; null: no key")
    weights_dir: Path | None = Field(
        description="where weights are put, which the servers see at the same path; null: in the run folder"
    )
    concurrency: int = Field(ge=1, description="prompts that a rank asks about at a time")
    wait_s: float = Field(ge=0, allow_inf_nan=False, description="seconds in which a server has to have started")
    timeout_s: float = Field(gt=0, allow_inf_nan=False, description="seconds for one request")
    sync_timeout_s: float = Field(gt=0, allow_inf_nan=False, description="seconds for a server to take the weights")
    max_difference: float = Field(
        gt=0, allow_inf_nan=False, description="nats a token between the log-probs of server and trainer, on average"
    )
    correction: Correction = Field(
        description="how a completion's loss is weighed by its probability under the trainer over that under the server"
    )
    correction_min: float | None = Field(gt=0, allow_inf_nan=False, description="least such weight; null: any")
    correction_max: float | None = Field(gt=0, allow_inf_nan=False, description="largest such weight; null: any")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        # Here, and not in the field: its message would show the value, and with it a key that stands in a URL.
        if not all(_URL.fullmatch(url) for url in self.urls):
            raise ValueError(
                "each of urls should be http:// or https:// with a host, without user, password or query (a key is "
                "given by api_key_env)"
            )
        low, high = self.correction_min, self.correction_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"correction_min={low:g} should be below correction_max={high:g}")
        return self

    def check(self, recipe: Recipe, family: ModelSpec) -> None:
        """See `RolloutsSpec`."""
        self.way(recipe, family)
        self.read_key()

    def way(self, recipe: Recipe, family: ModelSpec) -> Way:
        """How the weights of this recipe get to the server.

        vLLM 0.33 takes a LoRA adapter over the LLM without restart, but none with DoRA's magnitudes, trained biases or
        modules beside it (`vllm/lora/peft_helper.py`); whatever else trains goes there as a whole checkpoint.

        Raises:
            ConfigError: they do not, and why.
        """
        lead = "trainer.rollouts: no vLLM server can answer while this recipe trains"
        mend = "take trainer/rollouts=transformers"
        if family.unserved_because is not None:
            raise ConfigError(f"{lead} {type(family).__name__}: {family.unserved_because}; {mend}")
        if recipe.quantised:
            said = ", ".join(f"recipe.{name}.base={base}" for name, base in recipe.quantised.items())
            raise ConfigError(
                f"{lead}: {said}: the trainer computes with rounded weights that the server does not have; set the "
                f"base to null or bf16, or {mend}"
            )
        policies = recipe.policies(family.component_paths)
        lora = recipe.adapters.get("llm")
        alone = lora is not None and all(isinstance(p, Frozen) for name, p in policies.items() if name != "llm")
        return "adapter" if lora is not None and alone and not lora.dora and not lora.bias else "checkpoint"

    def read_key(self) -> str | None:
        """The key, from the environment.

        Raises:
            ConfigError: the variable is not set, or its value cannot be sent.
        """
        if self.api_key_env is None:
            return None
        # The name is not shown: whoever writes the key itself there must not find it in a log.
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not (key.isascii() and key.isprintable()):
            raise ConfigError(
                "trainer.rollouts.api_key_env: the variable that it names is not set in the environment, or holds what "
                "cannot be a key; give the name of the variable that holds the key, never the key itself"
            )
        return key


def video_refusal(sample: str) -> str:
    """Why a sample with a video is not sent."""
    return (
        f"{sample}: holds a video, and the server takes frames without their times: it could not be shown "
        "that it sees what is trained on; give frames as pictures, or take trainer/rollouts=transformers"
    )
