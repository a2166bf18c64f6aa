"""The tiny InternVL3: 2 + 2 blocks of width 64, tiles of 56 pixels that become 4 tokens each."""

from pathlib import Path

SPECIAL_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")

# Renders the same strings as the -hf checkpoints' own template.
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<IMG_CONTEXT>\\n' }}
            {%- elif part.type == 'video' %}
                {{- '<video>\\n' }}
            {%- elif part.type == 'text' %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        Qwen2Config,
    )

    from vlmft.models.tiny.shared import (
        INITIALIZER_RANGE,
        QWEN_SPECIAL_TOKENS,
        qwen_llm,
        train_qwen_tokenizer,
        write_checkpoint,
    )

    names = {"start_image_token": "<img>", "end_image_token": "</img>"}
    names |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer = train_qwen_tokenizer((*QWEN_SPECIAL_TOKENS, *SPECIAL_TOKENS), extra_special_tokens=names)
    tile = {"height": 56, "width": 56}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=tile, crop_to_patches=True, max_patches=12),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=tile),
        image_seq_length=4,
        chat_template=TEMPLATE,
    )
    config = InternVLConfig(
        vision_config={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": [56, 56],
            "patch_size": [14, 14],
            "initializer_range": INITIALIZER_RANGE,
        },
        text_config=Qwen2Config(**qwen_llm(tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=True,
    )
    write_checkpoint(
        folder,
        InternVLForConditionalGeneration,
        config,
        processor,
        eos=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
    )
