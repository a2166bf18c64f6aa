"""Sample -> Encoded: token ids, label mask, pixels. Picklable, without weights: loader workers hold one each."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmft.data.problems import naming_sample
from vlmft.encoding.answers import Span
from vlmft.encoding.chat import ChatFormat, Rendered, Tokens
from vlmft.encoding.media import MediaPlanner, PlannedMedium
from vlmft.encoding.prefix import PrefixFormat
from vlmft.encoding.time_limit import TimeLimit
from vlmft.errors import DataError
from vlmft.models.spec import Media, ModelSpec
from vlmft.types import Labels, Message, Preference, Rated, Sample, Solution, Target

if TYPE_CHECKING:
    from torch import Tensor

_LEARNT_BY: dict[type[Target] | None, tuple[str, str]] = {
    None: ("answers", "sft"),
    Preference: ("a chosen and a rejected answer", "dpo"),
    Rated: ("one answer, good or bad", "kto"),
    Solution: ("a solution to check answers against", "grpo"),
    Labels: ("a class", "classification"),
}
"""What a sample holds by the kind of its target, and the trainer that learns from it."""


@dataclass(slots=True)
class Rejected:
    """The other answer of a preference pair, behind the same prompt. T = tokens of both."""

    input_ids: "Tensor"
    """int64 [T]"""
    supervised: "Tensor"
    """bool [T]; the tokens of the rejected answer."""


@dataclass(slots=True)
class Mismatched:
    """A prompt with another sample's answer. T = tokens of both."""

    input_ids: "Tensor"
    """int64 [T]"""
    supervised: "Tensor"
    """bool [T]; the tokens of that answer."""


@dataclass(slots=True)
class Rating:
    """Of a rated answer: what is learned beside its tokens."""

    good: bool
    mismatched: Mismatched | None = None
    """None where no other answer was given, or none that has a place behind this prompt."""


@dataclass(slots=True)
class Encoded:
    """One sample as the model takes it, not yet padded. S = its tokens."""

    id: str
    input_ids: "Tensor"
    """int64 [S]; a picture's or video's placeholder stands once for each of its features."""
    supervised: "Tensor"
    """bool [S]; the tokens that the loss asks for: of a pair, those of the chosen answer."""
    media: list[Media]
    """In the order of the text; a pair's two answers share them."""
    num_vision_tokens: int
    target: Rejected | Rating | Solution | Labels | None = None
    """What is learned beside the tokens, or instead of them: with a solution or labels, they are a prompt."""

    @property
    def num_tokens(self) -> int:
        """Tokens, pictures and videos included; of a pair, those of both sequences."""
        return len(self.input_ids) + (len(self.target.input_ids) if isinstance(self.target, Rejected) else 0)

    @property
    def num_places(self) -> int:
        """Token places that it takes in a micro-batch of its own: a pair's two sequences are padded to one length."""
        if isinstance(self.target, Rejected):
            return 2 * max(len(self.input_ids), len(self.target.input_ids))
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """Tokens that the loss is summed over. The first token has no prediction and never counts."""
        rejected = int(self.target.supervised[1:].sum()) if isinstance(self.target, Rejected) else 0
        return int(self.supervised[1:].sum()) + rejected


@dataclass(frozen=True, slots=True)
class Counted:
    """A sample before any medium is decoded: its tokens, and what is decided about its media."""

    sample: Sample
    """With boxes and points as the family writes them."""
    ids: list[int]
    supervised: list[bool]
    media: list[PlannedMedium]
    rejected: Tokens | None = None
    """Of a pair: the same prompt with the rejected answer."""
    mismatched: Tokens | None = None
    """Of a rated answer: the same prompt with another sample's answer, where that fits."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole conversation, pictures and videos included; of a pair, see `Encoded.num_places`."""
        return len(self.ids) if self.rejected is None else 2 * max(len(self.ids), len(self.rejected.ids))

    @property
    def num_vision_tokens(self) -> int:
        """Tokens of pictures and videos."""
        return sum(item.written.num_features for item in self.media)

    @property
    def num_supervised(self) -> int:
        """See `Encoded.num_supervised`."""
        return sum(self.supervised[1:]) + (sum(self.rejected.supervised[1:]) if self.rejected else 0)


class Encoder:
    """Encodes samples for one checkpoint.

    Args:
        family: the checkpoint's family, which knows its pictures.
        processor: the checkpoint's processor.
        max_tokens: a sample of more tokens than this is refused; nothing is ever cut.
        time_limit: of reading and encoding one sample, where samples are encoded in groups (`loading`).
        learns: the kind of target that is trained on; None: the answers of conversations.
        room: tokens by which a sample will grow; with them it may have `max_tokens`.
    """

    def __init__(
        self,
        family: ModelSpec,
        processor: Any,
        max_tokens: int | None = None,
        time_limit: TimeLimit | None = None,
        learns: type[Target] | None = None,
        room: int = 0,
    ) -> None:
        self.family = family
        self.processor = processor
        self.max_tokens = max_tokens
        self.time_limit = time_limit
        self.learns = learns
        self.room = room
        form = PrefixFormat if family.prefix_lm else ChatFormat
        self.chat = form(family.renderer(processor), processor.tokenizer)
        self.planner = MediaPlanner(family, processor)
        self._kinds = {written: kind for kind, written in family.placeholders(processor).items()}
        self._placeholder = re.compile("|".join(map(re.escape, sorted(self._kinds, key=len, reverse=True))))
        self._features = family.feature_tokens(processor)

    def encode(self, sample: Sample, key: int | None = None) -> Encoded:
        """Encode what is trained of a sample: a conversation with its label mask, a pair, or a prompt with its target.

        Args:
            key: seeds the augmentation of a sample that is trained on; None: it is seen as it is.

        Raises:
            DataError: the sample cannot be rendered, read or exceeds `max_tokens`; the message names it.
        """
        counted = self.count(sample, key)
        with naming_sample(sample.id, sample.place):
            return self._decoded(counted)

    def count(self, sample: Sample, key: int | None = None) -> Counted:
        """The tokens of what `encode` encodes, pictures and videos included, from headers alone.

        Raises:
            DataError: as `encode`, as far as it shows without decoding.
        """
        with naming_sample(sample.id, sample.place):
            sample = self.learnt(sample)
            sample, media = self.planner.plan(sample, key)
            match sample.target:
                case None:
                    return self._answered(sample, media)
                case Preference(chosen, rejected):
                    pair = [
                        self._answered(_with_answer(sample, text), media, only_last=True) for text in (chosen, rejected)
                    ]
                    counted = replace(pair[0], sample=sample, rejected=Tokens(pair[1].ids, pair[1].supervised))
                    self._refuse_long(counted)
                    return counted
                case Rated(answer, _, mismatched):
                    counted = self._answered(_with_answer(sample, answer), media, only_last=True)
                    return replace(counted, sample=sample, mismatched=self._fitting(sample, mismatched, media))
                case _:
                    return self._asked(sample, media)

    def _fitting(self, sample: Sample, answer: str | None, media: list[PlannedMedium]) -> Tokens | None:
        """The prompt with another sample's answer; None where it cannot stand there, or is too long."""
        if answer is None:
            return None
        try:
            counted = self._answered(_with_answer(sample, answer), media, only_last=True)
        except DataError:
            return None
        return Tokens(counted.ids, counted.supervised)

    def learnt(self, sample: Sample) -> Sample:
        """The sample with the kind of target that is trained on: a conversation's last answer is a solution as well.

        Raises:
            DataError: its target is of another kind.
        """
        if self.learns is Solution and sample.target is None and sample.messages[-1].role == "assistant":
            *asked, answer = sample.messages
            return replace(sample, messages=tuple(asked), target=Solution(answer.text))
        kind = None if sample.target is None else type(sample.target)
        if kind is not self.learns:
            holds, by = _LEARNT_BY[kind]
            needs, own = _LEARNT_BY[self.learns]
            raise DataError(
                f"it holds {holds} (trainer={by} learns from such samples); trainer={own} learns from {needs}: take "
                "another entry, or that trainer"
            )
        return sample

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
            return self._asked(*self.planner.plan(sample, None))

    def _answered(self, sample: Sample, media: list[PlannedMedium], only_last: bool = False) -> Counted:
        """A whole conversation; supervised are all of its answers, or only the last."""
        rendered = self.chat.render(sample)
        media, text, spans = self._with_media(rendered.text, media, rendered.spans)
        tokens = self.chat.tokenize(Rendered(rendered.id, text, spans[-1:] if only_last else spans))
        return self._repeated(sample, media, tokens.ids, tokens.supervised)

    def _asked(self, sample: Sample, media: list[PlannedMedium]) -> Counted:
        """A conversation up to where the model is to answer."""
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
            target=self._target(counted),
        )

    def _target(self, counted: Counted) -> Rejected | Rating | Solution | Labels | None:
        import torch

        match counted.sample.target:
            case Preference():  # a pair's prompt alone asks for neither answer
                if (rejected := counted.rejected) is None:
                    return None
                return Rejected(torch.tensor(rejected.ids), torch.tensor(rejected.supervised))
            case Rated(_, good):
                if not any(counted.supervised):  # the prompt alone
                    return None
                if (other := counted.mismatched) is None:
                    return Rating(good)
                return Rating(good, Mismatched(torch.tensor(other.ids), torch.tensor(other.supervised)))
            case target:
                return target

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
        self._refuse_long(counted)
        return counted

    def _refuse_long(self, counted: Counted) -> None:
        if self.max_tokens is not None and counted.num_tokens + self.room > self.max_tokens:
            grown = f", and {self.room} of a completion (trainer.max_new_tokens)," if self.room else ""
            raise DataError(
                f"{counted.num_tokens} tokens, {counted.num_vision_tokens} of them vision tokens{grown or ','} exceed "
                f"batching.max_tokens={self.max_tokens}; raise it, or lower model.image.max_pixels, "
                "model.video.max_pixels or model.video.fps (nothing is cut)"
            )


def _with_answer(sample: Sample, text: str) -> Sample:
    return replace(sample, messages=(*sample.messages, Message("assistant", (text,))), target=None)


def as_conversation(sample: Sample) -> Sample:
    """The sample as one that ends with an answer: a pair's chosen one, the rated one, the solution, the classes."""
    match sample.target:
        case None:
            return sample
        case Preference(chosen, _):
            return _with_answer(sample, chosen)
        case Rated(answer):
            return _with_answer(sample, answer)
        case Solution(text):
            return _with_answer(sample, text)
        case Labels(names):
            return _with_answer(sample, ", ".join(names) or "none")
