"""What generation says of the tokens that it draws, against what training says of them."""

from collections.abc import Sequence
from typing import Any

import torch

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.encoding.generating import generating
from vlmft.training.answered import followed
from vlmft.training.loss import token_log_probs


@torch.no_grad()
def check(model: Any, prompts: Sequence[Encoded], collator: Collator, tolerance: float = 2e-4) -> None:
    """The log-probs of completions: left-padded, token by token from the cache; and right-padded, in one pass."""
    model.eval()
    inputs, _ = collator.on_device(prompts, model, padding_side="left")
    width = inputs["input_ids"].shape[1]
    features = sorted(collator.family.feature_tokens(collator.processor))
    torch.manual_seed(0)
    with generating(model, collator, do_sample=True, top_k=0, max_new_tokens=6, suppress_tokens=features) as ends:
        output = model.generate(**inputs, return_dict_in_generate=True, output_logits=True)
    logps = torch.stack(output.logits, 1).float().log_softmax(-1)
    rows, drawn = [], []
    for row, new in enumerate(output.sequences[:, width:]):
        end = next((place for place, token in enumerate(new.tolist()) if token in ends), len(new) - 1)
        rows.append(new[: end + 1].cpu())
        drawn.append(logps[row, torch.arange(end + 1), new[: end + 1]])
    batch = [followed(prompt, ids) for prompt, ids in zip(prompts, rows, strict=True)]
    found, places = token_log_probs(model, *collator.on_device(batch, model))
    assert len({len(prompt.input_ids) for prompt in prompts}) > 1
    for row, expected in enumerate(drawn):
        torch.testing.assert_close(found[row][places[row]], expected, atol=tolerance, rtol=1e-3)
