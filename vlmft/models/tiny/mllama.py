"""The tiny Llama 3.2 Vision: a tower of 2 + 2 blocks over tiles of 56 pixels, an LLM of 3, one a cross-attention."""

from pathlib import Path
from typing import Any

# Renders the same strings as the family's own template, but for the day: there it is today's, and without a clock this.
TEMPLATE = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- set seen = namespace(pictures=false) %}
{%- for message in turns if message.content is not string %}
    {%- for part in message.content if part.type == 'image' %}
        {%- set seen.pictures = true %}
    {%- endfor %}
{%- endfor %}
{%- if seen.pictures and system %}
    {{- raise_exception('Prompting with images is incompatible with system messages.') }}
{%- endif %}
{%- if not seen.pictures %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n' }}
    {{- 'Today Date: ' + date_string | default('26 Jul 2024') + '\\n\\n' + system + '<|eot_id|>' }}
{%- endif %}
{%- for message in turns %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|image|>' }}
            {%- elif part.type == 'text' %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>")
"""The picture's is the last of the vocabulary: it has an embedding, and no logit."""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import MllamaConfig, MllamaImageProcessor, MllamaProcessor, MllamaTextConfig
    from transformers.models.mllama.configuration_mllama import MllamaVisionConfig

    from vlmft.models.tiny.shared import INITIALIZER_RANGE, llama_llm, train_bytes_tokenizer, write_checkpoint

    tokenizer = train_bytes_tokenizer(
        ("<|end_of_text|>", *MARKS),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessor(size={"height": 56, "width": 56}, max_image_tiles=4),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )
    vision = MllamaVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_global_layers=2,
        attention_heads=4,
        image_size=56,
        patch_size=14,
        intermediate_layers_indices=[0, 1],
        vision_output_dim=3 * 64,
        initializer_range=INITIALIZER_RANGE,
    )
    vocabulary = len(tokenizer) - 1
    text = MllamaTextConfig(
        **llama_llm(tokenizer, vocab_size=vocabulary, num_hidden_layers=3), cross_attention_layers=[1]
    )
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=vocabulary)
    eos = ("<|eot_id|>", "<|end_of_text|>")
    write_checkpoint(folder, _with_open_gates, config, processor, eos=eos, pad=tokenizer.pad_token)


def _with_open_gates(config: Any) -> Any:
    """A model whose gates let everything through: at 0, where new ones are, nothing behind them would learn."""
    from torch import nn
    from transformers import MllamaForConditionalGeneration

    model = MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "gate" in name.rpartition(".")[2]:
            nn.init.constant_(parameter, 0.5)
    return model
