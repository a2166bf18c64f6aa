"""The tiny SmolVLM: 2 + 2 blocks of width 64, tiles of 56 pixels that become 4 tokens each."""

from pathlib import Path

MARKS = ("<fake_token_around_image>", "<image>", "<global-img>", "<video>", "<end_of_utterance>", "<|im_start|>")

# Renders the same strings as SmolVLM2's own template.
TEMPLATE = """\
{{- '<|im_start|>' }}
{%- for message in messages %}
    {{- message.role | capitalize }}
    {%- if message.content is string %}
        {{- ': ' + message.content }}
    {%- else %}
        {{- ':' if message.content[0].type == 'image' else ': ' }}
        {%- for part in message.content %}
            {%- if part.type == 'text' %}
                {{- part.text }}
            {%- elif part.type == 'image' %}
                {{- '<image>' }}
            {%- elif part.type == 'video' %}
                {{- '<video>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<end_of_utterance>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    from vlmft.models.tiny.shared import INITIALIZER_RANGE, llama_llm, train_gpt2_tokenizer, write_checkpoint

    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = train_gpt2_tokenizer(
        ("<|endoftext|>", *MARKS, *places),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
    )
    tile = {"longest_edge": 56}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size={"longest_edge": 3 * 56}, max_image_size=tile),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size=tile, max_image_size=tile, num_frames=16, fps=2),
        image_seq_len=4,
        chat_template=TEMPLATE,
    )
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
            "initializer_range": INITIALIZER_RANGE,
        },
        text_config=LlamaConfig(**llama_llm(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    write_checkpoint(
        folder,
        SmolVLMForConditionalGeneration,
        config,
        processor,
        eos=("<end_of_utterance>", "<|endoftext|>"),
        pad="<|im_end|>",
    )
