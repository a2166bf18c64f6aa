"""Completions by vLLM servers, from the very tokens and pixels that are trained on, by the weights of the step.

What is sent of a prompt are its token ids, each picture's as one token, and the pictures as the tower sees them. The
server repeats a picture's token as often as it has features: the ids that come back have to be those trained on.
"""

import base64
import io
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError

from vlmft.data.hashing import hash_texts, mix, salt
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.encoding.generating import answer_ends, answer_text
from vlmft.errors import DataError, StorageError, VlmftError
from vlmft.recipes.snapshot import write_adapter, write_checkpoint
from vlmft.training.grpo_spec import Grpo
from vlmft.training.ranks import rank
from vlmft.training.rollouts import Rollout
from vlmft.training.rollouts_spec import VllmRollouts, Way, video_refusal
from vlmft.training.server_probe import probe
from vlmft.training.vllm_server import GENERATE, Server

STARTED = "default"
"""What vLLM calls the weights that it was started with."""
_NEVER = -100.0
"""A bias on a logit, in nats; vLLM takes none below."""


@dataclass(frozen=True)
class Weights:
    """What a server computes with."""

    name: str
    """The model that is asked for: the checkpoint, or the adapter."""
    version: str
    """What each completion has to say that it was drawn by."""
    salt: str
    """Of the server's prefix cache: nothing that other weights have computed is taken for these."""


class ServerRollouts:
    """Answers prompts by servers that have the trained weights.

    Args:
        model: unwrapped, with its recipe applied.
        way: how its weights get to the servers.
        folder: where weights are put; the servers see it at the same path.
        dtype: of the run's precision, in which all weights are written.
        seed: of the run; with the step and a sample's id it decides what is drawn.
    """

    def __init__(
        self,
        spec: Grpo,
        model: Any,
        collator: Collator,
        way: Way,
        folder: Path,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        assert isinstance(spec.rollouts, VllmRollouts)
        self.spec, self.own = spec, spec.rollouts
        self.model, self.collator, self.dtype, self.seed = model, collator, dtype, seed
        self.way, self.folder = way, folder.absolute()
        key = self.own.read_key()
        self.servers = [Server(url, self.own, key) for url in self.own.urls]
        self.features = sorted(collator.family.feature_tokens(collator.processor))
        self.ends = sorted(answer_ends(model, collator))
        self._run = uuid.uuid4().hex[:8]  # a run that goes on is another one to a server that has seen it before
        self._before: str | None = None
        self._left: list[Path] = []

    def __call__(self, step: int, prompts: Sequence[Encoded]) -> list[list[Rollout]]:
        """Answer each prompt `spec.num_generations` times by the weights as they are now; on all ranks alike.

        Raises:
            ServerError: a server does not answer, has other weights, or other tokens.
            DataError: a prompt holds what cannot be sent.
        """
        where = f"step {step + 1}"
        weights = self._agree(lambda: self._give_weights(step, where, prompts[0] if prompts else None))
        bodies = [
            self.request(prompt, weights, seed)
            for prompt, seed in zip(prompts, self._seeds(step, prompts), strict=True)
        ]

        def answer(number: int) -> list[Rollout]:
            server = self.servers[(rank() + number) % len(self.servers)]
            found = server.ask("POST", GENERATE, where, bodies[number])
            return list(self._rollouts(server, where, prompts[number], weights, found))

        with ThreadPoolExecutor(self.own.concurrency) as pool:
            waiting = [pool.submit(answer, number) for number in range(len(prompts))]
            try:
                return [one.result() for one in waiting]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Remove the weights that still lie there, however the run ends."""
        _remove(self._left)

    def request(self, prompt: Encoded, weights: Weights, seed: int, **sampling: Any) -> dict[str, Any]:
        """The body that asks for the completions of a prompt.

        Args:
            sampling: replaces what the run samples by.

        Raises:
            DataError: the prompt holds a video, or pictures side by side.
        """
        spec = self.spec
        asked: dict[str, Any] = {
            "n": spec.num_generations,
            "max_tokens": spec.max_new_tokens,
            "temperature": spec.temperature,
            "top_p": spec.top_p,
            "top_k": spec.top_k or 0,
            "min_p": spec.min_p or 0.0,
            "repetition_penalty": spec.repetition_penalty,
            "seed": seed,
            "ignore_eos": True,  # what the server takes for an end may be another token than ours
            "stop_token_ids": self.ends,
            "logit_bias": {str(token): _NEVER for token in self.features},
            "logprobs": 0,  # of what is drawn alone
            "detokenize": False,
        }
        body = {
            "model": weights.name,
            "token_ids": self._shortened(prompt),
            "sampling_params": asked | sampling,
            "return_token_ids": True,
            "cache_salt": weights.salt,
        }
        pictures = [{"type": "image_url", "url": url} for url in self._pictures(prompt)]
        return body | ({"content_parts": pictures} if pictures else {})

    def refuse_other_tokens(self, server: Server, where: str, prompt: Encoded, found: Any) -> None:
        """Raise `ServerError` where the server has read other tokens than those that are trained on."""
        ids, own = found.get("prompt_token_ids") or [], prompt.input_ids.tolist()
        if ids == own:
            return
        place = next((i for i, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), min(len(ids), len(own)))
        raise server.error(
            GENERATE,
            where,
            f"{prompt.id}: the server reads {len(ids)} tokens where {len(own)} are trained on; they part at token "
            f"{place}. Where pictures differ, it resizes them again: start it with the run's bounds, "
            '--mm-processor-kwargs \'{"min_pixels": ..., "max_pixels": ...}\'; else its tokenizer is another',
        )

    def _agree(self, give: "Callable[[], Weights]") -> Weights:
        """Rank 0 gives the weights while the others wait; all raise what it raises."""
        found: Weights | VlmftError | None = None
        if rank() == 0:
            try:
                found = give()
            except VlmftError as error:
                found = error
        found = gather_object([found])[0]
        if isinstance(found, VlmftError):
            raise found
        assert found is not None
        return found

    def _give_weights(self, step: int, where: str, prompt: Encoded | None) -> Weights:
        """Write the weights, have every server take them, and check that each computes with them."""
        version = f"{self._run}-step-{step}"
        folder = self.folder / version
        if self.way == "adapter":
            weights = Weights(f"vlmft-{version}", STARTED, version)  # the base has to be what it was started with
        else:
            weights = Weights(self.own.model, version, version)
            _remove(self._left)  # the servers have read it, and two of a large model may be too much
        self._left.append(folder)
        self._write(folder)
        for server in self.servers:
            if self.way == "adapter":
                server.load_adapter(weights.name, str(folder), where)
                if self._before is not None:
                    server.unload_adapter(self._before, where)
            else:
                server.reload(str(folder), version, where)
            if prompt is not None:
                probe(self, server, where, prompt, weights)
        _remove(self._left[:-1])
        self._left = [folder]
        self._before = weights.name
        return weights

    def _write(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.way == "adapter":
                write_adapter(folder, self.model)
            else:
                write_checkpoint(folder, self.model, self.dtype)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{folder}: cannot be written: {error}; mend it, or take another trainer.rollouts.weights_dir"
            ) from error

    def _seeds(self, step: int, prompts: Sequence[Encoded]) -> Iterator[int]:
        """By run, step, rank and sample alone; a sample that comes twice in a step has two."""
        seen: dict[str, int] = {}
        for prompt in prompts:
            seen[prompt.id] = seen.get(prompt.id, -1) + 1
            mixed = mix(hash_texts([prompt.id]), salt("completions"), self.seed, step, rank(), seen[prompt.id])
            yield int(mixed[0] >> np.uint64(12))  # the n-th completion adds n

    def _shortened(self, prompt: Encoded) -> list[int]:
        """The prompt with one token for each picture."""
        ids = prompt.input_ids.tolist()
        kept = [
            token
            for last, token in zip([None, *ids[:-1]], ids, strict=True)
            if not (token == last and token in self.features)
        ]
        runs = sum(token in self.features for token in kept)
        if runs != len(prompt.media):
            raise DataError(
                f"{prompt.id}: has {len(prompt.media)} pictures in {runs} runs of vision tokens, and the server takes "
                "one run for each; put text between pictures, or take trainer/rollouts=transformers"
            )
        return kept

    def _pictures(self, prompt: Encoded) -> Iterator[str]:
        """Each picture as the tower sees it, as a PNG in a data URL."""
        import PIL.Image

        for medium in prompt.media:
            shown = self.collator.family.shown(self.collator.processor, medium)
            if len(shown) != 1:
                raise DataError(video_refusal(prompt.id))
            file = io.BytesIO()
            PIL.Image.fromarray(shown[0]).save(file, "PNG", compress_level=1)
            yield "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    def _rollouts(self, server: Server, where: str, prompt: Encoded, weights: Weights, found: Any) -> Iterator[Rollout]:
        """What the server has drawn, checked."""
        try:
            self.refuse_other_tokens(server, where, prompt, found)
            choices = sorted(found["choices"], key=lambda choice: choice["index"])
            if len(choices) != self.spec.num_generations:
                raise server.error(GENERATE, where, f"{prompt.id}: {len(choices)} completions came")
            refuse_other_weights(server, where, weights, found)
            for choice in choices:
                yield self._rollout(server, where, prompt, choice)
        except (LookupError, TypeError, AttributeError) as error:
            said = f"{prompt.id}: the answer lacks {type(error).__name__}: {error}; is it vLLM 0.33?"
            raise server.error(GENERATE, where, said) from None

    def _rollout(self, server: Server, where: str, prompt: Encoded, choice: dict[str, Any]) -> Rollout:
        ids, drawn = choice["token_ids"], choice["logprobs"]["content"]
        ended = bool(ids) and ids[-1] in self.ends
        problem = None
        if not ids or choice["finish_reason"] != ("stop" if ended else "length"):
            problem = f"a completion of {len(ids)} tokens ended by {choice['finish_reason']!r}"
        elif not ended and len(ids) < self.spec.max_new_tokens:
            problem = f"a completion was cut at {len(ids)} of {self.spec.max_new_tokens} tokens; raise --max-model-len"
        elif [one["token_id"] for one in drawn] != ids or any(one["logprob"] <= -9999 for one in drawn):
            problem = "a completion came without the log-probabilities of its tokens"
        elif forbidden := set(ids) & set(self.features):
            problem = f"a completion holds a picture's token {min(forbidden)}, which was ruled out"
        if problem is not None:
            raise server.error(GENERATE, where, f"{prompt.id}: {problem}")
        tokens = torch.tensor(ids)
        logps = torch.tensor([one["logprob"] for one in drawn], dtype=torch.float32)
        return Rollout(tokens, ended, answer_text(prompt, tokens, self.collator), logps)


def _remove(folders: list[Path]) -> None:
    while folders:
        shutil.rmtree(folders.pop(), ignore_errors=True)


def refuse_other_weights(server: Server, where: str, weights: Weights, found: Any) -> None:
    """Raise `ServerError` where an answer was drawn by other weights than `weights`."""
    versions = {span["version"] for choice in found["choices"] for span in choice["weight_versions"]}
    # Of a checkpoint with several served names, answers have the first.
    is_other = weights.version == STARTED and found["model"] != weights.name
    if is_other or versions != {weights.version}:
        raise server.error(
            GENERATE,
            where,
            f"drawn by {found['model']} with weights {', '.join(sorted(versions))}, not by {weights.name} with "
            f"{weights.version}: another run has given this server weights; start it again, for this run alone",
        )
