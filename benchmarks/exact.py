"""How exact packs are: logits and gradients of samples in a pack against the same samples alone, in every family.

Each family's tiny model (real classes, random weights, fp32) takes one pack of samples with text alone, one picture,
three pictures, and a video where the family has them. `logits` is the largest difference to the sample alone, as a
share of the largest logit; `gradient` is that of the summed loss, full training, as a share of the largest entry.

`segments` is what a run computes with: each sample by itself, no mask. `mask` is transformers' own way, which finds
the borders by positions that restart, and builds an S x S mask. `leak` is the pack without borders: what a mistake
looks like. On CUDA (`--device cuda`) segments go through torch's variable-length kernel, in bf16, and differences are
root mean squares, held to 8 steps of its eps.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import composed, provenance, show, write_result

from vlmft.assembly import quiet_libraries

CONF = Path(__file__).parents[1] / "conf/model"
QUICK = ("qwen25vl", "internvl3")
BOUNDS = {"fp32": 1e-5, "bf16": 8 * 2**-7}

Gradient = dict[str, Any]


def main() -> int:
    """Compare, print, write benchmarks/results/exact.json; return 1 where a difference exceeds the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)} alone, and no result file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    quiet_libraries()
    made = provenance()
    precision = "fp32" if options.device == "cpu" else "bf16"
    measured = {name: measure(name, options.device, precision) for name in (QUICK if options.quick else families())}
    bound = BOUNDS[precision]
    show(
        f"a pack against its samples alone, {precision} on {options.device}; at most {bound:.0e} is allowed",
        ("", "tokens", "logits", "mask", "leak", "gradient", "mask", "leak"),
        [
            (
                name,
                str(found["tokens"]),
                *(f"{found[what][way]:.1e}" for what in ("logits", "gradient") for way in WAYS),
            )
            for name, found in measured.items()
        ],
        [],
    )
    if not options.quick:
        figures = {"command": " ".join(["python benchmarks/exact.py", *sys.argv[1:]])}
        write_result(f"exact_{options.device}", written(figures | {"bound": bound, "families": measured}), made)
    return int(any(found[what]["segments"] > bound for found in measured.values() for what in ("logits", "gradient")))


def written(value: Any) -> Any:
    """As a result file keeps it: differences in the form 1.2e-07, which decimal places would round to nothing."""
    if isinstance(value, dict):
        return {key: written(item) for key, item in value.items()}
    return f"{value:.1e}" if isinstance(value, float) else value


def families() -> list[str]:
    """The families that take packs, by their tiny models."""
    names = sorted(path.stem for path in CONF.glob("tiny_*.yaml"))
    return [name.removeprefix("tiny_") for name in names if composed(f"model={name}").model.unpacked_because is None]


def measure(name: str, device: str, precision: str) -> dict[str, Any]:
    """All differences of one family."""
    import torch

    from vlmft.encoding.collate import Collator
    from vlmft.encoding.encoder import Encoder
    from vlmft.models.packing import use_packed_attention
    from vlmft.recipes.apply import apply_recipe
    from vlmft.recipes.base import load_base
    from vlmft.recipes.dtypes import compute_in, torch_dtype

    config = composed(f"model=tiny_{name}", "recipe=fft", f"precision={precision}")
    family, dtype, where = config.model, torch_dtype(config.precision), torch.device(device)
    processor = family.load_processor()
    samples = encoded(Encoder(family, processor))
    rows, packs = Collator(family, processor), Collator(family, processor, packs=True)
    model = apply_recipe(load_base(family, config.recipe, dtype, where), config.recipe, family, dtype)
    compute_in(model, dtype, where)
    model.eval()

    def forward(inputs: dict[str, Any], labels: Any) -> tuple[Any, Gradient]:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return logits_and_gradient(model, inputs, labels)

    alone = [forward(*rows.on_device([sample], model)) for sample in samples]
    logits = torch.cat([one for one, _ in alone])
    gradient = {key: sum(own[key] for _, own in alone if key in own) for key in set().union(*(own for _, own in alone))}
    found: dict[str, Any] = {"samples": len(samples), "tokens": sum(sample.num_tokens for sample in samples)}
    found |= {"logits": {}, "gradient": {}}
    for way, change in sorted(WAYS.items(), key=lambda item: item[0] != "mask"):  # before the LLM has its function
        if way != "mask":
            use_packed_attention(model)
        inputs, labels = packs.for_loss(samples, model)
        own_logits, own_gradient = forward(change(inputs), labels)
        by_rms = dtype != torch.float32
        found["logits"][way] = difference([(own_logits, logits)], by_rms)
        pairs = [(own_gradient[key], gradient[key]) for key in sorted(gradient)]
        found["gradient"][way] = difference(pairs, by_rms)
    return found


def encoded(encoder: Any) -> list[Any]:
    """The samples of the pack."""
    import numpy as np
    import PIL.Image

    from vlmft.types import Image, Message, Sample, Video

    noise = np.random.default_rng(0)
    sizes = ((56, 56), (44, 130), (200, 60), (112, 112), (112, 112), (112, 112), (112, 112))
    asked: list[tuple[tuple[Any, ...], str]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.png" for number in range(len(sizes))]
        for path, size in zip(paths, sizes, strict=True):
            PIL.Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        asked.append((("What colour is the sky over a field in the evening?",), "Red, then a deep blue."))
        asked.append(((Image(paths[0]), "What colour?"), "Red."))
        asked.append(((*map(Image, paths[:3]), "Which of the three?"), "The second one."))
        if "video" in encoder.family.placeholders(encoder.processor):
            asked.append(((Video(Path(folder), tuple(paths[3:]), fps=2.0), "What happens?"), "It moves."))
        asked.append((("Yes or no?",), "No."))
        return [
            encoder.encode(Sample(str(number), (Message("user", parts), Message("assistant", (answer,)))))
            for number, (parts, answer) in enumerate(asked)
        ]


def logits_and_gradient(model: Any, inputs: dict[str, Any], labels: Any) -> tuple[Any, Gradient]:
    """Of the supervised tokens [K, V], and of their summed cross entropy."""
    import torch.nn.functional as F  # noqa: N812 (torch's own convention)

    from vlmft.training.loss import supervised_logits

    logits, targets = supervised_logits(model, inputs, labels)
    F.cross_entropy(logits[0].float(), targets[0], reduction="sum").backward()
    gradient = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return logits[0].detach().float(), gradient


def difference(pairs: Sequence[tuple[Any, Any]], by_rms: bool) -> float:
    """Between tensors that were to be equal: of the worst entry, or the root mean square, as a share of the second."""
    if by_rms:
        off = sum(float((one - other).square().sum()) for one, other in pairs)
        return float((off / sum(float(other.square().sum()) for _, other in pairs)) ** 0.5)
    worst = max(float((one - other).abs().max()) for one, other in pairs)
    return worst / max(float(other.abs().max()) for _, other in pairs)


def _without_mask(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in inputs.items() if key != "attention_mask"}


def _without_borders(inputs: dict[str, Any]) -> dict[str, Any]:
    from vlmft.models.packing import borders

    tokens = inputs["input_ids"]
    return inputs | {"attention_mask": borders([tokens.shape[1]], tokens.device)}


WAYS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "segments": dict,
    "mask": _without_mask,
    "leak": _without_borders,
}


if __name__ == "__main__":
    sys.exit(main())
