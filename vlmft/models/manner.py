"""How a checkpoint's own processor writes a picture and joins several, for `model=auto`; `asking` finds it out.

B = samples of a batch, S = its tokens. A medium is what the processor gives for one picture alone.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmft.errors import DataError, VlmftError
from vlmft.models.spec import Media, MediumText

if TYPE_CHECKING:
    from torch import Tensor

Group = Sequence["Tensor"]
"""One input of a sample's pictures."""

Join = Callable[[Sequence[Group]], "Tensor | None"]
"""Makes a batch's input of them; None where their shapes allow no such thing."""

NUM_FEATURES = "num_features"
"""Kept with each medium, int64 [1]: its feature tokens, from which `Manner.collate` tells whose it is."""

LEFT, RIGHT = "VLMFTxLEFTx", "VLMFTxRIGHTx"
"""What stands around a picture whose text is asked for."""


@dataclass(frozen=True)
class Asked:
    """A processor's answer: the texts as it hands them to its tokenizer, and what it gives to the model."""

    texts: list[str]
    inputs: dict[str, Any]


@dataclass(frozen=True)
class Manner:
    """How one processor does it."""

    placeholder: str
    """What the chat template writes for a picture."""
    feature: int
    """The token that stands for each feature, and its text."""
    token: str
    per_token: Mapping[str, tuple[int, int]]
    """Inputs [B, S] that say which tokens are pictures': name -> (value elsewhere, value at feature tokens)."""
    joins: Mapping[str, Join]
    """How each of the other inputs is joined from the media of a batch's samples."""
    written: dict[tuple[int, int], MediumText] = field(default_factory=dict, compare=False, repr=False)
    """What has been asked already, by a picture's (height, width)."""

    def text_of(self, processor: Any, size: tuple[int, int]) -> MediumText:
        """What stands in the text for a picture of `size`; a blank one is encoded once for each size.

        Raises:
            DataError: the processor takes no picture of this size.
        """
        import PIL.Image

        if size not in self.written:
            self.written[size] = self._alone(processor, PIL.Image.new("RGB", size[::-1], "grey"))[0]
        return self.written[size]

    def medium(self, processor: Any, picture: Any) -> Media:
        """A picture [H, W, 3] as the processor gives it for the model.

        Raises:
            DataError: the processor does not take it, or treats it otherwise than others of its size.
        """
        import PIL.Image
        import torch

        expected = self.text_of(processor, picture.shape[:2])
        found, inputs = self._alone(processor, PIL.Image.fromarray(picture))
        if found != expected or not self.joins.keys() <= inputs.keys():
            raise DataError(
                f"{type(processor).__name__} writes another text for this picture than for others of its size "
                f"({found.num_features} vision tokens, not {expected.num_features}); its tokens cannot be counted"
            )
        return {name: inputs[name] for name in self.joins} | {NUM_FEATURES: torch.tensor([found.num_features])}

    def collate(self, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """Join a batch's media; see `ModelSpec.collate`."""
        is_feature = input_ids == self.feature
        inputs = {name: is_feature * (inside - other) + other for name, (other, inside) in self.per_token.items()}
        waiting = list(media)
        groups: list[list[Media]] = []
        for count in is_feature.sum(dim=1).tolist():
            group: list[Media] = []
            while sum(int(item[NUM_FEATURES]) for item in group) < count:
                group.append(waiting.pop(0))
            groups += [group] if group else []
        for name, join in self.joins.items() if groups else ():
            joined = join([[item[name] for item in group] for group in groups])
            if joined is None:
                raise DataError(f"the pictures of a batch cannot be joined: their {name} have different dimensions")
            inputs[name] = joined
        return inputs

    def _alone(self, processor: Any, picture: Any) -> tuple[MediumText, dict[str, Any]]:
        try:
            asked = ask(processor, [f"{LEFT}{self.placeholder}{RIGHT}"], [[picture]])
        except VlmftError:  # a signal came meanwhile
            raise
        except Exception as error:  # a processor may be foreign code and raise anything
            raise DataError(
                f"a picture of {picture.width} x {picture.height} pixels is refused by {type(processor).__name__}: "
                f"{error}; crop it, or leave it out"
            ) from error
        written = between(asked.texts[0], LEFT, RIGHT)
        found = folded(written or "", self.token)
        if written is None or found.num_features != int((asked.inputs["input_ids"] == self.feature).sum()):
            raise DataError(
                f"{type(processor).__name__} changes the text around a picture of {picture.width} x {picture.height} "
                "pixels, or its tokenizer does not read the picture's tokens in it; leave it out"
            )
        return found, asked.inputs


def ask(processor: Any, texts: list[str], pictures: "list[list[Any]] | None", **options: Any) -> Asked:
    """What `processor` makes of conversations' texts and pictures, by its own path."""
    asked = copy.copy(processor)
    asked.tokenizer = _Recorder(processor.tokenizer)
    inputs = asked(text=texts, return_tensors="pt", **({"images": pictures} if pictures else {}), **options)
    return Asked(asked.tokenizer.texts, dict(inputs))


class _Recorder:
    """A tokenizer that keeps the texts it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
        self.texts = [text] if isinstance(text, str) else list(text)
        return self._tokenizer(text, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)


def folded(text: str, token: str) -> MediumText:
    """A picture's text with each run of feature tokens as one."""
    run = re.compile(f"(?:{re.escape(token)})+")
    return MediumText(run.sub(lambda _: token, text), tuple(len(m[0]) // len(token) for m in run.finditer(text)))


def between(text: str, left: str, right: str) -> str | None:
    """What stands between the two ends of `text`; None where these are not its ends."""
    inside = text.removeprefix(left).removesuffix(right)
    return inside if text == f"{left}{inside}{right}" else None


def rows(groups: Sequence[Group]) -> "Tensor | None":
    """All pictures along the first dimension; the others are filled up with zeros."""
    return _joined([piece for group in groups for piece in group], 0)


def stacks(groups: Sequence[Group]) -> "Tensor | None":
    """A row for each sample, its pictures along the second dimension; filled up with zeros."""
    samples = [_joined(group, 1) for group in groups]
    return None if any(sample is None for sample in samples) else _joined([s for s in samples if s is not None], 0)


def _joined(pieces: "Group", dim: int) -> "Tensor | None":
    """`pieces` one after the other along `dim`; None where they have not that many dimensions."""
    import torch

    if any(piece.ndim <= dim or piece.ndim != pieces[0].ndim for piece in pieces):
        return None
    sizes = [max(piece.shape[d] for piece in pieces) for d in range(pieces[0].ndim)]

    def full(piece: "Tensor") -> "Tensor":
        short = [0 if d == dim else size - piece.shape[d] for d, size in enumerate(sizes)]
        return torch.nn.functional.pad(piece, [n for missing in reversed(short) for n in (0, missing)])

    return torch.cat([full(piece) for piece in pieces], dim)
