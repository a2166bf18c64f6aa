"""The tiny SmolVLM: 2 + 2 blocks of width 64, tiles of 56 pixels that become 4 tokens each."""

from pathlib import Path

# In the order of their ids, so that the weights stay as they are.
MARKS = ("<fake_token_around_image>", "<image>", "<global-img>", "<video>", "<end_of_utterance>", "<|im_start|>")


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    from vlmft.models.tiny.idefics import PLACES, TILE, template, tower
    from vlmft.models.tiny.shared import llama_llm, train_gpt2_tokenizer, write_checkpoint

    tokenizer = train_gpt2_tokenizer(
        ("<|endoftext|>", *MARKS, *PLACES),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
    )
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size={"longest_edge": 3 * 56}, max_image_size=TILE),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size=TILE, max_image_size=TILE, num_frames=16, fps=2),
        image_seq_len=4,
        chat_template=template("<|im_start|>"),
    )
    config = SmolVLMConfig(
        vision_config=tower(),
        text_config=LlamaConfig(**llama_llm(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    write_checkpoint(
        folder,
        SmolVLMForConditionalGeneration,
        config,
        processor,
        eos=("<end_of_utterance>", "<|endoftext|>"),
        pad="<|im_end|>",
    )
