"""Proof that samples are encoded as the checkpoint's own processor does it, to the bit.

For a family of vlmft's own, tests hold that. A checkpoint that was looked at only now (`model=auto`) proves it on the
first samples of its run, and on some of noise, so that there are pictures, several of them, and text alone in any case.
`model_proof` holds the model's half.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoder
from vlmft.errors import ConfigError, VlmftError
from vlmft.types import Image, Message, Sample

if TYPE_CHECKING:
    from torch import Tensor

Refuse = Callable[[str, str], ConfigError]
"""Makes the error that a checkpoint cannot be trained, of the class that failed, and of what it did."""

PICTURE, OTHER_PICTURE, PAIR, TEXT = "noise/picture", "noise/other", "noise/pair", "noise/text"
"""The samples of noise. The first two differ in nothing but the values of their picture's pixels."""


@contextmanager
def noise_samples() -> Iterator[list[Sample]]:
    """The samples of noise, whose pictures lie on disk for as long as the body runs."""
    import numpy as np
    import PIL.Image

    sizes = {"a": (112, 112), "b": (112, 112), "c": (84, 200)}
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.png" for name in sizes}
        for name, size in sizes.items():
            PIL.Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[name])
        a, b, c = (Image(paths[name]) for name in sizes)
        yield [
            _sample(PICTURE, a, "What is seen here?"),
            _sample(OTHER_PICTURE, b, "What is seen here?"),
            _sample(PAIR, c, "Is this like", a, "or is it not?"),
            _sample(TEXT, "Is there anything to be seen?"),
        ]


def _sample(name: str, *parts: Image | str) -> Sample:
    return Sample(name, (Message("user", parts), Message("assistant", ("Noise, and nothing else.",))))


def prove_encoding(encoder: Encoder, collator: Collator, samples: Sequence[Sample], refuse: Refuse) -> None:
    """Compare tokens, pixels and whatever else the model is given with what the processor makes itself.

    Each sample's prompt goes through the processor's own `apply_chat_template`; whole conversations, side by side in a
    batch, through the processor.

    Raises:
        ConfigError: they differ, or the processor fails; made by `refuse`, with the sample's id.
    """
    with noise_samples() as noise:
        every = [*noise, *samples]
        for sample in every:
            _prove_prompt(encoder, collator, sample, refuse)
        for group in ([s for s in every if s.images], [s for s in every if not s.images]):
            _prove_batch(encoder, collator, group, refuse)


def _prove_prompt(encoder: Encoder, collator: Collator, sample: Sample, refuse: Refuse) -> None:
    """Up to the first answer: what stands after it, vlmft may have written (an end that the template leaves out)."""
    first = next(number for number, message in enumerate(sample.messages) if message.role == "assistant")
    asked = replace(sample, messages=sample.messages[:first])
    if not asked.images:
        return  # what the tokenizer makes of text alone, the batch of texts shows
    planned, media = encoder.planner.plan(asked, None)
    written, processor = encoder.chat.prompt(planned), encoder.processor
    with failing(refuse, processor, f"on sample {sample.id}"):
        conversations = [_conversation(planned, [item.picture() for item in media], parts) for parts in (True, False)]
        options: dict[str, Any] = {"add_generation_prompt": True}
        texts = [processor.apply_chat_template(turns, tokenize=False, **options) for turns in conversations]
        if written not in texts:
            raise refuse(type(processor).__name__, f"it writes the prompt of sample {sample.id} otherwise than vlmft")
        options |= {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        expected = processor.apply_chat_template(conversations[texts.index(written)], **options)
    found = collator([encoder.encode_prompt(asked)], padding_side="left").inputs
    _compare(encoder, found, expected, f"the prompt of sample {sample.id}", refuse)


def _conversation(sample: Sample, pictures: Sequence[Any], parts: bool) -> list[dict[str, Any]]:
    """A conversation with its pictures; turns without, as lists of parts or as text alone: templates differ."""
    import PIL.Image

    waiting = iter(pictures)
    return [
        {"role": message.role, "content": message.text}
        if not parts and all(isinstance(part, str) for part in message.parts)
        else {
            "role": message.role,
            "content": [
                {"type": "text", "text": part}
                if isinstance(part, str)
                else {"type": "image", "image": PIL.Image.fromarray(next(waiting))}
                for part in message.parts
                if part != ""
            ],
        }
        for message in sample.messages
    ]


def _prove_batch(encoder: Encoder, collator: Collator, samples: Sequence[Sample], refuse: Refuse) -> None:
    import PIL.Image

    planned = [encoder.planner.plan(sample, None) for sample in samples]
    texts = [encoder.chat.render(sample).text for sample, _ in planned]
    pictures = [[PIL.Image.fromarray(item.picture()) for item in media] for _, media in planned]
    names = ", ".join(sample.id for sample in samples)
    options: dict[str, Any] = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    if (bos := encoder.processor.tokenizer.bos_token) and texts[0].startswith(bos):
        options["add_special_tokens"] = False  # as apply_chat_template does it
    if any(pictures):
        options["images"] = pictures
    with failing(refuse, encoder.processor, f"on samples {names}"):
        expected = encoder.processor(text=texts, **options)
    found = collator([encoder.encode(sample) for sample in samples]).inputs
    _compare(encoder, found, expected, f"the batch of samples {names}", refuse)


def _compare(
    encoder: Encoder, found: "dict[str, Tensor]", expected: Mapping[str, Any], where: str, refuse: Refuse
) -> None:
    import torch

    found = encoder.family.model_inputs(encoder.processor, found)
    name = type(encoder.processor).__name__
    if odd := sorted(found.keys() ^ expected.keys()):
        raise refuse(name, f"of {where} its inputs are {', '.join(sorted(expected))}: not as expected {', '.join(odd)}")
    for key in sorted(expected, key=lambda key: (key != "input_ids", key)):
        ours, own = found[key], expected[key]
        if ours.shape != own.shape:
            raise refuse(name, f"of {where} its {key} are {list(own.shape)}, and {list(ours.shape)} were expected")
        if not torch.equal(ours, own.to(ours.dtype)):
            places = int((ours != own).sum())
            raise refuse(name, f"of {where} its {key} are not what was expected, in {places} of {own.numel()} places")


@contextmanager
def failing(refuse: Refuse, what: Any, where: str) -> Iterator[None]:
    """Turn whatever is raised in the body by a foreign class, that of `what`, into a refusal."""
    try:
        yield
    except VlmftError:  # a signal came meanwhile
        raise
    except MemoryError:
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise refuse(type(what).__name__, f"it fails {where}: {said}") from error
