"""Proof that a model gives what training and evaluation rely on; `proof` holds the encoding's half.

B = samples of a batch, S = tokens, K = rows of logits that are kept, V = vocabulary. Differences are shares: the root
mean square of a difference of logits by that of the logits.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmft.encoding.collate import IGNORED, Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.proof import OTHER_PICTURE, PICTURE, Refuse, failing, noise_samples
from vlmft.types import Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def prove_model(
    model: Any,
    encoder: Encoder,
    collator: Collator,
    samples: Sequence[Sample],
    refuse: Refuse,
    tolerance: float,
    max_tokens: int,
) -> str:
    """Prove on `samples`, and some of noise, what vlmft's tests hold for the models of its own families.

    Each component that was found takes part; a picture changes the logits; no logits depend on later tokens of an
    answer, nor on what else is in the batch, on the right of which training pads and on the left generation; the
    cache of generation changes nothing. The model is left as it came (one that is refused need not be).

    Args:
        model: with a recipe applied.
        encoder: without a limit of tokens, which pictures of noise need not keep.
        tolerance: the share by which rounding may change logits.
        max_tokens: of a batch, but two samples share one whatever they have.

    Returns:
        What was proven, and on which samples, as a sentence.

    Raises:
        ConfigError: one of these does not hold; made by `refuse`.
    """
    with noise_samples() as noise:
        every = [*noise, *samples]
        whole, prompts = ([encode(sample) for sample in every] for encode in (encoder.encode, encoder.encode_prompt))
    proof = _Proof(model, encoder, collator, refuse, tolerance)
    by_id = {encoded.id: encoded for encoded in whole}
    with _untouched(model):
        model.eval()
        proof.parts_take_part(by_id[PICTURE])
        proof.picture_counts(by_id[PICTURE], by_id[OTHER_PICTURE])
        for group in _batches(whole, max_tokens):
            proof.batch_is_no_matter(group)
        for group in _batches(prompts, max_tokens):
            proof.generation_is_alike(group)
        model.train()
        proof.neighbours_are_not_seen(by_id[PICTURE], by_id[OTHER_PICTURE])
        for sample in whole:
            proof.later_tokens_are_not_seen(sample)
    return (
        f"proven on {len(samples)} samples of the run and {len(noise)} of noise: encoded as by "
        f"{type(encoder.processor).__name__}; each component takes part; pictures count; no answer is seen ahead; "
        f"logits are alike in any batch and in generation (within {tolerance:.2g} of their size)"
    )


def _batches(samples: Sequence[Encoded], most: int) -> list[list[Encoded]]:
    """The samples in their order, padded to at most `most` tokens, but two at least in each batch."""
    found: list[list[Encoded]] = []
    for sample in samples:
        if found and (len(found[-1]) < 2 or _padded([*found[-1], sample]) <= most):
            found[-1].append(sample)
        else:
            found.append([sample])
    if len(found) > 1 and len(found[-1]) < 2:
        found[-2] += found.pop()
    return found


def _padded(samples: Sequence[Encoded]) -> int:
    return len(samples) * max(sample.num_tokens for sample in samples)


@contextlib.contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Put back the mode of each module, the generation config and the random state."""
    import torch
    from transformers import GenerationConfig

    owner = _inner(model)
    modes, own = [(module, module.training) for module in model.modules()], owner.generation_config
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            owner.generation_config = GenerationConfig()
            yield
    finally:
        owner.generation_config = own
        for module, training in modes:
            module.training = training


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(frozen=True)
class _Proof:
    model: Any
    encoder: Encoder
    collator: Collator
    refuse: Refuse
    tolerance: float

    def no(self, reason: str) -> Exception:
        return self.refuse(type(_inner(self.model)).__name__, reason)

    def parts_take_part(self, sample: Encoded) -> None:
        """Each module path of a component is run when a question about a picture is answered."""
        family, base = self.encoder.family, _inner(self.model)
        ran: set[int] = set()
        hooks = [
            module.register_forward_hook(lambda module, args, output: ran.add(id(module))) for module in base.modules()
        ]
        try:
            self.logits([sample])
        finally:
            for hook in hooks:
                hook.remove()
        for component, paths in family.component_paths.items():
            for path in set(paths) - family.bare_parameters:
                if not any(id(module) in ran for module in base.get_submodule(path).modules()):
                    raise self.no(f"{path}, found to be of the {component}, takes no part when a picture is answered")

    def picture_counts(self, sample: Encoded, with_other_picture: Encoded) -> None:
        """Another picture of the same size changes the logits, by far more than nothing does."""
        first, again, other = (self.logits([one])[0] for one in (sample, sample, with_other_picture))
        changed, noise = _share(other, first), _share(again, first)
        if not changed > max(10 * noise, 1e-6):
            raise self.no(
                f"no picture reaches its logits: they change by {changed:.2g} with another picture, and by {noise:.2g} "
                "with the same one"
            )

    def batch_is_no_matter(self, samples: Sequence[Encoded]) -> None:
        """A sample's logits are the same by itself and in a batch, padded on the right."""
        for sample, together in zip(samples, self.logits(samples), strict=True):
            self.alike(together, self.logits([sample])[0], f"of sample {sample.id} in a batch and by itself")

    def generation_is_alike(self, prompts: Sequence[Encoded]) -> None:
        """The logits of the next token are the same by itself and in a batch, padded on the left; and with a cache."""
        import torch

        together, _ = self.generated(prompts)
        for number, prompt in enumerate(prompts):
            name, (logits, tokens) = prompt.id, self.generated([prompt])
            self.alike(together[number, :1], logits[0, :1], f"of sample {name}, generated in a batch and by itself")
            longer = torch.cat([prompt.input_ids, tokens[0, :1].cpu()])
            mask = torch.zeros(len(longer), dtype=torch.bool)
            whole, _ = self.generated([replace(prompt, input_ids=longer, supervised=mask)])
            self.alike(whole[0, :1], logits[0, 1:], f"of sample {name}, generated with and without its cache")

    def neighbours_are_not_seen(self, sample: Encoded, other: Encoded) -> None:
        """Another sample of the same length beside a sample changes nothing, in the mode that trains."""
        beside_other, beside_itself = (self.logits_seeded([sample, neighbour]) for neighbour in (other, sample))
        self.alike(beside_other, beside_itself, f"of sample {sample.id} beside another in training, and beside itself")

    def later_tokens_are_not_seen(self, sample: Encoded) -> None:
        """Another last token of the answer changes no logits before it, in the mode that trains."""
        words = self.encoder.processor.tokenizer("yes no", add_special_tokens=False)["input_ids"]
        last = int(sample.supervised.nonzero()[-1])
        ids = sample.input_ids.clone()
        ids[last] = next(token for token in (*words, *ids[sample.supervised].tolist()) if token != ids[last])
        before, after = (self.logits_seeded([version]) for version in (sample, replace(sample, input_ids=ids)))
        self.alike(after, before, f"of sample {sample.id} before its answer's last token, and with another there")

    def alike(self, found: "Tensor", expected: "Tensor", what: str) -> None:
        """Raise where the two differ by more than rounding."""
        difference = _share(found, expected)
        if not difference <= self.tolerance:
            raise self.no(
                f"the logits {what}, are not the same: they differ by {difference:.2g} of their size, and rounding "
                f"accounts for {self.tolerance:.2g}"
            )

    def logits_seeded(self, samples: Sequence[Encoded]) -> "Tensor":
        """The logits of the first sample, under the same dropout for each batch of the same shape."""
        import torch

        torch.manual_seed(0)
        return self.logits(samples)[0]

    def logits(self, samples: Sequence[Encoded]) -> "list[Tensor]":
        """Of each sample, the logits [., V] that its supervised tokens are predicted by, computed as training does."""
        import torch

        batch = self.collator(samples).to(self.device)
        inputs = self.encoder.family.model_inputs(self.encoder.processor, batch.inputs)
        targets = torch.nn.functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
        keep = targets.ne(IGNORED).any(0).nonzero().squeeze(1)
        with failing(self.refuse, _inner(self.model), f"on sample {', '.join(sample.id for sample in samples)}"):
            logits = self.model(**inputs, logits_to_keep=keep, use_cache=False).logits
        if logits.shape[:2] != (len(samples), len(keep)):
            raise self.no(f"asked for the logits of {len(samples)} x {len(keep)} tokens, it gives {list(logits.shape)}")
        if not logits.isfinite().all():
            raise self.no(f"its logits of sample {', '.join(sample.id for sample in samples)} are not all finite")
        return [row[wanted] for row, wanted in zip(logits.float(), targets[:, keep].ne(IGNORED), strict=True)]

    def generated(self, prompts: Sequence[Encoded]) -> "tuple[Tensor, Tensor]":
        """The logits [B, 2, V] of two tokens that are generated greedily with the cache, and these tokens [B, 2]."""
        import torch

        batch = self.collator(prompts, padding_side="left").to(self.device)
        inputs = self.encoder.family.model_inputs(self.encoder.processor, batch.inputs)
        marks = self.encoder.processor.tokenizer.added_tokens_decoder  # one without its picture may be an error
        options = {
            "output_logits": True,
            "return_dict_in_generate": True,
            "pad_token_id": self.collator.pad_token_id,
            "suppress_tokens": sorted({*marks, *self.encoder.family.feature_tokens(self.encoder.processor)}),
        }
        with failing(self.refuse, _inner(self.model), f"to generate for {', '.join(prompt.id for prompt in prompts)}"):
            output = self.model.generate(**inputs, max_new_tokens=2, do_sample=False, **options)
        return torch.stack(output.logits, dim=1).float(), output.sequences[:, -2:]

    @property
    def device(self) -> "torch.device":
        found: torch.device = next(self.model.parameters()).device
        return found


def _share(found: "Tensor", expected: "Tensor") -> float:
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
