"""What `PrefixFormat` holds of any checkpoint that reads its question both ways."""

from pathlib import Path
from typing import Any

import pytest

from tests.models.families import asked, processor_of
from vlmft.encoding.prefix import PrefixFormat
from vlmft.errors import ConfigError, DataError
from vlmft.types import Image

PICTURE = Image(Path("/media/cat.png"))


def written_by(template: str) -> PrefixFormat:
    tokenizer = processor_of("gemma3").tokenizer

    class Renderer:
        image_token = "<image>"

        def apply_chat_template(self, conversation: list[dict[str, Any]], /, **options: Any) -> str:
            return str(tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False))

    return PrefixFormat(Renderer(), tokenizer)


TURN = (
    "{% for m in messages %}{% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}"
    "{{ '|' if m.role == 'user' else END }}{% endfor %}"
)


def test_where_no_end_is_written_the_tokenizer_s_is() -> None:
    chat = written_by(TURN.replace("END", "''"))
    tokens = chat.tokenize(chat.render(asked(PICTURE, "What?", answer=" red")))
    texts = chat.tokenizer.convert_ids_to_tokens(tokens.ids)
    assert [text for text, supervised in zip(texts, tokens.supervised, strict=True) if supervised] == ["▁red", "<eos>"]


def test_text_behind_the_answer_s_end_is_refused() -> None:
    chat = written_by(TURN.replace("END", "'<eos>. '"))
    with pytest.raises(DataError, match=r"sample mine/1: the chat template goes on with '\. ' after the answer's end"):
        chat.tokenize(chat.render(asked(PICTURE, "What?")))


def test_a_template_that_cannot_write_one_turn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot write a conversation of one turn: not today"):
        written_by("{{ raise_exception('not today') }}")


def test_an_answer_is_asked_for() -> None:
    chat = written_by(TURN.replace("END", "'<eos>'"))
    sample = asked(PICTURE, "What?")
    with pytest.raises(DataError, match="it has no assistant turn"):
        chat.render(type(sample)("mine/1", sample.messages[:1]))
    assert chat.prompt(sample) == chat.prompt(type(sample)("mine/1", sample.messages[:1])) == "<image>What?|"
