"""The tiny mixture-of-experts Qwen3-VL: as the dense one, but a second layer of 4 experts, 2 of them for each token."""

from pathlib import Path


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    from vlmft.models.tiny.qwen3vl import make_processor, vision_config
    from vlmft.models.tiny.shared import qwen_llm, qwen_vision_tokens, write_checkpoint

    processor = make_processor()
    config = Qwen3VLMoeConfig(
        vision_config=vision_config(),
        text_config=qwen_llm(
            processor.tokenizer,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=96,  # transformers knows by their shapes which way experts lie: none is square
            mlp_only_layers=[0],
            tie_word_embeddings=False,
        ),
        tie_word_embeddings=False,
        **qwen_vision_tokens(processor.tokenizer),
    )
    write_checkpoint(
        folder,
        Qwen3VLMoeForConditionalGeneration,
        config,
        processor,
        eos=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
    )
