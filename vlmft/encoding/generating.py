"""What `model.generate` follows: the settings that are given, and where the checkpoint ends an answer."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded

_OPENED = re.compile(r"<think>\s*$")
_TAIL = 8  # tokens that hold a prompt's last tag, however it is cut


@contextlib.contextmanager
def generating(model: Any, collator: Collator, **settings: Any) -> Iterator[frozenset[int]]:
    """While the body runs, `settings` alone say how `model` generates.

    `generate` fills whatever a call leaves open from the checkpoint's generation_config, and Qwen2.5-VL's own has a
    repetition penalty; of that one only where an answer ends counts.

    Yields:
        The tokens that end an answer.
    """
    from transformers import GenerationConfig

    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = owner.generation_config
    ends = answer_ends(model, collator)
    owner.generation_config = GenerationConfig(
        eos_token_id=sorted(ends), pad_token_id=collator.pad_token_id, **settings
    )
    try:
        yield ends
    finally:
        owner.generation_config = own


def answer_ends(model: Any, collator: Collator) -> frozenset[int]:
    """The tokens that end an answer: the checkpoint's, else the tokenizer's."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = owner.generation_config.eos_token_id
    ends = own if own is not None else collator.processor.tokenizer.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends)


def answer_text(prompt: Encoded, ids: Any, collator: Collator) -> str:
    """What a model says to `prompt`, of the tokens that it generates, without special ones.

    Some templates (Qwen3.5's) open a block of thinking in the prompt: it belongs to the answer, which would close what
    nobody sees opened.
    """
    tokenizer = collator.processor.tokenizer
    opened = _OPENED.search(tokenizer.decode(prompt.input_ids[-_TAIL:]))
    said: str = tokenizer.decode(ids, skip_special_tokens=True)
    return (opened[0] if opened else "") + said
