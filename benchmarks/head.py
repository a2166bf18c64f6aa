"""Head and cross entropy, forward and backward, at several shares of supervised tokens: time, and bytes at most.

    all rows   logits of every row, in float32, then the cross entropy: what a model's own loss does
    plain      logits of the supervised rows alone
    chunked    vlmft's way above 256 MiB of logits: supervised rows, an eighth of the tokens at once, again backward
    trl        TRL's fused head, which its SFTTrainer trains with
    torch      torch.nn.functional.linear_cross_entropy over the supervised rows, where torch has it

The model is one layer of a Qwen2 under a large vocabulary, the same for all; its head trains. Bytes are those that
tensors take at most beside what was there before (weights and gradients), by torch's profiler. Sides take turns. In
float32 on a CPU: times are otherwise in bf16 on a GPU.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from common import Spread, provenance, show, write_result

VOCABULARY, WIDTH, TOKENS = 32_768, 512, 1024
QUICK = 4096, 64, 256
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
ROUNDS = 5
BOUND_BYTES = 0.6
"""Of the plain form's, at most, where every row is supervised."""
BOUND_OFF = 1e-5


def main() -> int:
    """Measure, print, write benchmarks/results/head.json; return 1 where the chunked form takes more than the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds of a smaller head, no result file")
    options = parser.parse_args()
    made = provenance()
    if options.quick:
        found = {share: measure(share, *QUICK, rounds=2) for share in SHARES[-2:]}
    else:
        found = {share: measure(share, VOCABULARY, WIDTH, TOKENS, ROUNDS) for share in SHARES}
    show(
        "head and loss",
        ("supervised", "milliseconds", "p10 to p90", "MiB at most"),
        [
            (f"{share:.0%} {side}", *one["ms"].cells()[:2], f"{one['bytes'] / 2**20:.0f}")
            for share, sides in found.items()
            for side, one in sides.items()
        ],
        [f"where all rows are supervised, chunked takes at most {BOUND_BYTES} of plain's bytes"],
    )
    if not options.quick:
        head = {"command": "python benchmarks/head.py", "bound_bytes": BOUND_BYTES, "tokens": TOKENS, "width": WIDTH}
        shares = {f"{share:.2f}": sides for share, sides in found.items()}
        write_result("head", head | {"vocabulary": VOCABULARY, "shares": shares}, made)
    return int(found[1.0]["chunked"]["bytes"] > BOUND_BYTES * found[1.0]["plain"]["bytes"])


def measure(share: float, vocabulary: int, width: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Every side at one share of supervised tokens."""
    sides = prepare(share, vocabulary, width, tokens)
    times: dict[str, list[float]] = {name: [] for name in sides}
    losses, peaks = {}, {}
    for number in range(rounds + 1):
        for name, (model, loss) in sides.items():
            model.zero_grad(set_to_none=False)
            started = time.perf_counter()
            found = loss()
            found.backward()
            if number:
                times[name].append(1000 * (time.perf_counter() - started))
            losses[name] = float(found)
    for name, (_, loss) in sides.items():
        peaks[name] = peak_bytes(loss)
    reference = losses["plain"]
    assert max(abs(loss - reference) for loss in losses.values()) < BOUND_OFF * reference, losses
    return {name: {"ms": Spread.of(times[name]), "bytes": peaks[name]} for name in sides}


def prepare(share: float, vocabulary: int, width: int, tokens: int) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """A model and its summed loss by each side."""
    import torch
    import torch.nn.functional as F  # noqa: N812 (torch's own convention)
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from vlmft.training import head
    from vlmft.training.loss import supervised_loss, supervised_places

    torch.manual_seed(0)
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 8}
    config = Qwen2Config(vocab_size=vocabulary, num_key_value_heads=8, tie_word_embeddings=False, **shape)
    model, fused = Qwen2ForCausalLM(config), Qwen2ForCausalLM(config)
    fused.load_state_dict(model.state_dict())
    add_fused_lm_head(fused)
    ids = torch.randint(0, vocabulary, (1, tokens))
    labels = torch.full_like(ids, -100)
    labels[:, -round(share * tokens) :] = ids[:, -round(share * tokens) :]
    if share == 1:
        ids, labels = F.pad(ids, (1, 0)), F.pad(labels, (1, 0), value=-100)  # the first token is never predicted
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    count = int(labels.ne(-100).sum())

    def all_rows() -> Any:
        return model(**inputs, labels=labels, use_cache=False).loss * count

    def chunked() -> Any:
        with patch.object(head, "CHUNK_BYTES", vocabulary * tokens // 2):  # of float32: an eighth of the rows
            return supervised_loss(model, inputs, labels)

    def trl() -> Any:
        return -fused(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs.sum()

    def by_torch() -> Any:
        keep, targets = supervised_places(labels)
        hidden = model.model(**inputs, use_cache=False).last_hidden_state[0, keep]
        return F.linear_cross_entropy(hidden, model.lm_head.weight, targets[0], reduction="sum")

    sides = {
        "all rows": (model, all_rows),
        "plain": (model, lambda: supervised_loss(model, inputs, labels)),
        "chunked": (model, chunked),
        "trl": (fused, trl),
    }
    return sides | ({"torch": (model, by_torch)} if hasattr(F, "linear_cross_entropy") else {})


def peak_bytes(loss: Callable[[], Any]) -> int:
    """The most bytes that a forward and backward pass has allocated and not yet freed."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss().backward()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


if __name__ == "__main__":
    sys.exit(main())
