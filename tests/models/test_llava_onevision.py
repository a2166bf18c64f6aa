"""What only LLaVA-OneVision has: a published template that begins given answers otherwise than asked ones."""

import json
import shutil
from pathlib import Path

from tests.models.families import asked
from tests.support import compose
from vlmft.encoding.encoder import Encoder

# As the published one writes roles, in words of our own.
PUBLISHED = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else '\\n' + part['text'] }}{% endfor %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_an_answer_that_is_trained_begins_as_the_prompt_does(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(compose("model=tiny_llava_onevision").model.folder(), folder)
    (folder / "chat_template.jinja").write_text(PUBLISHED)
    family = compose("model=tiny_llava_onevision", f"model.path={json.dumps(str(folder))}").model
    processor = family.load_processor()
    chat = Encoder(family, processor).chat
    expected = "<|im_start|>user \nWhat colour?<|im_end|><|im_start|>assistant\n"
    assert chat.prompt(asked("What colour?")) == expected
    assert chat.render(asked("What colour?")).text == f"{expected}red<|im_end|>"
    assert chat.asked_by() is None
    processor.save_pretrained(tmp_path / "saved")  # and what is saved is read as it is
    again = compose("model=tiny_llava_onevision", f"model.path={json.dumps(str(tmp_path / 'saved'))}").model
    assert again.load_processor().chat_template == processor.chat_template != PUBLISHED
