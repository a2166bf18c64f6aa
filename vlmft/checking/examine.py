"""One sample of a scan: read, its media's headers, its tokens counted; what is found goes into the shared counts."""

import dataclasses
import hashlib
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlmft.checking.counts import BAD, COUNTED, READ, TOO_LONG, TOO_MUCH_VISION, Counts, Target, target_of
from vlmft.config.media import MediaRules
from vlmft.data.check import examine
from vlmft.data.media.image import image_size, open_image
from vlmft.data.media.video import choose_frames, probe_video, read_frames
from vlmft.data.problems import SampleError, crashed, overdue
from vlmft.data.sources.rows import RowSource
from vlmft.encoding.encoder import Counted, Encoder
from vlmft.errors import DataError
from vlmft.models import ModelSpec
from vlmft.types import Image, Labels, Media, Preference, Rated, Sample
from vlmft.types import Target as SampleTarget

Kind = Literal["row", "media", "boxes", "text", "length", "crash", "timeout", "overlap"]
"""What is wrong: the row; a file, its header or its pixels; a box; what chat template, tokenizer and label mask make of
the texts; more tokens than a limit allows; a decoder that crashes, or hangs; a held-out sample that is trained on."""

_PLACE = re.compile(r"(?P<file>.*?)(?::(?P<line>\d+))?, row (?P<row>\d+)\Z", re.DOTALL)
_MOST = 65_535  # pictures or videos that are counted of a sample


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a sample cannot be used; `message` is what training would say."""

    entry: str
    id: str
    place: str
    kind: Kind
    message: str
    held_out: bool = False

    def as_json(self) -> dict[str, Any]:
        """A line of problems.jsonl. `line` counts from 1, `row` from 0; null where there is none."""
        found = _PLACE.match(self.place)
        line, row = (int(found[name]) if found and found[name] else None for name in ("line", "row"))
        return {
            "entry": self.entry,
            "id": self.id,
            "file": found["file"] if found else None,
            "line": line,
            "row": row,
            "kind": self.kind,
            "held_out": self.held_out,
            "message": self.message,
        }


class Counter:
    """Counts a sample's tokens whatever the run's limits say, and refuses it in the words of the run's own encoder."""

    def __init__(
        self,
        family: ModelSpec,
        processor: Any,
        max_tokens: int | None,
        learns: type[SampleTarget] | None = None,
        room: int = 0,
    ) -> None:
        self.run = _Undecoded(family, processor, max_tokens, learns=learns, room=room)
        unlimited = family.model_copy(update={"max_vision_tokens": None})
        self.unlimited = _Undecoded(unlimited, processor, learns=learns)
        self.unlimited.chat = self.run.chat

    @property
    def judges_whole(self) -> bool:
        """Whether a held-out sample is judged as a training one is encoded; else its prompt is answered."""
        return self.run.learns in (Preference, Rated, Labels)

    def count(self, sample: Sample, whole: bool) -> Counted:
        """Tokens of the conversation, `whole` or up to the last answer, of any length. Raises as the encoder."""
        return _count(self.unlimited, _unlimited(sample), whole)

    def refuse(self, sample: Sample, whole: bool) -> None:
        """Raise what the run's encoder raises for this sample."""
        _count(self.run, sample, whole)

    def exceeded(self, sample: Sample, counted: Counted) -> int:
        """Which limits of the run or of the sample's entry are exceeded, as `Counts` writes them."""
        most, vision = self.run.max_tokens, sample.rules.max_vision_tokens or self.run.family.max_vision_tokens
        too_long = TOO_LONG if most is not None and counted.num_tokens + self.run.room > most else 0
        return too_long | (TOO_MUCH_VISION if vision is not None and counted.num_vision_tokens > vision else 0)

    def kind(self, sample: Sample, rules: MediaRules) -> Kind:
        """Which part of counting refuses a sample that is refused whatever its length: its parts, one by one."""
        sample = _unlimited(sample)
        try:
            look_at_media(sample, rules, decode=False)
            self.unlimited.planner.plan(_with_rules(sample, coordinates=None), None)
        except DataError:
            return "media"
        try:
            self.unlimited.planner.plan(sample, None)
        except DataError:
            return "boxes"
        return "text"


class Examiner:
    """Examines samples by their numbers; it may be pickled.

    Args:
        targets: where the numbers lead.
        counts: where figures go.
        rules: the run's choices about media.
        counter: counts tokens; None: structure and media alone.
        decode: decode every medium in full, as training would; else headers are read.
    """

    def __init__(
        self, targets: Sequence[Target], counts: Counts, rules: MediaRules, counter: Counter | None, decode: bool
    ) -> None:
        self.targets, self.counts, self.rules, self.counter, self.decode = targets, counts, rules, counter, decode
        self._kind: Kind = "row"

    def __call__(self, item: int) -> Problem | None:
        """Examine a sample and write down what it is made of; return what is wrong with it."""
        target = target_of(self.targets, item)
        row = target.row(item)
        figures = self.counts.table[item]
        self._kind = "row"
        found = examine(target.source, row, lambda sample: self._look(sample, target, figures))
        if not isinstance(found, SampleError):
            return None
        if self._kind == "row" and _is_whole(target, row):
            self._kind = "media"
        return self._problem(target, item, found, self._kind)

    def lost(self, item: int, exit_code: int | None, seconds: float) -> Problem:
        """The problem of a sample that ended the process that examined it, or (None) took more than `seconds`."""
        target = target_of(self.targets, item)
        sample_id, row = target.sample_id(item), target.row(item)
        if exit_code is None:
            error = overdue(sample_id, seconds)
        elif exit_code == -signal.SIGKILL:
            error = SampleError(
                f"{sample_id}: the process that was reading it was killed, twice (signal 9), as happens where memory "
                "runs out; make its files smaller, or lower num_workers"
            )
        else:
            how = f"{signal.strsignal(-exit_code)} (signal {-exit_code})" if exit_code < 0 else f"exit code {exit_code}"
            error = crashed(sample_id, how)
        source = target.source
        error.sample_id = sample_id
        error.place = source.table.place(row) if isinstance(source, RowSource) else f"{source.data_file}, row {row}"
        return self._problem(target, item, error, "timeout" if exit_code is None else "crash")

    def _problem(self, target: Target, item: int, error: SampleError, kind: Kind) -> Problem:
        self.counts.table["state"][item] |= BAD
        return Problem(target.source.name, error.sample_id, error.place, kind, str(error), target.held_out)

    def _look(self, sample: Sample, target: Target, figures: Any) -> None:
        self._kind = "media"
        figures["pictures"], figures["videos"] = min(_MOST, len(sample.images)), min(_MOST, len(sample.videos))
        figures["question"] = question_hash(sample)
        figures["state"] |= READ
        if self.counter is None or not target.is_encoded(sample.id):
            look_at_media(sample, self.rules, self.decode)
            return
        whole = not target.held_out or self.counter.judges_whole
        counted = self._counted(sample, self.counter, whole, figures)
        self._kind = "media"
        for item in counted.media if self.decode else ():
            self.counter.run.planner.encode(item)

    def _counted(self, sample: Sample, counter: Counter, whole: bool, figures: Any) -> Counted:
        """Count the sample's tokens. Raises what training would raise."""
        try:
            counted = counter.count(sample, whole)
        except DataError as error:
            self._kind = counter.kind(sample, self.rules)
            try:
                counter.refuse(sample, whole)
            except DataError as words:
                if str(words) != str(error):  # a limit comes first
                    self._kind = "length"
                raise
            raise
        figures["tokens"], figures["vision_tokens"] = counted.num_tokens, counted.num_vision_tokens
        figures["supervised_tokens"] = counted.num_supervised
        figures["state"] |= COUNTED
        if exceeded := counter.exceeded(sample, counted):
            self._kind = "length"
            figures["state"] |= exceeded
            counter.refuse(sample, whole)
        return counted


class _Undecoded(Encoder):
    """An encoder that stops where everything is counted."""

    def _decoded(self, counted: Counted) -> Any:
        return counted


def _count(encoder: _Undecoded, sample: Sample, whole: bool) -> Counted:
    counted: Any = encoder.count(sample) if whole else encoder.encode_prompt(sample)
    assert isinstance(counted, Counted)
    return counted


def _unlimited(sample: Sample) -> Sample:
    return sample if sample.rules.max_vision_tokens is None else _with_rules(sample, max_vision_tokens=None)


def _with_rules(sample: Sample, **rules: Any) -> Sample:
    return dataclasses.replace(sample, rules=sample.rules.model_copy(update=rules))


def look_at_media(sample: Sample, rules: MediaRules, decode: bool) -> None:
    """Read the header of each medium, then, where asked for, its pixels: of a video, those of the chosen frames.

    Raises:
        DataError: the first that cannot be read.
    """
    chosen = {}
    for medium in sample.media:
        if isinstance(medium, Image):
            image_size(medium)
        else:
            info = probe_video(medium)
            chosen[id(medium)] = choose_frames(info, sample.rules.over(rules).video)
    for medium in sample.media if decode else ():
        if isinstance(medium, Image):
            open_image(medium)
        else:
            read_frames(medium, chosen[id(medium)], sample.rules.over(rules).video.decoder or "pyav")


def question_hash(sample: Sample) -> int:
    """What the user's turns say and show, in 64 bits: equal for two samples that ask the same of the same media."""
    digest = hashlib.blake2b(digest_size=8)
    for message in sample.messages:
        if message.role == "user":
            for part in message.parts:
                digest.update(repr(part if isinstance(part, str) else _shown(part)).encode(errors="backslashreplace"))
            digest.update(b"\0")
    return int.from_bytes(digest.digest(), "little")


def _shown(medium: Media) -> object:
    content = medium.data if medium.data is None else hashlib.blake2b(medium.data, digest_size=8).digest()
    frames = () if isinstance(medium, Image) else medium.frames
    return content or (str(medium.path), *map(str, frames))


def _is_whole(target: Target, row: int) -> bool:
    """Whether it is not the row itself that cannot be read, but what it names."""
    try:
        target.source.check_row(row)
    except SampleError:
        return False
    return True
