"""Completions of a step, with all that is learned from them. T = tokens of a completion."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlmft.encoding.encoder import Encoded
from vlmft.models.spec import Media
from vlmft.training.rollouts import Rollout
from vlmft.training.server_correction import Drawn
from vlmft.types import Solution


@dataclass(slots=True)
class Completion:
    """One completion with its prompt: what a step is cut into. T = its tokens."""

    encoded: Encoded
    """The prompt and the completion, whose tokens alone are supervised; its media are the prompt's own."""
    rollout: Rollout
    solution: str
    scores: dict[str, float]
    """By reward, before its weight."""
    reward: float
    advantage: float
    spread: float
    """The standard deviation of its group's rewards."""
    old_logps: Tensor | None = None
    """float32 [T], of the model that made it; None: the model of this step did."""
    ref_logps: Tensor | None = None
    """float32 [T], of the reference."""
    drawn: Drawn | None = None
    """Where a server made it: how likely it was there."""
    learnt: Tensor | None = None
    """Bool [T], the tokens that are learned from; None: all."""

    @property
    def id(self) -> str:
        """See `Unit`."""
        return self.encoded.id

    @property
    def media(self) -> list[Media]:
        """See `Unit`."""
        return self.encoded.media

    @property
    def num_tokens(self) -> int:
        """See `Unit`."""
        return self.encoded.num_tokens

    @property
    def num_places(self) -> int:
        """See `Unit`."""
        return self.encoded.num_places

    @property
    def num_supervised(self) -> int:
        """See `Unit`."""
        return self.encoded.num_supervised

    @property
    def num_vision_tokens(self) -> int:
        """See `Unit`."""
        return self.encoded.num_vision_tokens


@dataclass(slots=True)
class Answered:
    """A prompt's completions, without the prompt: what waits for a later step, also in a checkpoint."""

    id: str
    rollouts: list[Rollout]
    scores: list[dict[str, float]]
    old_logps: list[Tensor] | None = None
    drawn: list[Drawn] | None = None

    def state(self) -> dict[str, Any]:
        """As plain values and tensors."""
        rollouts = [(made.ids, made.ended, made.text, made.logps) for made in self.rollouts]
        drawn = None if self.drawn is None else [(one.weights, one.difference) for one in self.drawn]
        return {
            "id": self.id,
            "rollouts": rollouts,
            "scores": self.scores,
            "old_logps": self.old_logps,
            "drawn": drawn,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Answered":
        """What `state` gave."""
        drawn = None if state["drawn"] is None else [Drawn(*one) for one in state["drawn"]]
        return cls(**(dict(state) | {"rollouts": [Rollout(*made) for made in state["rollouts"]], "drawn": drawn}))


def solution_of(prompt: Encoded) -> str:
    """What a prompt's completions are checked against."""
    assert isinstance(prompt.target, Solution), "the encoder learns solutions"
    return prompt.target.text


def followed(prompt: Encoded, ids: Tensor) -> Encoded:
    """The prompt with a completion behind it; the media are shared."""
    supervised = torch.cat(
        [torch.zeros(len(prompt.input_ids), dtype=torch.bool), torch.ones(len(ids), dtype=torch.bool)]
    )
    return replace(prompt, input_ids=torch.cat([prompt.input_ids, ids]), supervised=supervised)
