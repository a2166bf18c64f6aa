"""The tiny mixture of experts: as the tiny GLM-4.6V, but a second layer of 4 experts, 2 of them for each token."""

from pathlib import Path


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from vlmft.models.tiny.glm4v import write
    from vlmft.models.tiny.glm46v import TEMPLATE

    write(
        folder,
        "Glm4vMoe",
        "Glm46V",
        TEMPLATE,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=96,  # transformers knows by their shapes which way experts lie: none is square
        first_k_dense_replace=1,
    )
