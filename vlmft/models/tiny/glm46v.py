"""The tiny GLM-4.6V: as the tiny GLM-4.1V, in classes of its own, with a template that writes blocks of thinking."""

from pathlib import Path

# Renders the strings of GLM-4.5's template, which is in the TRL package, with the marks of media that transformers'
# processor replaces; that GLM-4.6V's own renders the same could not be looked up.
TEMPLATE = """\
{%- macro said(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'text' %}
                {{- part.text }}
            {%- else %}
                {{- '<|begin_of_' + part.type + '|><|' + part.type + '|><|end_of_' + part.type + '|>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set asked = namespace(last=-1) %}
{%- for message in messages %}
    {%- set asked.last = loop.index0 if message.role == 'user' else asked.last %}
{%- endfor %}
{{- '[gMASK]<sop>' }}
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' }}
    {%- if message.role != 'assistant' %}
        {{- said(message.content) }}
    {%- else %}
        {%- set text = said(message.content) %}
        {%- set thought = text.split('</think>')[0].split('<think>')[-1] if '</think>' in text else '' %}
        {{- '<think>' + (thought.strip() if loop.index0 > asked.last else '') + '</think>\\n' }}
        {{- text.split('</think>')[-1].strip() }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


def build(folder: Path) -> None:
    """Write the checkpoint: config, random weights, tokenizer, processor, chat template, generation config."""
    from vlmft.models.tiny.glm4v import write

    write(folder, "Glm46V", "Glm46V", TEMPLATE)
