"""The tiny Idefics3: 2 + 2 blocks of width 64, tiles of 56 pixels that become 4 tokens each."""

from pathlib import Path


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        LlamaConfig,
    )

    from vlmft.models.tiny.idefics import MARKS, PLACES, TILE, template, tower
    from vlmft.models.tiny.shared import llama_llm, train_bytes_tokenizer, write_checkpoint

    tokenizer = train_bytes_tokenizer(
        ("<|eot_id|>", *MARKS, *PLACES),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(size={"longest_edge": 3 * 56}, max_image_size=TILE),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=template("<|begin_of_text|>"),
    )
    config = Idefics3Config(
        vision_config=tower(),
        text_config=LlamaConfig(**llama_llm(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    write_checkpoint(
        folder,
        Idefics3ForConditionalGeneration,
        config,
        processor,
        eos=("<end_of_utterance>", "<|end_of_text|>"),
        pad=tokenizer.pad_token,
    )
