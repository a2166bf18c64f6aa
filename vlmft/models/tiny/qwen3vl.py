"""The tiny Qwen3-VL: 3 + 2 blocks of width 64; the first layer's features reach the LLM by a merger of their own."""

from pathlib import Path
from typing import Any


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from vlmft.models.tiny.shared import qwen_llm, qwen_vision_tokens, write_checkpoint

    processor = make_processor()
    config = Qwen3VLConfig(
        vision_config=vision_config(),
        text_config=qwen_llm(processor.tokenizer, head_dim=16),
        tie_word_embeddings=True,
        **qwen_vision_tokens(processor.tokenizer),
    )
    write_checkpoint(
        folder,
        Qwen3VLForConditionalGeneration,
        config,
        processor,
        eos=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
    )


def make_processor(tokenizer: Any = None, template: str | None = None) -> Any:
    """The processor; with a tokenizer trained on the spot and ChatML where none are given."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    from vlmft.models.tiny.shared import CHATML_TEMPLATE, QWEN_SPECIAL_TOKENS, train_qwen_tokenizer

    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 64},
            patch_size=16,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer or train_qwen_tokenizer(QWEN_SPECIAL_TOKENS),
        video_processor=Qwen3VLVideoProcessor(size={"shortest_edge": 2 * 32 * 32, "longest_edge": 2 * 32 * 32 * 64}),
        chat_template=template or CHATML_TEMPLATE,
    )


def vision_config() -> dict[str, Any]:
    """The tower: 3 blocks of width 64, the first of them with a merger of its own."""
    from vlmft.models.tiny.shared import INITIALIZER_RANGE

    return {
        "depth": 3,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
        "initializer_range": INITIALIZER_RANGE,
    }
