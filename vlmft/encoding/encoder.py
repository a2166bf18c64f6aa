"""Sample -> Encoded: token ids, label mask, pixels. Picklable, without weights: loader workers hold one each."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmft.data.problems import naming_sample
from vlmft.encoding.answers import Span
from vlmft.encoding.chat import ChatFormat, Rendered
from vlmft.encoding.media import MediaPlanner, PlannedMedium
from vlmft.encoding.prefix import PrefixFormat
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
    """In the order of the text."""
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
        return sum(item.written.num_features for item in self.media)

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
        form = PrefixFormat if family.prefix_lm else ChatFormat
        self.chat = form(family.renderer(processor), processor.tokenizer)
        self.planner = MediaPlanner(family, processor)
        self._kinds = {written: kind for kind, written in family.placeholders(processor).items()}
        self._placeholder = re.compile("|".join(map(re.escape, sorted(self._kinds, key=len, reverse=True))))
        self._features = family.feature_tokens(processor)

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
                    f"it {_NO_ANSWER[type(sample.target)]}; trainer=sft learns from answers: take another entry"
                )
            sample, media = self.planner.plan(sample, key)
            rendered = self.chat.render(sample)
            media, text, spans = self._with_media(rendered.text, media, rendered.spans)
            tokens = self.chat.tokenize(Rendered(rendered.id, text, spans))
            return self._repeated(sample, media, tokens.ids, tokens.supervised)

    def encode_prompt(self, sample: Sample) -> Encoded:
        """Encode the conversation without its last turn if that is an answer, ending where the model is to answer.

        Raises:
            DataError: as `encode`.
        """
        counted = self.count_prompt(sample)
        with naming_sample(sample.id, sample.place):
            return self._decoded(counted)

    def count_prompt(self, sample: Sample) -> Counted:
        """As `count`, of what `encode_prompt` encodes.

        Raises:
            DataError: as `encode_prompt`, as far as it shows without decoding.
        """
        with naming_sample(sample.id, sample.place):
            sample, media = self.planner.plan(sample, None)
            # An answer holds no medium (`ChatFormat` refuses it), so every medium stands in the prompt.
            media, text, _ = self._with_media(self.chat.prompt(sample), media)
            ids = self.chat.tokenize_prompt(text)
            return self._repeated(sample, media, ids, [False] * len(ids))

    def _decoded(self, counted: Counted) -> Encoded:
        import torch

        return Encoded(
            id=counted.sample.id,
            input_ids=torch.tensor(counted.ids),
            supervised=torch.tensor(counted.supervised),
            media=[self.planner.encode(item) for item in counted.media],
            num_vision_tokens=counted.num_vision_tokens,
        )

    def _with_media(
        self, text: str, media: Sequence[PlannedMedium], spans: Sequence[Span] = ()
    ) -> tuple[list[PlannedMedium], str, tuple[Span, ...]]:
        """Put what each medium becomes in its placeholder's stead; the answers' `spans` move along.

        Some templates write all pictures before all videos, so a placeholder takes the next medium of its own kind. No
        other text can hold a placeholder: `ChatFormat` refuses it.

        Returns:
            The media in the order of the text, the text, and the spans.
        """
        found = list(self._placeholder.finditer(text))
        waiting = {kind: [item for item in media if item.kind == kind] for kind in self._kinds.values()}
        ordered: list[PlannedMedium] = []
        for place in found:
            ordered += waiting[self._kinds[place[0]]][:1]
            del waiting[self._kinds[place[0]]][:1]
        if not len(found) == len(ordered) == len(media):
            raise DataError(
                f"the chat template wrote {len(found)} placeholders for {len(media)} pictures and videos; the "
                "checkpoint's template cannot render this sample"
            )
        pieces: list[str] = []
        ends, shifts = [0], [0]
        for place, item in zip(found, ordered, strict=True):
            pieces += [text[ends[-1] : place.start()], item.written.text]
            ends.append(place.end())
            shifts.append(shifts[-1] + len(item.written.text) - len(place[0]))
        pieces.append(text[ends[-1] :])
        moved = ((start, end, shifts[bisect_right(ends, start) - 1]) for start, end in spans)
        return ordered, "".join(pieces), tuple((start + shift, end + shift) for start, end, shift in moved)

    def _repeated(self, sample: Sample, media: list[PlannedMedium], ids: list[int], supervised: list[bool]) -> Counted:
        """Repeat each feature token as often as its medium has features."""
        runs = [run for item in media for run in item.written.runs]
        places = [place for place, token in enumerate(ids) if token in self._features]
        if len(places) != len(runs):
            raise DataError(
                f"its text came to {len(places)} runs of vision tokens where its media have {len(runs)}; the tokenizer "
                "does not fit the processor"
            )
        expanded: list[int] = []
        mask: list[bool] = []
        before = 0
        for place, run in zip(places, runs, strict=True):
            expanded += ids[before:place] + [ids[place]] * run
            mask += supervised[before:place] + [supervised[place]] * run
            before = place + 1
        counted = Counted(sample, expanded + ids[before:], mask + supervised[before:], media)
        if self.max_tokens is not None and counted.num_tokens > self.max_tokens:
            raise DataError(
                f"{counted.num_tokens} tokens, {counted.num_vision_tokens} of them vision tokens, exceed "
                f"batching.max_tokens={self.max_tokens}; raise it, or lower model.image.max_pixels, "
                "model.video.max_pixels or model.video.fps (nothing is cut)"
            )
        return counted
