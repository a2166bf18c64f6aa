"""Sample -> Encoded: token ids, label mask, pixels. Picklable, without weights: loader workers hold one each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmft.data.media.image import image_size, open_image
from vlmft.data.problems import naming_sample
from vlmft.encoding.chat import ChatFormat
from vlmft.encoding.time_limit import TimeLimit
from vlmft.errors import DataError
from vlmft.models.spec import Media, ModelSpec
from vlmft.types import Image, Sample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Encoded:
    """One sample as the model takes it, not yet padded. S = its tokens."""

    id: str
    input_ids: "Tensor"
    """int64 [S]; a picture's placeholder stands once for each of its features."""
    supervised: "Tensor"
    """bool [S]; the tokens that the loss asks for."""
    media: list[Media]
    num_image_tokens: int

    @property
    def num_tokens(self) -> int:
        """S, pictures included."""
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """Tokens that the loss is summed over. The first token has no prediction and never counts."""
        return int(self.supervised[1:].sum())


class Encoder:
    """Encodes samples for one checkpoint.

    Args:
        family: the checkpoint's family, which knows its pictures.
        processor: the checkpoint's processor.
        max_tokens: a sample of more tokens than this is refused; nothing is ever cut.
        time_limit: of reading and encoding one sample, where samples are encoded in groups (`loading`).
    """

    def __init__(
        self,
        family: ModelSpec,
        processor: Any,
        max_tokens: int | None = None,
        time_limit: TimeLimit | None = None,
    ) -> None:
        self.family = family
        self.processor = processor
        self.max_tokens = max_tokens
        self.time_limit = time_limit
        self.chat = ChatFormat(processor, processor.tokenizer)
        self._image_token_id = family.image_token_id(processor)

    def encode(self, sample: Sample) -> Encoded:
        """Encode a whole conversation with its label mask.

        Raises:
            DataError: the sample cannot be rendered, read or exceeds `max_tokens`; the message names it.
        """
        with naming_sample(sample.id, sample.place):
            tokens = self.chat.tokenize(self.chat.render(sample))
            return self._assemble(sample.id, sample.images, tokens.ids, tokens.supervised)

    def count(self, sample: Sample) -> int:
        """Tokens of the whole conversation, pictures included, from headers alone.

        Raises:
            DataError: as `encode`, as far as it shows without decoding.
        """
        with naming_sample(sample.id, sample.place):
            tokens = self.chat.tokenize(self.chat.render(sample))
            return len(self._expand_checked(sample.images, tokens.ids, tokens.supervised)[0])

    def encode_prompt(self, sample: Sample) -> Encoded:
        """Encode the conversation without its last turn if that is an answer, ending where the model is to answer.

        Raises:
            DataError: as `encode`.
        """
        with naming_sample(sample.id, sample.place):
            ids = self.chat.tokenize_prompt(self.chat.prompt(sample))
            # An answer holds no picture (`ChatFormat` refuses it), so every picture stands in the prompt.
            return self._assemble(sample.id, sample.images, ids, [False] * len(ids))

    def _assemble(self, sample_id: str, images: Sequence[Image], ids: list[int], supervised: list[bool]) -> Encoded:
        import torch

        ids, supervised, num_image_tokens = self._expand_checked(images, ids, supervised)
        media = [self.family.encode_image(self.processor, open_image(image.path)) for image in images]
        return Encoded(
            id=sample_id,
            input_ids=torch.tensor(ids),
            supervised=torch.tensor(supervised),
            media=media,
            num_image_tokens=num_image_tokens,
        )

    def _expand_checked(
        self, images: Sequence[Image], ids: list[int], supervised: list[bool]
    ) -> tuple[list[int], list[bool], int]:
        """Token ids and mask with every picture's tokens, and how many these are; nothing is decoded."""
        sizes = [image_size(image.path) for image in images]
        counts = [self.family.num_image_tokens(self.processor, *size) for size in sizes]
        ids, supervised = self._expand(ids, supervised, counts)
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            raise DataError(
                f"{len(ids)} tokens, {sum(counts)} of them of {len(images)} pictures, exceed "
                f"batching.max_tokens={self.max_tokens}; raise it, or lower model.max_pixels (nothing is cut)"
            )
        return ids, supervised, sum(counts)

    def _expand(self, ids: list[int], supervised: list[bool], counts: list[int]) -> tuple[list[int], list[bool]]:
        """Repeat each picture's placeholder once for each of its features."""
        placeholders = ids.count(self._image_token_id)
        if placeholders != len(counts):
            raise DataError(
                f"the chat template wrote {placeholders} picture placeholders "
                f"for {len(counts)} pictures; the checkpoint's template cannot render this sample"
            )
        expanded: list[int] = []
        mask: list[bool] = []
        remaining = iter(counts)
        for token, is_supervised in zip(ids, supervised, strict=True):
            times = next(remaining) if token == self._image_token_id else 1
            expanded += [token] * times
            mask += [is_supervised] * times
        return expanded, mask
