"""The tiny LLaVA-1.5: CLIP's tower of 3 blocks, of which the last is not used, and a Llama of 2, all of width 64."""

from pathlib import Path
from typing import Any

# Renders the same strings as llava-hf's own template: pictures first, no token at a turn's end.
TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role != 'system' %}{{- message.role | upper + ': ' }}{% endif %}
    {%- if message.content is string %}
        {{- message.content + ' ' }}
    {%- else %}
        {%- for part in message.content if part.type == 'image' %}{{- '<image>\\n' }}{% endfor %}
        {%- for part in message.content if part.type == 'text' %}{{- part.text + ' ' }}{% endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{% endif %}
"""


def vision_config() -> Any:
    """The tower's config: 16 patches of a picture of 56 x 56 pixels."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        initializer_factor=5.0,
    )


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        CLIPImageProcessor,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from vlmft.models.tiny.shared import llama_llm, train_llama_tokenizer, write_checkpoint

    tokenizer = train_llama_tokenizer(("<image>", "<pad>"), extra_special_tokens={"image_token": "<image>"})
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=LlamaConfig(**llama_llm(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    write_checkpoint(folder, LlavaForConditionalGeneration, config, processor, eos=("</s>",), pad="<pad>")
