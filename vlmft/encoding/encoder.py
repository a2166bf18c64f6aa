"""Sample -> Encoded: token ids, label mask, pixels. Picklable, without weights: loader workers hold one each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmft.data.problems import naming_sample
from vlmft.encoding.chat import ChatFormat
from vlmft.encoding.media import MediaPlanner, PlannedMedium
from vlmft.encoding.time_limit import TimeLimit
from vlmft.errors import DataError
from vlmft.models.spec import Media, ModelSpec
from vlmft.types import Labels, Preference, Sample, Solution

if TYPE_CHECKING:
    from torch import Tensor

_NO_ANSWER = {
    Preference: "holds a chosen and a rejected answer (trainer=dpo learns from such pairs)",
    Solution: "holds a solution to check answers against (trainer=grpo learns from such prompts)",
    Labels: "holds a class (trainer=classification learns from such samples)",
}


@dataclass(slots=True)
class Encoded:
    """One sample as the model takes it, not yet padded. S = its tokens."""

    id: str
    input_ids: "Tensor"
    """int64 [S]; a picture's or video's placeholder stands once for each of its features."""
    supervised: "Tensor"
    """bool [S]; the tokens that the loss asks for."""
    media: list[Media]
    """In reading order."""
    num_vision_tokens: int

    @property
    def num_tokens(self) -> int:
        """S, pictures and videos included."""
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """Tokens that the loss is summed over. The first token has no prediction and never counts."""
        return int(self.supervised[1:].sum())


@dataclass(frozen=True, slots=True)
class Counted:
    """A sample before any medium is decoded: its tokens, and what is decided about its media."""

    sample: Sample
    """With boxes and points as the family writes them."""
    ids: list[int]
    supervised: list[bool]
    media: list[PlannedMedium]

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole conversation, pictures and videos included."""
        return len(self.ids)

    @property
    def num_vision_tokens(self) -> int:
        """Tokens of pictures and videos."""
        return sum(len(item.ids) for item in self.media)

    @property
    def num_supervised(self) -> int:
        """See `Encoded.num_supervised`."""
        return sum(self.supervised[1:])


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
        self.planner = MediaPlanner(family, processor)
        self._placeholders = {family.image_token_id(processor), family.video_token_id(processor)} - {None}

    def encode(self, sample: Sample, key: int | None = None) -> Encoded:
        """Encode a whole conversation with its label mask.

        Args:
            key: seeds the augmentation of a sample that is trained on; None: it is seen as it is.

        Raises:
            DataError: the sample cannot be rendered, read or exceeds `max_tokens`; the message names it.
        """
        counted = self.count(sample, key)
        with naming_sample(sample.id, sample.place):
            return self._decoded(counted)

    def count(self, sample: Sample, key: int | None = None) -> Counted:
        """The tokens of the whole conversation, pictures and videos included, from headers alone.

        Raises:
            DataError: as `encode`, as far as it shows without decoding.
        """
        with naming_sample(sample.id, sample.place):
            if sample.target is not None:
                raise DataError(
                    f"it ends with the user's turn and {_NO_ANSWER[type(sample.target)]}; nothing to imitate"
                )
            sample, media = self.planner.plan(sample, key)
            tokens = self.chat.tokenize(self.chat.render(sample))
            return self._expanded(sample, media, tokens.ids, tokens.supervised)

    def encode_prompt(self, sample: Sample) -> Encoded:
        """Encode the conversation without its last turn if that is an answer, ending where the model is to answer.

        Raises:
            DataError: as `encode`.
        """
        with naming_sample(sample.id, sample.place):
            sample, media = self.planner.plan(sample, None)
            ids = self.chat.tokenize_prompt(self.chat.prompt(sample))
            # An answer holds no medium (`ChatFormat` refuses it), so every medium stands in the prompt.
            return self._decoded(self._expanded(sample, media, ids, [False] * len(ids)))

    def _decoded(self, counted: Counted) -> Encoded:
        import torch

        return Encoded(
            id=counted.sample.id,
            input_ids=torch.tensor(counted.ids),
            supervised=torch.tensor(counted.supervised),
            media=[self.planner.encode(item) for item in counted.media],
            num_vision_tokens=counted.num_vision_tokens,
        )

    def _expanded(self, sample: Sample, media: list[PlannedMedium], ids: list[int], supervised: list[bool]) -> Counted:
        """Put each medium's tokens in its placeholder's stead."""
        placeholders = sum(token in self._placeholders for token in ids)
        if placeholders != len(media):
            raise DataError(
                f"the chat template wrote {placeholders} placeholders for {len(media)} pictures and videos; the "
                "checkpoint's template cannot render this sample"
            )
        counted = Counted(sample, *_with_media(ids, supervised, media, self._placeholders), media)
        if self.max_tokens is not None and counted.num_tokens > self.max_tokens:
            raise DataError(
                f"{counted.num_tokens} tokens, {counted.num_vision_tokens} of them vision tokens, exceed "
                f"batching.max_tokens={self.max_tokens}; raise it, or lower model.image.max_pixels, "
                "model.video.max_pixels or model.video.fps (nothing is cut)"
            )
        return counted


def _with_media(
    ids: Sequence[int], supervised: Sequence[bool], media: Sequence[PlannedMedium], placeholders: set[int | None]
) -> tuple[list[int], list[bool]]:
    expanded: list[int] = []
    mask: list[bool] = []
    remaining = iter(media)
    for token, is_supervised in zip(ids, supervised, strict=True):
        tokens = next(remaining).ids if token in placeholders else [token]
        expanded += tokens
        mask += [is_supervised] * len(tokens)
    return expanded, mask
