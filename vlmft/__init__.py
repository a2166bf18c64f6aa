"""vlmft fine-tunes vision-language models: a run is a list of choices, each a word and a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vlmft.models.classifier import Classifier
    from vlmft.types import Classes

__version__ = "0.1.0"


def load(path: str | Path, device: "str | torch.device" = "cpu", *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a tuned model: `model, processor = vlmft.load("runs/x")`. See `vlmft.recipes.saved.load`."""
    from vlmft.recipes.saved import load as load_saved

    return load_saved(path, device, trust_remote_code=trust_remote_code)


def load_classifier(
    path: str | Path, device: "str | torch.device" = "cpu", *, trust_remote_code: bool = False
) -> "tuple[Classifier, Any, Classes]":
    """Load a tuned classifier: `model, processor, classes = vlmft.load_classifier("runs/x")`.

    See `vlmft.recipes.heads.load_classifier`.
    """
    from vlmft.recipes.heads import load_classifier as load_saved

    return load_saved(path, device, trust_remote_code=trust_remote_code)
