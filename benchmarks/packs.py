"""What packs cost and save without torch's kernel for segments: a step's seconds in packs, as a share of rows' seconds.

16 samples of text a step, forward and backward, full training, fp32 on one core; lengths log-normal, in one micro-batch
of each kind. Rows are padded by more, the wider lengths spread; packs are a loop over samples in each layer, and cost
the more, the smaller the model and the shorter its samples: the tiny model is the worst case. Both are measured in
turn, in processor time. `batching=auto` packs on the CPU where rows would hold at least so many tokens of padding a
sample as is the bound: from there on nine ratios of ten must be below 1.
"""

import argparse
import random
import sys
from time import process_time
from typing import Any

from common import Spread, composed, provenance, show, write_result

from vlmft.assembly import quiet_libraries

SAMPLES = 16
SPREADS = (0.0, 0.1, 0.2, 0.4)
LENGTHS = (20, 40, 150)
ROUNDS, QUICK_ROUNDS = 15, 2


def main() -> int:
    """Measure, print, write benchmarks/results/packs.json; return 1 where packs do not pay from the bound on."""
    from vlmft.settling import PAYS_FROM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, and no result file")
    options = parser.parse_args()
    quiet_libraries()
    made = provenance()
    found = measure(QUICK_ROUNDS if options.quick else ROUNDS)
    rows = [(name, f"{one['padding']:.1f}", *one["ratio"].cells()[:2]) for name, one in found.items()]
    title = "seconds of a step in packs, as a share of its seconds in rows"
    show(title, ("tokens a sample, spread", "padding a sample", "median", "p10 to p90"), rows, [])
    if not options.quick:
        figures = {"command": "python benchmarks/packs.py", "pays_from": PAYS_FROM, "steps": found}
        write_result("packs", figures, made)
    return int(any(one["ratio"].p90 >= 1 for one in found.values() if one["padding"] >= PAYS_FROM))


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    """Ratios of the tiny model, by the samples' length and how much it spreads."""
    import torch

    from vlmft.encoding.collate import Collator
    from vlmft.models.packing import use_packed_attention

    torch.set_num_threads(1)
    family = composed().model
    processor, model = family.load_processor(), family.load_model(torch.device("cpu"))
    use_packed_attention(model)
    model.train()
    rows, packs = Collator(family, processor), Collator(family, processor, packs=True)
    found = {}
    for tokens in LENGTHS:
        for spread in SPREADS:
            drawn = random.Random(0)
            lengths = [max(8, round(tokens * drawn.lognormvariate(0, spread))) for _ in range(SAMPLES)]
            samples = [of_length(length) for length in lengths]
            ratios = []
            for _ in range(rounds + 1):
                rows_s = step_s(model, rows, samples)
                ratios.append(step_s(model, packs, samples) / rows_s)
            padding = max(lengths) - sum(lengths) / SAMPLES  # tokens a sample
            ratio = Spread.of(ratios[1:])  # without the first, which warms up
            found[f"{tokens}, {spread}"] = {"padding": padding, "ratio": ratio}
    return found


def of_length(tokens: int) -> Any:
    """A sample of text, of which the last tokens are supervised."""
    import torch

    from vlmft.encoding.encoder import Encoded

    return Encoded("text", torch.arange(tokens) % 100 + 100, torch.arange(tokens) >= tokens - 4, [], 0)


def step_s(model: Any, collator: Any, samples: list[Any]) -> float:
    """Processor seconds of one forward and backward pass."""
    from vlmft.training.loss import supervised_loss

    began = process_time()
    supervised_loss(model, *collator.for_loss(samples, model)).backward()
    taken = process_time() - began
    model.zero_grad(set_to_none=True)
    return taken


if __name__ == "__main__":
    sys.exit(main())
