"""The tiny LLaVA-NeXT: LLaVA-1.5's tower over tiles of 56 pixels with 16 tokens each, and a Mistral of 2 blocks."""

from pathlib import Path

GRIDS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]

# Renders the same strings as llava-hf's own template for the Mistral checkpoints: pictures first, then the words.
TEMPLATE = """\
{%- for message in messages %}
    {%- set texts = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | list %}
    {%- if message.role == 'system' %}
        {{- '<<SYS>>\\n' + texts[0] + '\\n<</SYS>>\\n\\n' }}
    {%- elif message.role == 'user' %}
        {{- '[INST] ' }}
        {%- for part in message.content if part.type == 'image' %}{{- '<image>\\n' }}{% endfor %}
        {{- texts | join + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + texts[0] + '</s> ' }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        MistralConfig,
    )

    from vlmft.models.tiny.llava15 import vision_config
    from vlmft.models.tiny.shared import llama_llm, train_llama_tokenizer, write_checkpoint

    tokenizer = train_llama_tokenizer(("<image>", "<pad>"), extra_special_tokens={"image_token": "<image>"})
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=GRIDS
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    config = LlavaNextConfig(
        vision_config=vision_config(),
        text_config=MistralConfig(**llama_llm(tokenizer, sliding_window=None)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=GRIDS,
        image_seq_length=16,
    )
    write_checkpoint(folder, LlavaNextForConditionalGeneration, config, processor, eos=("</s>",), pad="<pad>")
