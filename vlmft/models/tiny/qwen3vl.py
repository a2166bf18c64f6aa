"""The tiny Qwen3-VL: 3 + 2 blocks of width 64; the first layer's features reach the LLM by a merger of their own."""

from pathlib import Path


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    from vlmft.models.tiny.shared import (
        CHATML_TEMPLATE,
        INITIALIZER_RANGE,
        QWEN_SPECIAL_TOKENS,
        qwen_llm,
        qwen_vision_tokens,
        train_qwen_tokenizer,
        write_checkpoint,
    )

    tokenizer = train_qwen_tokenizer(QWEN_SPECIAL_TOKENS)
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 64},
            patch_size=16,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size={"shortest_edge": 2 * 32 * 32, "longest_edge": 2 * 32 * 32 * 64}),
        chat_template=CHATML_TEMPLATE,
    )
    config = Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "intermediate_size": 128,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "initializer_range": INITIALIZER_RANGE,
        },
        text_config=qwen_llm(tokenizer, head_dim=16),
        tie_word_embeddings=True,
        **qwen_vision_tokens(tokenizer),
    )
    write_checkpoint(
        folder,
        Qwen3VLForConditionalGeneration,
        config,
        processor,
        eos=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
    )
