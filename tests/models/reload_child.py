"""One process a family: load everything that the matrix has saved, as vlmft and as plain transformers, and compare.

    python -m tests.models.reload_child

reads folders, one a line, and prints a JSON object for each, found by a process forked from this one, which has
imported everything and loaded nothing: the imports take longer than the rest. FOLDER/<recipe>/final and /merged are
what was saved, /logits.safetensors what the trained model gave for the inputs in FOLDER/inputs-*.safetensors, and
/answer.json the tokens that it generated.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

import vlmft
import vlmft.recipes.saved  # what `vlmft.load` imports when it is called


@torch.no_grad()
def main(folder: Path) -> dict[str, Any]:
    """Compare each recipe's folders with what is kept beside them."""
    logging.disable_progress_bar()
    inputs = [load_file(path) for path in sorted(folder.glob("inputs-*.safetensors"))]
    prompt = load_file(folder / "prompt.safetensors")
    found = {}
    for recipe in sorted(path for path in folder.iterdir() if path.is_dir()):
        expected = load_file(recipe / "logits.safetensors")
        answer = json.loads((recipe / "answer.json").read_text())
        loaded, _ = vlmft.load(recipe / "final")
        merged, info = AutoModelForImageTextToText.from_pretrained(recipe / "merged", output_loading_info=True)
        found[recipe.name] = {
            "class": type(merged).__name__,
            "keys": sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]])),
            "loaded": apart(loaded, inputs, expected),
            "merged": apart(merged.eval(), inputs, expected),
            "generates": [generated(model, prompt) == answer for model in (loaded, merged)],
        }
    return found


def apart(model: Any, inputs: list[dict[str, torch.Tensor]], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of a logit."""
    return max(
        float((model(**batch, use_cache=False).logits - expected[str(number)]).abs().max())
        for number, batch in enumerate(inputs)
    )


def generated(model: Any, prompt: dict[str, torch.Tensor]) -> list[int]:
    """The tokens that a model answers greedily, with its cache."""
    tokens = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    return tokens[0, prompt["input_ids"].shape[1] :].tolist()


if __name__ == "__main__":
    for line in sys.stdin:
        if child := os.fork():
            if os.waitpid(child, 0)[1]:
                sys.exit(f"{line.strip()}: the process that was to load it has failed")
        else:
            print(json.dumps(main(Path(line.strip()))), flush=True)
            break
