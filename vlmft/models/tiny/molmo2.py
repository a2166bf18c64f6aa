"""The tiny Molmo 2: 2 + 2 blocks of width 64, crops and frames of 70 pixels: 25 patches, 9 tokens a crop, 4 a frame."""

from pathlib import Path

MARKS = (
    *("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>"),
    *("<frame_start>", "<frame_end>", "<|video|>"),
)
"""They have embeddings behind the vocabulary's, and no logits."""

# Renders the same strings as the family's own template: no first token, all media before the first turn, a space before
# an answer that is given, no end of the last one.
TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) %}
{%- for message in messages if message.content is not string %}
    {%- for part in message.content %}
        {%- set seen.images = seen.images + (part.type == 'image') | int %}
        {%- set seen.videos = seen.videos + (part.type == 'video') | int %}
    {%- endfor %}
{%- endfor %}
{%- for number in range(seen.images) %}
    {{- ('Image ' ~ (number + 1) if seen.images > 1 else '') ~ '<|image|>' }}
{%- endfor %}
{{- '<|video|>' * seen.videos }}
{%- for message in messages %}
    {%- if message.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set text = message.content %}
    {%- if text is not string %}
        {%- set text = text | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- ('' if loop.first else '<|im_end|>\\n') + '<|im_start|>user\\n' + text + '<|im_end|>\\n' }}
    {%- else %} {# assistant #}{{ '<|im_start|>assistant\\n' + text }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from transformers import (
        Molmo2Config,
        Molmo2ForConditionalGeneration,
        Molmo2ImageProcessor,
        Molmo2Processor,
        Molmo2VideoProcessor,
    )
    from transformers.models.molmo2.configuration_molmo2 import (
        Molmo2AdapterConfig,
        Molmo2TextConfig,
        Molmo2VisionConfig,
    )

    from vlmft.models.tiny.shared import (
        INITIALIZER_RANGE,
        QWEN_SPECIAL_TOKENS,
        qwen_llm,
        train_qwen_tokenizer,
        write_checkpoint,
    )

    tokenizer = train_qwen_tokenizer((*QWEN_SPECIAL_TOKENS, *MARKS), bos_token="<|im_end|>")
    token = tokenizer.convert_tokens_to_ids
    size = {"height": 70, "width": 70}
    processor = Molmo2Processor(
        image_processor=Molmo2ImageProcessor(size=size, max_crops=4, overlap_margins=[1, 1]),
        video_processor=Molmo2VideoProcessor(size=size),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )
    attention = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    vision = {"hidden_size": 64, "initializer_range": INITIALIZER_RANGE} | attention
    llm = qwen_llm(
        tokenizer,
        vocab_size=len(tokenizer) - len(MARKS),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
    )
    config = Molmo2Config(
        vision_config=Molmo2VisionConfig(**vision, intermediate_size=128, num_hidden_layers=2, image_size=[70, 70]),
        adapter_config=Molmo2AdapterConfig(
            **vision, intermediate_size=192, text_hidden_size=64, vision_feature_layer=[1, 0]
        ),
        text_config=Molmo2TextConfig(**llm, head_dim=16, additional_vocab_size=len(MARKS)),
        image_start_token_id=token("<im_start>"),
        low_res_image_start_token_id=token("<low_res_im_start>"),
        image_end_token_id=token("<im_end>"),
        image_patch_id=token("<im_patch>"),
        frame_start_token_id=token("<frame_start>"),
        frame_end_token_id=token("<frame_end>"),
        initializer_range=INITIALIZER_RANGE,
    )
    write_checkpoint(
        folder,
        Molmo2ForConditionalGeneration,
        config,
        processor,
        eos=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
    )
