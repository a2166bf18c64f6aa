"""The model card: README.md of the merged folder, with the front matter that the Hugging Face hub reads."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.models.spec import ModelSpec
from vlmft.recipes.saved import CLASSIFIER
from vlmft.recipes.table import describe_policy
from vlmft.run_folder import RunFolder

if TYPE_CHECKING:
    from vlmft.recipes.saved import Saved

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_IN_CACHE = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/")

_TESTS = {"McNemar": "exact McNemar test", "permutation": "paired permutation test", "bootstrap": "paired bootstrap"}
TO_WRITE = "**To be written by the author before this model is published:**"


def model_card(saved: "Saved", base_model: str | None, dtype: str, asked_by: str | None) -> str:
    """The card of what `saved` becomes when it is merged.

    Args:
        base_model: the base's id on the hub; None: where the run's own base has one.
        dtype: of the merged weights.
        asked_by: what the chat template has to be told for prompts (`ChatFormat.asked_by`), if anything.
    """
    from huggingface_hub import ModelCardData

    base = base_model or hub_id(saved.family)
    adapters = "lora" if saved.recipe.adapters else "full-fine-tuning"
    data = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["vlmft", "vision-language", adapters],
        datasets=None,
    )
    front = data.to_yaml()
    if base is None:
        front += "\n# base_model: the base's id on the hub, where it has one; it was trained from a local folder"
    result = RunFolder(saved.folder.parent).read_result()
    return "\n".join(
        [
            "---",
            front,
            "---",
            "",
            f"# {saved.folder.parent.name if result else saved.folder.name}, merged",
            "",
            f"A vision-language model, fine-tuned with vlmft from {base or 'a local checkpoint'}. The weights are "
            f"merged into their base, in {dtype}; transformers loads them with `AutoModelForImageTextToText` and "
            "`AutoProcessor`.",
            *(["", f"{prompts_need(asked_by)}."] if asked_by else []),
            *(["", _of_the_head(saved.record[CLASSIFIER])] if CLASSIFIER in saved.record else []),
            "",
            "## Intended use",
            "",
            f"{TO_WRITE} whom it is for, what it may be used for and what not, what is known of its errors and "
            "biases, and under which licence (that of the base and that of the data both bind).",
            "",
            "## Data",
            "",
            *_data(saved.record.get("datasets", {})),
            "",
            "## Recipe",
            "",
            *_recipe(saved, result),
            "",
            "## Metrics",
            "",
            *_metrics(result.get("eval", {})),
            "",
            "## Base",
            "",
            *_base(saved, base),
            "",
        ]
    )


def prompts_need(asked_by: str) -> str:
    """What whoever serves the model has to know, where its template's prompt is not what training has answered."""
    if asked_by == "enable_thinking=False":
        return "It was trained to answer without thinking: `apply_chat_template(..., enable_thinking=False)` asks so"
    return f"It was trained to answer behind `{asked_by}`, which its chat template does not write: end prompts so"


def _of_the_head(record: Mapping[str, Any]) -> str:
    return (
        f"It was trained to tell {', '.join(record['classes'])} apart, by a head in place of the LM's: "
        "head.safetensors, described in classifier.json. `vlmft.load_classifier` loads both."
    )


def hub_id(family: ModelSpec) -> str | None:
    """The base's id on the hub; None where it is a folder that does not come from there."""
    path = family.path
    if path is None:
        return None
    if cached := _IN_CACHE.search(f"{path}/"):
        return f"{cached[1]}/{cached[2]}"
    return path if _HUB_ID.fullmatch(path) and not Path(path).is_dir() else None


def _data(datasets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not datasets:
        return ["Not recorded."]
    columns = sorted({key for facts in datasets.values() for key in facts if key != "path"})
    return _table(
        ["entry", *columns], [[name, *(facts.get(key, "") for key in columns)] for name, facts in datasets.items()]
    )


def _recipe(saved: "Saved", result: Mapping[str, Any]) -> list[str]:
    policies = saved.recipe.policies(saved.family.component_paths)
    bases = {component: f", on a base in {base}" for component, base in saved.recipe.bases.items()}
    rows = [[name, describe_policy(policy) + bases.get(name, "")] for name, policy in policies.items()]
    steps = [f"{result['steps']} optimiser steps, computed in {saved.precision}."] if "steps" in result else []
    return [*_table(["component", "trained"], rows), *([""] if steps else []), *steps]


def _metrics(scores: Mapping[str, Any]) -> list[str]:
    tuned, intervals = scores.get("tuned", {}), scores.get("intervals", {})
    if not tuned:
        return [f"{TO_WRITE} the run scored no held-out samples."]
    rows = [
        [
            metric,
            *(
                _scored(scores.get(side, {}).get(metric), intervals.get(side, {}).get(metric))
                for side in ("base", "tuned")
            ),
        ]
        for metric in tuned
    ]
    tests = [
        f"{metric}: p = {test['p_value']:.2g} ({_TESTS[test['name']]})"
        for metric, test in scores.get("tests", {}).items()
        if test["p_value"] is not None
    ]
    test = ["", f"Base against this model, two-sided: {'; '.join(tests)}."] if tests else []
    held_out = f"On {scores.get('n', '?')} held-out samples; in brackets the 95 % interval."
    return [held_out, "", *_table(["metric", "base", "this model"], rows), *test]


def _scored(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _base(saved: "Saved", base: str | None) -> list[str]:
    recorded = saved.record["base"]
    named = base or saved.family.folder().name
    revision = f" at revision {recorded['revision']}" if recorded["revision"] else ""
    rows = [[f"`{name}`", f"`{digest}`"] for name, digest in recorded["sha256"].items()]
    return [f"{named}{revision}, whose weights are:", "", *_table(["file", "sha256"], rows)]


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]
