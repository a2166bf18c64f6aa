"""What the tiny LLaVA-NeXT's template writes."""

from pathlib import Path
from typing import Any

import pytest
import trl

from tests.models.families import processor_of

OFFICIAL = (Path(trl.__file__).parent / "chat_templates" / "llava_next.jinja").read_text()
IMAGE = {"type": "image"}


def say(role: str, *parts: str | dict[str, str]) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


@pytest.mark.parametrize(
    "conversation",
    [
        [say("user", IMAGE, "What is it?")],
        [say("user", "One", IMAGE, " or ", IMAGE, "two?"), say("assistant", "two"), say("user", "And?")],
        [say("system", "Be brief."), say("user", IMAGE), say("assistant", "A cat."), say("user", "No?", IMAGE)],
    ],
)
def test_the_template_writes_what_llava_next_s_own_does(conversation: list[dict[str, Any]]) -> None:
    processor = processor_of("llava_next")
    written, official = (
        processor.apply_chat_template(conversation, chat_template=template, tokenize=False)
        for template in (processor.chat_template, OFFICIAL)
    )
    assert written == official
