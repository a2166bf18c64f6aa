"""Every kind of recipe on every family: what trains moves, and a merged model answers as the trained one.

Qwen2.5-VL's recipes are held name by name in the other files; here it is about where the families differ.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES, Family, asked, collator_of, encoder_of, picture
from tests.recipes.test_merge import cast
from tests.recipes.training import Trained, save_trained
from tests.support import CPU, compose, with_recipe
from vlmft.assembly import probe
from vlmft.encoding.collate import Batch
from vlmft.recipes.groups import parameter_groups
from vlmft.recipes.merge import load_merged
from vlmft.recipes.saved import load, open_saved
from vlmft.training.loss import supervised_loss

KINDS = {
    "full": ("recipe=fft",),
    "last blocks": ("recipe=topk",),
    "norms, adapters on 4 bits": ("recipe=ln_vt_lora_llm_nf4",),
    "adapters": ("recipe=lora_vt_llm", "recipe.vision_tower.targets=[attention,mlp]", "recipe.llm.targets=attention"),
    "adapters on bf16": ("recipe=lora_vt_llm", "recipe.vision_tower.base=bf16", "recipe.llm.base=bf16"),
    "full tower, adapters": ("recipe=fft_vt_lora_llm",),
    "magnitudes, decay": ("recipe=dora_llm", "recipe.llm.layer_decay=0.9"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_trains_saves_loads_and_merges(family: Family, kind: str, tmp_path: Path) -> None:
    config = compose(f"model=tiny_{family.name}", "precision=fp32", *KINDS[kind])
    encoder, collator = encoder_of(family), collator_of(family)
    batch = collator([encoder.encode(asked(picture(tmp_path, 56, 84, seed), "What?")) for seed in range(2)])

    def inputs() -> dict[str, torch.Tensor]:
        return config.model.model_inputs(encoder.processor, dict(batch.inputs))

    torch.manual_seed(0)
    model = with_recipe(config)
    unreached = probe(model, encoder, collator, CPU)
    assert all(family.unreached and re.search(family.unreached, name) for name in unreached)
    assert bool(unreached) == (family.unreached is not None and reaches_too_far(config, kind))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, config, inputs, batch)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == trainable != set()

    saved = save_trained(Trained(config, model, {}), tmp_path / "final", unreached=tuple(unreached))
    expected = answers(model, inputs())
    assert torch.equal(answers(load(saved)[0], inputs()), expected)
    merged, _ = load_merged(open_saved(saved), CPU)
    rounding = (answers(cast(merged, torch.float64), inputs()) - answers(merged, inputs())).abs().max()
    # Both round, and two samples measure it roughly; a lost adapter would be a thousand times more.
    assert (answers(merged, inputs()) - expected).abs().max() <= 4 * rounding


def reaches_too_far(config: Any, kind: str) -> bool:
    """Whether the recipe trains a part of the tower that the family does not look at."""
    if type(config.model).__name__ == "TinyLlavaOnevision":  # the norm behind the last block
        return kind in ("full", "norms, adapters on 4 bits", "full tower, adapters")
    return kind != "magnitudes, decay"  # of LLaVA-1.5 the last block as well


def train(model: Any, config: Any, inputs: Any, batch: Batch) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(model, config.recipe, config.model, config.optim.lr, 0.0))
    model.train()
    for _ in range(3):
        supervised_loss(model, inputs(), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def answers(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = model.eval()(**inputs, use_cache=False).logits
    return found.double()
