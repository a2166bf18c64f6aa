"""A processor that is not understood is refused; what is refused for the families is in tests/models/test_auto.py."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.autos import auto, parts, samples
from tests.models.families import asked, picture
from tests.support import literally
from vlmft.encoding.proof import prove_encoding
from vlmft.errors import ConfigError, DataError


def tampered(**changes: Callable[..., Any]) -> Any:
    """LLaVA-1.5's processor with some methods changed; each is given the original first."""
    processor = copy.copy(auto("llava15")[1])
    own = {name: _changed(getattr(type(processor), name), change) for name, change in changes.items()}
    processor.__class__ = type("TamperedProcessor", (type(processor),), own)
    return processor


def _changed(own: Callable[..., Any], change: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return change(lambda *a, **o: own(self, *a, **o), *args, **options)

    return method


def _more(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    found = call(*args, **options)
    for name in ("input_ids", "attention_mask"):
        found[name] = torch.nn.functional.pad(found[name], (0, 1), value=1)
    return found


def _first_only(call: Callable[..., Any], images: Any = None, **options: Any) -> Any:
    found = call(images=images, **options)
    if images and len(images) == 1 and len(images[0]) == 1 and "VLMFTx" not in options["text"][0]:
        found["pixel_values"] = found["pixel_values"] * 2
    return found


def _listed(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    found = call(*args, **options)
    found["sizes"] = [1]
    return found


def _text_follows(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    found = call(*args, **options)
    if "pixel_values" in found:
        found["pixel_values"] = found["pixel_values"] + found["input_ids"].shape[1]
    return found


def _uneven(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    found = call(*args, **options)
    found["types"] = found["input_ids"].clone()
    return found


def _unjoined(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    found = call(*args, **options)
    if "pixel_values" in found:
        found["counts"] = torch.tensor([len(found["pixel_values"])])
    return found


def _raises(call: Callable[..., Any], *args: Any, images: Any = None, **options: Any) -> Any:
    if images is None:
        raise KeyError("images")
    return call(*args, images=images, **options)


def _is_real(options: dict[str, Any]) -> bool:
    """Not one of the questions by which a processor is found out."""
    return "VLMFTx" not in options["text"][0]


def _more_inputs_later(call: Callable[..., Any], **options: Any) -> Any:
    return call(**options) | ({"extra": torch.tensor([1])} if _is_real(options) else {})


def _raises_later(call: Callable[..., Any], **options: Any) -> Any:
    if _is_real(options):
        raise RuntimeError("no such text")
    return call(**options)


def _types_of_pictures_alone(call: Callable[..., Any], images: Any = None, **options: Any) -> Any:
    found = call(images=images, **options)
    found["types"] = torch.zeros_like(found["input_ids"])[:, : None if images else 1]
    return found


def _odd_for_text(call: Callable[..., Any], images: Any = None, **options: Any) -> Any:
    return call(images=images, **options) | ({} if images else {"odd": torch.tensor([1])})


def _for_one_text(call: Callable[..., Any], images: Any = None, **options: Any) -> Any:
    found = call(images=images, **options)
    return found | ({"one": torch.tensor([1])} if images and len(options["text"]) == 1 else {})


def _numbered(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    return call(*args, **options) + str(options.get("image_idx", args[1] if len(args) > 1 else 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"__call__": _more},
            "of the prompt of sample noise/picture its input_ids are [1, 42], and [1, 41] were expected",
        ),
        (
            {"__call__": _first_only},
            "of the prompt of sample noise/picture its pixel_values are not what was expected, in 9408 of 9408 places",
        ),
        (
            {"__call__": _more_inputs_later},
            "of the prompt of sample noise/picture its inputs are attention_mask, extra, input_ids, pixel_values: not "
            "as expected extra",
        ),
        ({"__call__": _raises_later}, "it fails on sample noise/picture: RuntimeError: no such text"),
        ({"__call__": _types_of_pictures_alone}, "its input types is given for each token, but not always"),
        ({"__call__": _odd_for_text}, "its inputs for text alone are not what is expected: odd"),
        ({"__call__": _for_one_text}, "its input one is not given for every picture"),
        ({"__call__": _listed}, "its input sizes is no tensor but a list"),
        (
            {"__call__": _text_follows},
            "its input pixel_values follows the text around a picture, not the picture alone",
        ),
        ({"__call__": _uneven}, "its input types has not one value at pictures' tokens and one elsewhere: "),
        ({"__call__": _unjoined}, "its input counts of several pictures [1] is not joined from those of each, [1] and"),
        (
            {"__call__": _raises},
            "it takes no picture, pair of pictures or text alone as vlmft hands it over: KeyError: 'images'",
        ),
        (
            {"replace_image_token": _numbered},
            "it writes a picture otherwise where there are several, or changes the text around pictures",
        ),
        (
            {"replace_image_token": lambda call, *args, **options: "a picture"},
            "it does not write <image>, whose place the features take, for a picture",
        ),
    ],
)
def test_a_processor_that_is_not_understood_is_refused(
    changes: dict[str, Callable[..., Any]], message: str, tmp_path: Path
) -> None:
    spec, _ = auto("llava15")
    whole = literally(f"model=auto: TamperedProcessor: {message}")
    with pytest.raises(ConfigError, match=rf"^{whole}(.|\n)*\n  use model=llava15, a family of vlmft's own that fits"):
        _, encoder, collator = parts("llava15", tampered(**changes))
        prove_encoding(encoder, collator, samples(tmp_path)[2:], spec.refused)


def test_a_picture_that_is_written_otherwise_than_others_of_its_size(tmp_path: Path) -> None:
    processor = tampered()
    _, encoder, _ = parts("llava15", processor)
    sample = asked(picture(tmp_path, 40, 60), "What?")
    encoder.count(sample)
    processor.__class__.replace_image_token = lambda self, *args, **options: "<image>" * 15
    with pytest.raises(
        DataError,
        match=r"mine/1 \(data.json:1\): TamperedProcessor writes another .* \(15 vision tokens, not 16\)",
    ):
        encoder.encode(sample)


def test_a_processor_that_changes_its_mind_about_the_text_around(tmp_path: Path) -> None:
    processor = tampered()
    _, encoder, _ = parts("llava15", processor)
    own = processor.__class__.__call__

    def call(self: Any, text: list[str], **options: Any) -> Any:
        return own(self, text=[f"> {said}" for said in text], **options)

    processor.__class__.__call__ = call
    with pytest.raises(
        DataError, match="TamperedProcessor changes the text around a picture of 60 x 40 pixels, or its"
    ):
        encoder.count(asked(picture(tmp_path, 40, 60), "What?"))


def test_a_picture_that_its_processor_refuses(tmp_path: Path) -> None:
    _, encoder, _ = parts("qwen25vl")
    message = (
        "a picture of 900 x 4 pixels is refused by Qwen2_5_VLProcessor: absolute aspect ratio must be smaller than"
    )
    with pytest.raises(DataError, match=f"{literally(message)}.*; crop it, or leave it out"):
        encoder.count(asked(picture(tmp_path, 4, 900), "What?"))


def test_a_template_that_reads_a_turn_otherwise_where_there_are_pictures_is_refused(tmp_path: Path) -> None:
    """`apply_chat_template` is given the pictures themselves, which vlmft's own rendering has no need of."""
    spec, processor = auto("llava15")
    odd = copy.copy(processor)
    said = "{{- ('seen: ' if part.image else '') + '<image>"
    odd.chat_template = processor.chat_template.replace("{{- '<image>", said)
    assert odd.chat_template != processor.chat_template
    _, encoder, collator = parts("llava15", odd)
    with pytest.raises(ConfigError, match="it writes the prompt of sample noise/picture otherwise than vlmft"):
        prove_encoding(encoder, collator, [], spec.refused)
