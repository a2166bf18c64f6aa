"""The tiny GLM-4.1V: 2 + 2 blocks of width 64."""

from pathlib import Path
from typing import Any

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
MEDIA = tuple(f"<|{mark}{kind}|>" for kind in ("image", "video") for mark in ("begin_of_", "end_of_", ""))

# Renders the same strings as GLM-4.1V-9B-Thinking's own template, which ends no turn, and reads a list of parts of the
# user's alone.
TEMPLATE = """\
{{- '[gMASK]<sop>' }}
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' }}
    {%- if message.content is string or message.role != 'user' %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'text' %}
                {{- part.text }}
            {%- else %}
                {{- '<|begin_of_' + part.type + '|><|' + part.type + '|><|end_of_' + part.type + '|>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    write(folder, "Glm4v", "Glm4v", TEMPLATE)


def write(folder: Path, model: str, processor: str, template: str, **llm: Any) -> None:
    """Write a checkpoint of one of the classes.

    Args:
        model: how the names of its config and its model begin in transformers.
        processor: the same for its processor and the two that this one holds.
        llm: of the text config, where it differs.
    """
    import transformers

    from vlmft.models.tiny.shared import INITIALIZER_RANGE, qwen_llm, train_bytes_tokenizer, write_checkpoint

    tokenizer = train_bytes_tokenizer(
        ("[gMASK]", "<sop>", *ROLES, *MEDIA),
        bos_token=None,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    )
    size = {"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * 28 * 28 * 64}
    token = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    ends = {"bos_token_id": None, "eos_token_id": token("<|endoftext|>"), "tie_word_embeddings": False}
    config = getattr(transformers, f"{model}Config")(
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "num_heads": 4,
            "image_size": 56,
            "out_hidden_size": 64,
            "intermediate_size": 128,
            "initializer_range": INITIALIZER_RANGE,
        },
        text_config=qwen_llm(tokenizer, rope_parameters=rope, **ends | llm),
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video|>"),
        image_start_token_id=token("<|begin_of_image|>"),
        image_end_token_id=token("<|end_of_image|>"),
        video_start_token_id=token("<|begin_of_video|>"),
        video_end_token_id=token("<|end_of_video|>"),
    )
    write_checkpoint(
        folder,
        getattr(transformers, f"{model}ForConditionalGeneration"),
        config,
        getattr(transformers, f"{processor}Processor")(
            image_processor=getattr(transformers, f"{processor}ImageProcessor")(size=size),
            tokenizer=tokenizer,
            video_processor=getattr(transformers, f"{processor}VideoProcessor")(size=size),
            chat_template=template,
        ),
        eos=("<|endoftext|>", "<|user|>", "<|observation|>"),
        pad="<|endoftext|>",
    )
