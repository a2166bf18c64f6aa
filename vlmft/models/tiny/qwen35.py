"""The tiny Qwen3.5: 3 + 2 blocks of width 64, of which the LLM's first attends linearly and its second in full."""

from pathlib import Path

# Renders the same strings as Qwen3.5's own template for text, pictures, videos and thinking, without tools.
TEMPLATE = """\
{%- macro written(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' or 'video' in part %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set last = namespace(question=messages|length) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set text = written(message.content)|trim %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- set thought, answer = '', text %}
        {%- if '</think>' in text %}
            {%- set thought = text.split('</think>')[0].split('<think>')[-1]|trim %}
            {%- set answer = text.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > last.question %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- answer }}
    {%- else %}
        {{- text }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3_5Tokenizer

    from vlmft.models.tiny.qwen3vl import make_processor, vision_config
    from vlmft.models.tiny.shared import (
        QWEN_SPECIAL_TOKENS,
        qwen_llm,
        qwen_vision_tokens,
        train_qwen_tokenizer,
        write_checkpoint,
    )

    tokenizer = train_qwen_tokenizer(QWEN_SPECIAL_TOKENS, Qwen3_5Tokenizer)
    tokenizer.add_tokens(["<think>", "</think>"])
    processor = make_processor(tokenizer, TEMPLATE)
    tower = vision_config()
    del tower["deepstack_visual_indexes"]
    config = Qwen3_5Config(
        vision_config=tower,
        text_config=qwen_llm(
            tokenizer,
            head_dim=32,
            layer_types=["linear_attention", "full_attention"],
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
                "mrope_interleaved": True,
                "partial_rotary_factor": 0.5,
            },
        ),
        tie_word_embeddings=True,
        **qwen_vision_tokens(tokenizer),
    )
    write_checkpoint(
        folder,
        Qwen3_5ForConditionalGeneration,
        config,
        processor,
        eos=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
    )
