"""What the tiny Idefics3 and SmolVLM share: a tower over tiles of 56 pixels, the tiles' marks, the chat template."""

from typing import Any

TILE = {"longest_edge": 56}
"""16 patches, which become 4 tokens."""

MARKS = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
PLACES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))

_TEMPLATE = """\
{{- 'FIRST' }}
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


def template(first: str) -> str:
    """Renders the same strings as these families' own templates, which differ in the `first` token."""
    return _TEMPLATE.replace("FIRST", first)


def tower() -> dict[str, Any]:
    """The vision config: 2 layers of width 64, 4 heads."""
    from vlmft.models.tiny.shared import INITIALIZER_RANGE

    return {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": TILE["longest_edge"],
        "patch_size": 14,
        "initializer_range": INITIALIZER_RANGE,
    }
