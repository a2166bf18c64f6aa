"""The tiny LLaVA-OneVision: 2 + 2 blocks of width 64, tiles of 56 pixels with 16 tokens each, grids of 4 at most."""

from pathlib import Path

GRIDS = [[56, 56], [56, 112], [112, 56], [112, 112], [56, 168], [168, 56]]

# Renders the same strings as llava-hf's own template: pictures, then videos, then the words.
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ' ' }}
    {%- if message.content is string %}
        {{- '\\n' + message.content }}
    {%- else %}
        {%- for part in message.content if part.type == 'image' %}{{- '<image>' }}{% endfor %}
        {%- for part in message.content if part.type == 'video' %}{{- '<video>' }}{% endfor %}
        {%- for part in message.content if part.type == 'text' %}{{- '\\n' + part.text }}{% endfor %}
    {%- endif %}
    {{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
    )

    from vlmft.models.tiny.shared import (
        QWEN_SPECIAL_TOKENS,
        qwen_llm,
        siglip_tower,
        train_qwen_tokenizer,
        write_checkpoint,
    )

    names = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer = train_qwen_tokenizer((*QWEN_SPECIAL_TOKENS, *names.values()), extra_special_tokens=names)
    half, tile = [0.5] * 3, {"height": 56, "width": 56}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size=tile, image_grid_pinpoints=GRIDS, image_mean=half, image_std=half
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=tile, image_mean=half, image_std=half),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )
    config = LlavaOnevisionConfig(
        vision_config=siglip_tower(),
        text_config=Qwen2Config(**qwen_llm(tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRIDS,
        tie_word_embeddings=True,
    )
    write_checkpoint(
        folder,
        LlavaOnevisionForConditionalGeneration,
        config,
        processor,
        eos=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
    )
