"""The tiny Gemma 3: 2 + 2 blocks of width 64, a picture in 4 tokens; one layer looks back 32 tokens, one at all."""

from pathlib import Path

MARKS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}

# Renders the same strings as Gemma 3's own template: the system's words begin the first question.
TEMPLATE = """\
{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}
    {%- set first = messages[0].content %}
    {%- set ns.system = (first if first is string else first[0].text) + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
    {{- ns.system if loop.first else '' }}
    {%- if message.content is string %}
        {{- message.content | trim }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<start_of_image>' }}
            {%- elif part.type == 'text' %}
                {{- part.text | trim }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
    )

    from vlmft.models.tiny.shared import (
        INITIALIZER_RANGE,
        llama_llm,
        siglip_tower,
        train_gemma_tokenizer,
        write_checkpoint,
    )

    tokenizer = train_gemma_tokenizer(("<start_of_turn>", "<end_of_turn>", *MARKS.values()), extra_special_tokens=MARKS)
    token = tokenizer.convert_tokens_to_ids
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(
            size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=TEMPLATE,
    )
    llm = llama_llm(tokenizer, head_dim=16, query_pre_attn_scalar=16, sliding_window=32)
    config = Gemma3Config(
        vision_config=siglip_tower(),
        text_config=Gemma3TextConfig(**llm, layer_types=["sliding_attention", "full_attention"]),
        mm_tokens_per_image=4,
        boi_token_index=token(MARKS["boi_token"]),
        eoi_token_index=token(MARKS["eoi_token"]),
        image_token_index=token(MARKS["image_token"]),
        initializer_range=INITIALIZER_RANGE,
    )
    write_checkpoint(
        folder,
        Gemma3ForConditionalGeneration,
        config,
        processor,
        eos=("<end_of_turn>", "<eos>"),
        pad="<pad>",
        randomise=("model.multi_modal_projector.mm_input_projection_weight",),
    )
