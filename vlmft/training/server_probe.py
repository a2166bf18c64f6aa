"""Does a server compute with the trainer's weights? One prompt is scored by both.

S = tokens of the prompt, V = vocabulary.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vlmft.encoding.encoder import Encoded
from vlmft.training.loss import supervised_logits
from vlmft.training.reference import judging
from vlmft.training.vllm_server import GENERATE, Server

if TYPE_CHECKING:
    from vlmft.training.server_rollouts import ServerRollouts, Weights

_TOKENS = 64
"""Of the prompt's end; pictures' own are never predicted."""
_LIKELIEST = 5
_TEMPERATURE = 0.5
"""Under which log-probs before and after the sampler's own processing have little in common."""


def probe(rollouts: "ServerRollouts", server: Server, where: str, prompt: Encoded, weights: "Weights") -> float:
    """Compare what server and trainer say of one prompt; returns the mean difference of log-probs, in nats a token.

    Raises:
        ServerError: it is above `max_difference`, or log-probs come in another form.
    """
    from vlmft.training.server_rollouts import refuse_other_weights

    asked = {"n": 1, "max_tokens": 1, "temperature": _TEMPERATURE, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    asked |= {"repetition_penalty": 1.0, "logprobs": _LIKELIEST, "prompt_logprobs": 0}
    body = rollouts.request(prompt, weights, 0, **asked)
    found = server.ask("POST", GENERATE, where, body)
    try:
        rollouts.refuse_other_tokens(server, where, prompt, found)
        refuse_other_weights(server, where, weights, found)
        drawn = found["choices"][0]["logprobs"]["content"][0]
        places = _places(prompt, rollouts.features)
        ids = prompt.input_ids.tolist()
        theirs = torch.tensor([found["prompt_logprobs"][place][str(ids[place])]["logprob"] for place in places])
        next_ids = [one["token_id"] for one in drawn["top_logprobs"]]
        next_theirs = torch.tensor([one["logprob"] for one in drawn["top_logprobs"]])
    except (LookupError, TypeError, AttributeError) as error:
        said = f"{prompt.id}: the answer lacks {type(error).__name__}: {error}; is it vLLM 0.33?"
        raise server.error(GENERATE, where, said) from None
    ours, next_ours = _log_probs(rollouts, prompt, places)
    difference = float((ours - theirs).abs().mean()) if places else 0.0
    bound = rollouts.own.max_difference
    if not difference <= bound:
        raise server.error(
            GENERATE,
            where,
            f"{prompt.id}: log-probabilities differ from the trainer's by {difference:.3g} nats a token, more than "
            f"trainer.rollouts.max_difference={bound:g}: the server has other weights, pictures or precision; see that "
            "it serves the run's own checkpoint in the run's precision (--dtype)",
        )
    warmth = float((next_ours[next_ids] - next_theirs).abs().mean())
    if not warmth <= 2 * bound / _TEMPERATURE:
        raise server.error(
            GENERATE,
            where,
            f"log-probabilities of what is drawn are not those it is drawn by (they differ by {warmth:.3g} nats at "
            f"temperature {_TEMPERATURE}); start the server with --logprobs-mode processed_logprobs",
        )
    return difference


def _places(prompt: Encoded, features: list[int]) -> list[int]:
    """Where the prompt's last text tokens stand that have a token before them."""
    ids = prompt.input_ids.tolist()
    return [place for place in range(1, len(ids)) if ids[place] not in features][-_TOKENS:]


@torch.no_grad()
def _log_probs(rollouts: "ServerRollouts", prompt: Encoded, places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The trainer's log-probs of the tokens at `places`, and of every next token [V] at `_TEMPERATURE`; on the CPU."""
    supervised = torch.zeros(len(prompt.input_ids) + 1, dtype=torch.bool)
    supervised[[*places, -1]] = True
    ids = torch.cat([prompt.input_ids, prompt.input_ids[-1:]])  # any token: what is asked for is how it is predicted
    asked = replace(prompt, input_ids=ids, supervised=supervised)
    with judging(rollouts.model):
        inputs, labels = rollouts.collator.on_device([asked], rollouts.model)
        logits, _ = supervised_logits(rollouts.model, inputs, labels)
    rows = logits[0].float()
    own = rows[:-1].log_softmax(-1).cpu()
    following = rows[-1].clone()
    following[rollouts.features] = -torch.inf
    return own[range(len(places)), ids[places]], (following / _TEMPERATURE).log_softmax(-1).cpu()
