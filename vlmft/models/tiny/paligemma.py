"""The tiny PaliGemma 2: 2 + 2 blocks of width 64, a picture in 16 tokens; one layer of its Gemma 2 looks back 32."""

from pathlib import Path


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, generation config."""
    from transformers import (
        Gemma2Config,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    from vlmft.models.tiny.shared import llama_llm, siglip_tower, train_gemma_tokenizer, write_checkpoint

    images = SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=train_gemma_tokenizer(()))
    llm = llama_llm(processor.tokenizer, head_dim=16, query_pre_attn_scalar=16, sliding_window=32)
    config = PaliGemmaConfig(
        vision_config=siglip_tower(),
        text_config=Gemma2Config(**llm, layer_types=["sliding_attention", "full_attention"]),
        image_token_index=processor.image_token_id,
        vocab_size=len(processor.tokenizer),
        projection_dim=64,
        hidden_size=64,
    )
    write_checkpoint(folder, PaliGemmaForConditionalGeneration, config, processor, eos=("<eos>",), pad="<pad>")
