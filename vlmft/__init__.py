"""vlmft fine-tunes vision-language models: a run is a list of choices, each a word and a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__version__ = "0.1.0"


def load(path: str | Path, device: "str | torch.device" = "cpu", *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a tuned model: `model, processor = vlmft.load("runs/x")`. See `vlmft.recipes.saved.load`."""
    from vlmft.recipes.saved import load as load_saved

    return load_saved(path, device, trust_remote_code=trust_remote_code)
