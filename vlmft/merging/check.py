"""Load the merged folder and question it: `python -m vlmft.merging.check <request>`, started by `vlmft.merge`.

It is loaded as anybody would load it, by transformers alone. A token that differs from the trained model's is put
down to rounding only where the trained model had hardly preferred its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.errors import DifferentAnswersError
from vlmft.merging.exchange import Asked, Exchange
from vlmft.merging.process import greedy, read_logits, run

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SUSPICIOUS = 8
"""Logits further apart than this times the dtype's precision, relative to the largest, are held against what rounding
does, which takes a second pass in twice the precision."""


def check(exchange: Exchange) -> None:
    """Compare the merged model's answers with the trained model's.

    Raises:
        DifferentAnswersError: the folder does not hold exactly the model's weights, its processor makes other inputs
            than the training did, or an answer or its logits differ by more than rounding.
    """
    import torch

    from vlmft import assembly, summary

    assembly.quiet_libraries()
    request, handover = exchange.request, exchange.handover()
    model, processor = load_plainly(request.out, torch.device(handover.device), request.trust_remote_code)
    differing: list[Difference] = []
    apart = largest = 0.0
    for number, asked in enumerate(handover.asked):
        inputs, expected = exchange.answer(number)
        check_inputs(asked, processor, inputs)
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        ends = (handover.eos_token_id, handover.pad_token_id)
        found = {name: tensor.cpu() for name, tensor in greedy(model, inputs, *ends, request.max_new_tokens).items()}
        same = num_same(expected["answer"], found["answer"])
        apart = max(apart, logits_apart(expected, found, same))
        largest = max(largest, float(expected["values"].abs().max()))
        if same < max(len(expected["answer"]), len(found["answer"])):
            differing.append(Difference(asked.id, number, same, *difference(expected, found, same)))
    dtype = getattr(torch, handover.compute_dtype)
    if differing or apart > SUSPICIOUS * torch.finfo(dtype).eps * largest:
        bound = 2 * rounding_bound(model, [exchange.answer(i) for i in range(len(handover.asked))], dtype)
        judge(differing, apart, bound)
    if handover.asked:
        alike = len(handover.asked) - len(differing)
        rest = "" if not differing else f", {len(differing)} differ by rounding"
        summary.console().print(
            f"compared {alike} of {len(handover.asked)} answers are token for token the trained model's{rest}; their "
            f"logits differ by at most {apart:.2g}"
        )


@dataclass(frozen=True)
class Difference:
    """The first token at which a sample's two answers part."""

    id: str
    number: int
    place: int
    """Tokens before it."""
    trained: int
    merged: int
    margin: float
    """By how much the trained model's logit of its own token lies above that of the merged model's."""


def load_plainly(folder: Path, device: "torch.device", trust_remote_code: bool) -> tuple[Any, Any]:
    """(model, processor) as transformers' Auto classes load them.

    Raises:
        DifferentAnswersError: a weight is missing, unexpected or of another shape.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, found = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=device, trust_remote_code=trust_remote_code, output_loading_info=True
    )
    wrong = {kind: sorted(map(str, found[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    DifferentAnswersError.raise_if(
        f"{folder}: {len(names)} {kind.replace('_', ' ')}: {', '.join(names[:3])}"
        for kind, names in wrong.items()
        if names
    )
    return model.eval(), AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)


def check_inputs(asked: Asked, processor: Any, expected: "dict[str, Tensor]") -> None:
    """Compare what the folder's processor makes of a sample with what the trained model was given.

    Raises:
        DifferentAnswersError: names the tensor that differs.
    """
    import torch

    from vlmft.data.media.image import open_image

    if asked.images is None:
        return
    images = [open_image(Path(path)) for path in asked.images]
    made = processor(text=[asked.prompt], images=images or None, add_special_tokens=False, return_tensors="pt")
    for name in made.keys() & expected.keys():
        ours, its = expected[name], made[name]
        if ours.shape != its.shape or not torch.allclose(its.double(), ours.double(), rtol=1e-5, atol=1e-5):
            raise DifferentAnswersError(
                f"{asked.id}: the merged folder's processor makes another {name} ({list(its.shape)}) than the training "
                f"did ({list(ours.shape)})"
            )


def num_same(expected: "Tensor", found: "Tensor") -> int:
    """Tokens before the first that differs."""
    both = min(len(expected), len(found))
    unlike = (expected[:both] != found[:both]).nonzero()
    return int(unlike[0]) if len(unlike) else both


def difference(expected: "dict[str, Tensor]", found: "dict[str, Tensor]", place: int) -> tuple[int, int, float]:
    """(trained token, merged token, margin) at the first token that differs; see `Difference`."""
    trained, merged = int(expected["answer"][place]), int(found["answer"][place])
    values = dict(zip(expected["tokens"][place].tolist(), expected["values"][place].tolist(), strict=True))
    lowest = min(values.values())  # what is not among the likeliest lies below it
    return trained, merged, values[trained] - values.get(merged, lowest)


def logits_apart(expected: "dict[str, Tensor]", found: "dict[str, Tensor]", same: int) -> float:
    """The largest difference between logits of the likeliest tokens, as far as both models have read the same."""
    apart = 0.0
    for place in range(min(same + 1, len(expected["tokens"]), len(found["tokens"]))):
        ours, its = (
            dict(zip(side["tokens"][place].tolist(), side["values"][place].tolist(), strict=True))
            for side in (expected, found)
        )
        apart = max([apart, *(abs(ours[token] - its[token]) for token in ours.keys() & its.keys())])
    return apart


def judge(differing: list[Difference], apart: float, bound: float) -> None:
    """Raise `DifferentAnswersError` unless rounding explains every difference.

    Args:
        differing: where answers part.
        apart: the largest difference between two logits of the same token.
        bound: by how much rounding can move one logit against another.
    """
    problems = [
        f"{found.id}: token {found.place + 1} of the merged model's answer is {found.merged}, of the trained model's "
        f"{found.trained}, which it preferred by {found.margin:.3g}; rounding can turn up to {bound:.3g}"
        for found in differing
        if found.margin > bound
    ]
    if apart > bound:
        problems.append(
            f"the merged model's logits differ from the trained model's by up to {apart:.3g}; rounding accounts for "
            f"{bound:.3g}"
        )
    DifferentAnswersError.raise_if(problems)


def rounding_bound(
    model: Any, asked: "list[tuple[dict[str, Tensor], dict[str, Tensor]]]", dtype: "torch.dtype"
) -> float:
    """By how much rounding may move a logit: twice what computing in `dtype` moves it, against twice its precision.

    Twice, as the trained and the merged model each round. Two logits may move apart by twice that again. The model is
    left in `dtype`; its weights take twice their room meanwhile.
    """
    import torch

    finer = torch.float64 if dtype == torch.float32 else torch.float32

    def logits(inputs: "dict[str, Tensor]", answer: "dict[str, Tensor]") -> "Tensor":
        given = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        return read_logits(model, given, answer["answer"]).double().cpu()

    _cast(model, finer)
    sharp = [logits(*pair) for pair in asked]
    _cast(model, dtype)
    rough = [logits(*pair) for pair in asked]
    return 2 * max(float((a - b).abs().max()) for a, b in zip(sharp, rough, strict=True))


def _cast(model: Any, dtype: "torch.dtype") -> None:
    """Cast parameters alone: a buffer, such as the rotary frequencies, is kept finer than the weights."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


if __name__ == "__main__":
    run(check)
