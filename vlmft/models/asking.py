"""Find out how a checkpoint's own processor writes and joins pictures, by asking it about pictures of noise.

What is found (`manner`) is proven on the run's own samples by `vlmft.encoding.proof`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vlmft.errors import ConfigError, VlmftError
from vlmft.models.manner import LEFT, RIGHT, Asked, Join, Manner, ask, between, rows, stacks

Refuse = Callable[[str], ConfigError]
"""Makes the error that a processor cannot be taken, of what it did."""

_PADDING = {"padding": True, "padding_side": "right"}
_OTHER, _FAR = "VLMFTxOTHERx", "VLMFTxFARxVLMFTxFARx"
_SIZES = ((64, 96), (300, 180))


def learn(processor: Any, feature: int, refuse: Refuse) -> Manner:
    """Ask `processor` how it writes and joins pictures.

    Args:
        feature: the token in whose place the model puts a picture's features.

    Raises:
        ConfigError: it does something that encoding picture by picture cannot give again; made by `refuse`.
    """
    placeholder = _placeholder(processor, refuse)
    token = str(processor.tokenizer.convert_ids_to_tokens(feature))
    a, b = _noise()
    left, pair, right = (
        f"{LEFT}{placeholder}{RIGHT}",
        f"{_OTHER}{placeholder}{RIGHT}{placeholder}{LEFT}",
        f"{RIGHT}{placeholder}{_OTHER}",
    )
    far = f"{_FAR}{placeholder}{_FAR}"
    with _explained(refuse):
        asked = {
            name: ask(processor, texts, pictures, **_PADDING)
            for name, texts, pictures in (
                ("a", [left], [[a]]),
                ("b", [left], [[b]]),
                ("far", [far], [[a]]),
                ("batch", [left, pair, right], [[a], [b, a], [b]]),
                ("text", [LEFT, _FAR], None),
            )
        }
    for answer in asked.values():
        _only_tensors(answer, refuse)
    _same_text(asked, (left, pair, right, far), placeholder, token, refuse)
    per_token = _per_token(asked, feature, refuse)
    rest = sorted(asked["a"].inputs.keys() - {"input_ids", "attention_mask"} - per_token.keys())
    return Manner(placeholder, feature, token, per_token, {name: _join(name, asked, refuse) for name in rest})


@contextmanager
def _explained(refuse: Refuse) -> Iterator[None]:
    try:
        yield
    except VlmftError:  # a signal came meanwhile
        raise
    except Exception as error:  # a processor may be foreign code and raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise refuse(f"it takes no picture, pair of pictures or text alone as vlmft hands it over: {said}") from error


def _placeholder(processor: Any, refuse: Refuse) -> str:
    """What the template writes once more where a question has a picture."""
    owners = [(owner, name) for owner in (processor, processor.tokenizer) for name in ("image_token", "boi_token")]
    known = {str(token) for owner, name in owners if (token := getattr(owner, name, None))}

    def rendered(*parts: dict[str, str]) -> str:
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": LEFT}]}
        return str(processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))

    with _explained(refuse):
        without, one = rendered(), rendered({"type": "image"})
    found = sorted((token for token in known if one.count(token) == without.count(token) + 1), key=len)
    if not found:
        raise refuse(
            f"its chat template writes none of its own tokens once for a picture; known are {sorted(known) or 'none'}"
        )
    return found[-1]


def _noise() -> list[Any]:
    import numpy as np
    import PIL.Image

    draw = np.random.default_rng(0)
    return [PIL.Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in _SIZES]


def _only_tensors(asked: Asked, refuse: Refuse) -> None:
    import torch

    if odd := [name for name, value in asked.inputs.items() if not isinstance(value, torch.Tensor)]:
        raise refuse(f"its input {odd[0]} is no tensor but a {type(asked.inputs[odd[0]]).__name__}")


def _same_text(asked: Mapping[str, Asked], texts: Sequence[str], placeholder: str, token: str, refuse: Refuse) -> None:
    """A picture's text is the same wherever it stands, and all else is left as it is."""
    left, pair, right, far = texts
    a, b = (between(asked[name].texts[0], LEFT, RIGHT) for name in ("a", "b"))
    changed = "it writes a picture otherwise where there are several, or changes the text around pictures"
    if a is None or b is None:
        raise refuse(changed)
    if token not in a or token not in b:
        raise refuse(f"it does not write {token}, whose place the features take, for a picture")

    def filled(text: str, *pictures: str) -> str:
        pieces = text.split(placeholder)
        return "".join(piece for pair in zip(pieces, (*pictures, ""), strict=True) for piece in pair)

    expected = [filled(left, a), filled(pair, b, a), filled(right, b), filled(far, a), LEFT, _FAR]
    if [*asked["batch"].texts, *asked["far"].texts, *asked["text"].texts] != expected:
        raise refuse(changed)


def _per_token(asked: Mapping[str, Asked], feature: int, refuse: Refuse) -> dict[str, tuple[int, int]]:
    """The inputs that follow from the tokens alone, each with its two values."""

    def has_its_shape(answer: Asked, name: str) -> bool:
        value, ids = answer.inputs.get(name), answer.inputs["input_ids"]
        return value is not None and value.shape == ids.shape and not value.is_floating_point()

    names = asked["a"].inputs.keys() - {"input_ids", "attention_mask"}
    found: dict[str, tuple[int, int]] = {}
    for name in sorted(names):
        if not all(has_its_shape(asked[key], name) for key in ("a", "b", "far")):
            continue
        values: tuple[set[int], set[int]] = (set(), set())
        for answer in asked.values():
            if not has_its_shape(answer, name):
                raise refuse(f"its input {name} is given for each token, but not always")
            is_feature = answer.inputs["input_ids"] == feature
            values[0].update(answer.inputs[name][~is_feature].tolist())
            values[1].update(answer.inputs[name][is_feature].tolist())
        if len(values[0]) != 1 or len(values[1]) != 1:
            raise refuse(f"its input {name} has not one value at pictures' tokens and one elsewhere: {values}")
        found[name] = (values[0].pop(), values[1].pop())
    known = {"input_ids", "attention_mask", *found}
    if odd := sorted(asked["text"].inputs.keys() ^ known):
        raise refuse(f"its inputs for text alone are not what is expected: {', '.join(odd)}")
    return found


def _join(name: str, asked: Mapping[str, Asked], refuse: Refuse) -> Join:
    """The way to make a batch's input `name` of the pictures' own."""
    import torch

    if not all(name in answer.inputs for key, answer in asked.items() if key != "text"):
        raise refuse(f"its input {name} is not given for every picture")
    a, b = asked["a"].inputs[name], asked["b"].inputs[name]
    far, expected = asked["far"].inputs[name], asked["batch"].inputs[name]
    if a.shape != far.shape or not torch.equal(a, far):
        raise refuse(f"its input {name} follows the text around a picture, not the picture alone")
    for join in (rows, stacks):
        joined = join([[a], [b, a], [b]])
        if joined is not None and joined.shape == expected.shape and torch.equal(joined, expected):
            return join
    raise refuse(
        f"its input {name} of several pictures {list(expected.shape)} is not joined from those of each, "
        f"{list(a.shape)} and {list(b.shape)}"
    )
