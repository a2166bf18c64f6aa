"""What each shipped recipe trains in each family, written down by hand: the code under test is not asked."""

import re
from collections.abc import Iterable

from tests.models.families import Family

# Recipe -> what trains in (tower, LLM); the projector always trains in full.
SHIPPED = {
    "fft": ("full", "full"),
    "projector": (None, None),
    "fft_llm": (None, "full"),
    "fft_vt": ("full", None),
    "ln_vt": ("norms", None),
    "topk": ("blocks", "blocks"),
    "lora_llm": (None, "lora"),
    "lora_llm_nf4": (None, "lora"),
    "lora_llm_int8": (None, "lora"),
    "rslora_llm": (None, "lora"),
    "dora_llm": (None, "dora"),
    "lora_vt_llm": ("lora", "lora"),
    "lora_vt_llm_nf4": ("lora", "lora"),
    "ln_vt_lora_llm": ("norms", "lora"),
    "ln_vt_lora_llm_nf4": ("norms", "lora"),
    "fft_vt_lora_llm": ("full", "lora"),
    "fft_vt_lora_llm_nf4": ("full", "lora"),
    "custom": ("lora attention", "lora"),
}
_ADAPTERS = {"lora": "AB", "lora attention": "AB", "dora": "ABm"}

Trained = set[tuple[str, str]]
"""(name in the unwrapped model, what of it trains): `full` for a parameter; A, B or m of a linear module."""


def expected(family: Family, recipe: str, names: Iterable[str]) -> Trained:
    """What trains under a shipped recipe, of a model with the parameters `names`."""
    names = list(names)
    tower, llm = SHIPPED[recipe]
    adapters = {"lora", "lora attention", "dora"} & {tower, llm}
    projector = [name for name in names if name.startswith(family.projector)]
    if adapters:  # PEFT keeps no copy of a parameter that hangs on a larger module
        projector = [name for name in projector if name not in family.projector]
    found: Trained = {(name, "full") for name in projector}
    own = [name for name in names if name.startswith(family.tower) and not name.startswith(family.projector)]
    found |= _part(own, tower, family.tower_norms, family.tower_linear, family.tower_blocks)
    if llm == "lora":  # PEFT wraps a module once for each of its two parameters
        wrappers = [f"{module}{inner}" for module in family.experts for inner in ("", ".base_layer")]
        found |= {(wrapper, side) for wrapper in wrappers for side in _ADAPTERS["lora"]}
    own = [name for name in names if name.startswith(family.llm)]
    return found | _part(own, llm, "", family.llm_linear, r"(^|\.)layers\.(\d+)\.")


def _part(own: list[str], what: str | None, norms: str, linear: str, blocks: str) -> Trained:
    if what == "full":
        return {(name, "full") for name in own}
    if what == "norms":
        return {(name, "full") for name in own if re.search(norms, name.rpartition(".")[0])}
    if what == "blocks":
        numbers = {name: int(match[2]) for name in own if (match := re.search(blocks, name))}
        return {(name, "full") for name, number in numbers.items() if number > max(numbers.values()) - 2}
    modules = {name.rpartition(".")[0] for name in own if re.search(linear, name.rpartition(".")[0])}
    if what == "lora attention":
        modules = {module for module in modules if re.search(r"attn|attention", module)}
    return {(module, side) for module in modules for side in _ADAPTERS.get(what or "", "")}


def trained(live: Iterable[str]) -> Trained:
    """The live names of what requires a gradient, in the same form."""
    return {_origin(name.removeprefix("base_model.model.")) for name in live}


def _origin(name: str) -> tuple[str, str]:
    if match := re.fullmatch(r"(.*)\.lora_(A|B|magnitude_vector)\.default\.weight", name):
        return match[1], match[2][0]
    return name.replace(".modules_to_save.default", "").replace(".base_layer", ""), "full"
