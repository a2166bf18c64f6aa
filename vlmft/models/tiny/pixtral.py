"""The tiny Pixtral: as the tiny Mistral 3, in LLaVA's class, and with a token for each patch."""

from pathlib import Path

# Renders the same strings as Pixtral's own template: the system's words begin the last question.
TEMPLATE = """\
{{- bos_token }}
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- for message in messages if message.role != 'system' %}
    {{- '[INST]' if message.role == 'user' else '' }}
    {%- if loop.last and message.role == 'user' and system %}
        {{- (system if system is string else system[0].text) + '\\n\\n' }}
    {%- endif %}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {{- '[IMG]' if part.type == 'image' else part.text }}
        {%- endfor %}
    {%- endif %}
    {{- '[/INST]' if message.role == 'user' else eos_token }}
{%- endfor %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig

    from vlmft.models.tiny.mistral3 import make_processor, tower
    from vlmft.models.tiny.shared import llama_llm, write_checkpoint

    processor = make_processor(TEMPLATE, spatial_merge_size=1)
    config = LlavaConfig(
        vision_config=tower(),
        text_config=MistralConfig(**llama_llm(processor.tokenizer, head_dim=16)),
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=1,
        tie_word_embeddings=False,
    )
    write_checkpoint(folder, LlavaForConditionalGeneration, config, processor, eos=("</s>",), pad="<pad>")
