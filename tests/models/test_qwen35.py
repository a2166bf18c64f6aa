"""What only Qwen3.5 has: a template that thinks, and an LLM that attends linearly."""

from pathlib import Path
from typing import Any

import pytest
import trl
from torch import nn

from tests.models.families import processor_of
from tests.support import CPU, compose
from vlmft.recipes.apply import components_of

OFFICIAL = (Path(trl.__file__).parent / "chat_templates/qwen3_5_think.jinja").read_text()
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def say(role: str, *content: str | dict[str, str]) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


@pytest.mark.parametrize(
    "options",
    [{}, {"add_generation_prompt": True}, {"add_generation_prompt": True, "enable_thinking": False}],
    ids=["conversation", "prompt", "prompt of an answer that does not think"],
)
@pytest.mark.parametrize(
    "conversation",
    [
        [say("user", IMAGE, " What? ", IMAGE)],
        [say("system", "Be brief. "), say("user", VIDEO, "What?"), say("assistant", "A cat."), say("user", "And now?")],
        [say("user", "What?"), say("assistant", "A cat."), say("user", "What?"), say("assistant", "Two dogs.")],
        [
            say("user", "What?"),
            say("assistant", "<think>\nFur.\n</think>\n\nA cat."),
            say("user", "What?"),
            say("assistant", "<think>Two tails.</think>Two dogs."),
        ],
    ],
    ids=["pictures", "system and video", "no thinking", "thinking"],
)
def test_the_tiny_template_writes_what_the_official_one_writes(
    conversation: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    written = processor_of("qwen35").apply_chat_template(conversation, **options)
    assert written == processor_of("qwen35").apply_chat_template(conversation, chat_template=OFFICIAL, **options)


def test_linear_attention_is_attention() -> None:
    family = compose("model=tiny_qwen35").model
    model = family.load_model(CPU)
    roles = components_of(model, family)["llm"].roles
    linear = "model.language_model.layers.0.linear_attn"
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and linear in name}
    assert {name.removeprefix(f"{linear}."): roles[name] for name in linears} == {
        "in_proj_qkv": "attention",
        "in_proj_z": "attention",
        "in_proj_b": "attention",
        "in_proj_a": "attention",
        "out_proj": "attention",
    }
    assert roles["model.language_model.layers.1.self_attn.q_proj"] == "attention"
    assert roles["model.language_model.layers.0.mlp.up_proj"] == "mlp"
