"""What both child processes of a merge share: how they begin, end and answer."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vlmft import outlet
from vlmft.errors import OutOfMemoryError
from vlmft.launch import bind_to_parent
from vlmft.merging.exchange import LIKELIEST, Exchange
from vlmft.worker import classify

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def run(step: Callable[[Exchange], None]) -> NoReturn:
    """Carry out one step of the merge that the command line's first word describes; leaves with an exit code."""
    bind_to_parent()
    outlet.install()
    try:
        step(Exchange(Path(sys.argv[1]).parent))
    except BaseException as error:
        known = classify(error)
        if isinstance(known, OutOfMemoryError):
            known = OutOfMemoryError(
                known.problems[0], "device=cpu merges in the machine's own memory; samples=0 compares no answers"
            )
        if known is None:
            traceback.print_exc()
            sys.exit(1)
        sys.stderr.write("".join(f"error: {line}\n" for line in str(known).splitlines()))
        sys.exit(known.exit_code)
    sys.exit(0)


def choose_device(wanted: str) -> "torch.device":
    """The device of `device=`."""
    import torch

    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


def greedy(
    model: Any, inputs: "dict[str, Tensor]", eos: int | list[int] | None, pad: int | None, max_new_tokens: int
) -> "dict[str, Tensor]":
    """Answer one sample greedily: `answer`, `values` and `tokens`, see `exchange`."""
    import torch

    output = _generate(model, inputs, eos, pad, max_new_tokens)
    logits = torch.stack(output.logits, dim=1)[0].float()
    values, tokens = logits.topk(min(LIKELIEST, logits.shape[1]))
    return {"answer": output.sequences[0, inputs["input_ids"].shape[1] :], "values": values, "tokens": tokens}


def read_logits(model: Any, inputs: "dict[str, Tensor]", answer: "Tensor") -> "Tensor":
    """The logits [T, V] of a model that is made to answer one sample with the tokens `answer` [T]."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    class Forced(LogitsProcessor):
        def __call__(self, input_ids: "Tensor", scores: "Tensor") -> "Tensor":
            wanted = int(answer[input_ids.shape[1] - inputs["input_ids"].shape[1]])
            forced = torch.full_like(scores, -torch.inf)
            forced[:, wanted] = 0
            return forced

    output = _generate(model, inputs, None, None, len(answer), logits_processor=LogitsProcessorList([Forced()]))
    return torch.stack(output.logits, dim=1)[0]


def _generate(
    model: Any,
    inputs: "dict[str, Tensor]",
    eos: int | list[int] | None,
    pad: int | None,
    max_new_tokens: int,
    **options: Any,
) -> Any:
    """Of the checkpoint's own generation config nothing counts: a repetition penalty would change which token wins."""
    import torch
    from transformers import GenerationConfig

    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    owner.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad)
    with torch.no_grad():
        return model.generate(
            **inputs, max_new_tokens=max_new_tokens, output_logits=True, return_dict_in_generate=True, **options
        )
