"""What a layer with LoRA adapters moves and keeps a token: counted, not timed, forward and backward in bf16 autocast.

A linear layer of one width, frozen in bf16, with an adapter of rank 16, as PEFT makes it by default for training
(adapters in float32 that get a float32 copy of their input, dropout 0.05), and as a run of vlmft has it (no dropout,
and no copy). Every operation's inputs and outputs that have a row a token are counted, as an eager run reads and writes
them; views count nothing. Kept is what the backward pass needs, each storage once.
"""

import argparse
import sys
from typing import Any

from common import provenance, show, write_result

WIDTH, TOKENS, RANK = 3584, 512, 16
QUICK_WIDTH = 256
BOUND = 0.6
"""Of what PEFT's default moves, at most."""


def main() -> int:
    """Count, print, write benchmarks/results/layer.json; return 1 where vlmft moves more than the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"a layer of width {QUICK_WIDTH}, no result file")
    options = parser.parse_args()
    made = provenance()
    width = QUICK_WIDTH if options.quick else WIDTH
    found = {"bare": count(width, None, False), "peft": count(width, 0.05, True), "vlmft": count(width, 0.0, False)}
    ratio = found["vlmft"]["moved"] / found["peft"]["moved"]
    show(
        f"bytes a token of a linear layer of {width} x {width}",
        ("", "moved", "kept for the backward pass"),
        [(name, f"{one['moved']:,.0f}", f"{one['kept']:,.0f}") for name, one in found.items()],
        [f"bare: without an adapter; vlmft moves {ratio:.2f} of what peft does; at most {BOUND} are allowed"],
    )
    if not options.quick:
        head = {"command": "python benchmarks/layer.py", "width": width, "rank": RANK, "bound": BOUND}
        write_result("layer", head | {"ratio": ratio, "bytes_a_token": found}, made)
    return int(ratio > BOUND)


def count(width: int, dropout: float | None, casts: bool) -> dict[str, float]:
    """Bytes moved and kept a token by a layer; without an adapter where `dropout` is None."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from torch.utils._python_dispatch import TorchDispatchMode

    class Moved(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            if not func.is_view and func.overloadpacket.__name__ != "detach":
                tensors = [thing for thing in (*args, *as_tuple(found)) if isinstance(thing, torch.Tensor)]
                self.total += sum(t.numel() * t.element_size() for t in tensors if TOKENS in t.shape)
            return found

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(width, width, bias=False, dtype=torch.bfloat16).requires_grad_(False))
    if dropout is not None:
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=dropout, target_modules=["0"])
        model = inject_adapter_in_model(config, model)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data = parameter.data.float()
        model[0].cast_input_dtype_enabled = casts
    inputs = torch.randn(TOKENS, width, dtype=torch.bfloat16, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(saved: Any) -> Any:
        if TOKENS in saved.shape:
            kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with Moved() as moved, torch.autocast("cpu", torch.bfloat16):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            outputs = model(inputs)
        outputs.backward(torch.ones_like(outputs))
    return {"moved": moved.total / TOKENS, "kept": sum(kept.values()) / TOKENS}


def as_tuple(value: Any) -> tuple[Any, ...]:
    """What an operation gives, as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


if __name__ == "__main__":
    sys.exit(main())
