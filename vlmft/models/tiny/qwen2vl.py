"""The tiny Qwen2-VL: 2 + 2 blocks of width 64."""

from pathlib import Path


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
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
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}),
        chat_template=CHATML_TEMPLATE,
    )
    config = Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 64,
            "num_heads": 4,
            "mlp_ratio": 2,
            "initializer_range": INITIALIZER_RANGE,
        },
        text_config=qwen_llm(tokenizer),
        tie_word_embeddings=True,
        **qwen_vision_tokens(tokenizer),
    )
    write_checkpoint(
        folder,
        Qwen2VLForConditionalGeneration,
        config,
        processor,
        eos=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
    )
