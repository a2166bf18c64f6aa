"""The tiny Mistral 3: 2 + 2 blocks of width 64, a token for 2 x 2 patches of 14 pixels, a side of at most 280."""

from pathlib import Path
from typing import Any

TURNS = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
PICTURES = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")

# Renders the same strings as Mistral Small 3.1's own template, but for one thing: where nobody gives a system prompt,
# that one writes a page of its own, with the day's date in it; this one writes none.
TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- set mark = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}
    {{- '[' + mark + ']' if message.role != 'assistant' else '' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {{- '[IMG]' if part.type == 'image' else part.text }}
        {%- endfor %}
    {%- endif %}
    {{- '[/' + mark + ']' if message.role != 'assistant' else eos_token }}
{%- endfor %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig

    from vlmft.models.tiny.shared import llama_llm, write_checkpoint

    processor = make_processor(TEMPLATE, spatial_merge_size=2)
    tokenizer = processor.tokenizer
    config = Mistral3Config(
        vision_config=tower(),
        text_config=MistralConfig(**llama_llm(tokenizer, head_dim=16)),
        image_token_index=processor.image_token_id,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    write_checkpoint(folder, Mistral3ForConditionalGeneration, config, processor, eos=("</s>",), pad="<pad>")


def make_processor(template: str, spatial_merge_size: int) -> Any:
    """The processor, with a tokenizer trained on the spot."""
    from transformers import PixtralImageProcessor, PixtralProcessor

    from vlmft.models.tiny.shared import train_bytes_tokenizer

    tokenizer = train_bytes_tokenizer(
        ("<unk>", *TURNS, *PICTURES),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )
    return PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 280}, patch_size=14),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=spatial_merge_size,
        chat_template=template,
    )


def tower() -> Any:
    """The vision config: 2 layers of width 64, 4 heads."""
    from transformers import PixtralVisionConfig

    from vlmft.models.tiny.shared import INITIALIZER_RANGE

    return PixtralVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=280,
        patch_size=14,
        hidden_act="silu",
        initializer_range=INITIALIZER_RANGE,
    )
