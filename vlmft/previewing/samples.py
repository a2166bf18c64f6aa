"""Visits, encoded the way training encodes them, and what a page says of each."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import PIL.Image

from vlmft.config.media import MediaRules
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.loading import EncodedGroup, Watch, encode_group, load
from vlmft.encoding.media import PlannedMedium
from vlmft.errors import VlmftError
from vlmft.previewing.album import Album
from vlmft.previewing.marks import Mark, marks_of
from vlmft.previewing.tokens import Piece, read_tokens
from vlmft.previewing.visits import Visit
from vlmft.types import Image, Labels, Preference, Rated, Sample, Solution, Target, Video

Pixels: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

_STRETCH = 1.25  # of one side against the other, by which rounding to whole patches may change a small picture
_WHOLE_SIDE = 640  # pixels
_NOT_KNOWN = "as it is in its file: how the tower gets it, model=auto cannot tell"
_NOT_SEEN = "not seen like this: whole, to show the marks"


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture that the tower gets: a whole one, a tile of one, or a frame of a video. Or, for its marks, none."""

    picture: int
    """Its number in the album."""
    height: int
    width: int
    label: str
    is_marked: bool
    """Whether the medium's marks are drawn on it."""


@dataclass(frozen=True, slots=True)
class ShownMedium:
    """A picture or video, from its file to the tower."""

    name: str
    path: str
    original: str
    changes: tuple[str, ...]
    seen: str
    num_tokens: int
    frames: tuple[Frame, ...]
    marks: tuple[Mark, ...]
    """Boxes and points that the conversation names in it."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A visit as the page shows it. With an `error` there are no pieces and no media, but the sample as it was read."""

    visit: Visit
    error: str = ""
    pieces: tuple[Piece, ...] = ()
    media: tuple[ShownMedium, ...] = ()
    rules: tuple[str, ...] = ()
    answer: str | None = None
    """What is asked of the model and stands not among the pieces; None where there is no such thing."""
    num_tokens: int = 0
    num_vision: int = 0
    num_supervised: int = 0

    @property
    def sample(self) -> Sample | None:
        """As it was read, where it could be."""
        return None if isinstance(self.visit.found, str) else self.visit.found


def show(
    visits: Sequence[Visit], encoder: Encoder, album: Album, num_workers: int = 0, within_s: float | None = None
) -> list[ShownSample]:
    """Encode the visits and put their pictures into `album`.

    Args:
        num_workers: loader processes; with one at least, a decoder that crashes spoils its own sample alone.
        within_s: once so many seconds have passed, no further visit is begun; what is left says so.
    """
    shown = {visit.number: ShownSample(visit, visit.found) for visit in visits if isinstance(visit.found, str)}
    readable = [visit for visit in visits if visit.number not in shown]
    groups = load(_Visits(readable, encoder), num_workers)
    end = None if within_s is None else time.monotonic() + within_s
    for visit in readable:
        if end is not None and time.monotonic() > end:
            late = f"not looked at: the preview of a run gets {within_s:g} s; python -m vlmft.preview takes its time"
            shown[visit.number] = _bad(visit, late)
            continue
        group = next(groups)
        reason = "".join(group.bad.values())
        shown[visit.number] = _bad(visit, reason) if reason else _good(visit, group.samples[0], encoder, album)
    return [shown[visit.number] for visit in visits]


class AnyKind(Encoder):
    """Encodes a sample as the trainer would that learns from it, whichever that is."""

    def learnt(self, sample: Sample) -> Sample:
        """The sample as it is."""
        return sample


class _Visits:
    """Maps a visit's number in a list to its sample, encoded."""

    def __init__(self, visits: Sequence[Visit], encoder: Encoder) -> None:
        self.visits, self.encoder = visits, encoder
        self.watch = Watch()

    def __len__(self) -> int:
        return len(self.visits)

    def __getitem__(self, number: int) -> EncodedGroup | VlmftError:
        return encode_group(
            self.encoder,
            number,
            [self.visits[number]],
            encode=self._encode,
            sample_id=lambda visit: visit.id,
            watch=self.watch,
        )

    def _encode(self, visit: Visit) -> Encoded:
        assert isinstance(visit.found, Sample)
        if visit.key is None:
            return self.encoder.encode_prompt(visit.found)
        return self.encoder.encode(visit.found, visit.key)


def _bad(visit: Visit, error: str) -> ShownSample:
    assert isinstance(visit.found, Sample)
    return ShownSample(visit, error, answer=_answer(visit, visit.found) if visit.found.target else None)


def _good(visit: Visit, encoded: Encoded, encoder: Encoder, album: Album) -> ShownSample:
    assert isinstance(visit.found, Sample)
    trained = visit.key is not None
    counted = encoder.count(visit.found, visit.key) if trained else encoder.count_prompt(visit.found)
    sample, planned = counted.sample, counted.media
    names = _names(planned)
    runs = [
        (f"{name}, part {number} of {len(item.written.runs)}" if len(item.written.runs) > 1 else name, run)
        for name, item in zip(names, planned, strict=True)
        for number, run in enumerate(item.written.runs, start=1)
    ]
    features = encoder.family.feature_tokens(encoder.processor)
    ids, supervised = encoded.input_ids.tolist(), encoded.supervised.tolist()
    pixels = [encoder.family.shown(encoder.processor, media) for media in encoded.media]
    marks: list[tuple[Mark, ...]] = [() for _ in planned]
    if planned and planned[0].rules.coordinates:
        # A text counts them in reading order; some templates write all pictures before all videos.
        places = _places(sample, planned)
        seen = [pixels[places.index(number)].shape[1:3] for number in range(len(places))]
        in_order = marks_of(sample, encoder.family.coordinate_style, seen)
        marks = [in_order[place] for place in places]
    return ShownSample(
        visit=visit,
        pieces=tuple(read_tokens(encoder.processor.tokenizer, ids, supervised, runs, features)),
        media=tuple(_medium(*parts, album) for parts in zip(names, planned, pixels, marks, strict=True)),
        rules=tuple(describe_rules(visit, encoder.family.media_rules)) if planned else (),
        answer=_answer(visit, sample),
        num_tokens=encoded.num_tokens,
        num_vision=encoded.num_vision_tokens,
        num_supervised=encoded.num_supervised,
    )


def _names(planned: Sequence[PlannedMedium]) -> list[str]:
    """Each medium's name among those of its kind: picture 1, picture 2, video 1."""
    counts = {"picture": 0, "video": 0}
    names = []
    for item in planned:
        kind = "picture" if isinstance(item.medium, Image) else "video"
        counts[kind] += 1
        names.append(f"{kind} {counts[kind]}")
    return names


def _places(sample: Sample, planned: Sequence[PlannedMedium]) -> list[int]:
    """Where each medium stands in reading order. Those of one kind keep their order whatever a template does."""
    waiting = {kind: [i for i, item in enumerate(sample.media) if isinstance(item, kind)] for kind in (Image, Video)}
    return [waiting[type(item.medium)].pop(0) for item in planned]


def _medium(name: str, planned: PlannedMedium, pixels: Pixels, marks: tuple[Mark, ...], album: Album) -> ShownMedium:
    view, (count, height, width) = planned.view, pixels.shape[:3]
    # A family that cuts a picture into tiles, or its middle out, draws its marks where they do not lie.
    is_whole = (count == 1 or planned.clip is not None) and _is_alike(
        view.crop_width / view.crop_height, width / height
    )
    frames = [
        Frame(album.add(picture), height, width, _label(number, count, planned), bool(marks) and is_whole)
        for number, picture in enumerate(pixels)
    ]
    if not count or marks and not is_whole:
        whole = PIL.Image.fromarray(planned.picture() if planned.clip is None else planned.video()[0])
        whole.thumbnail((_WHOLE_SIDE, _WHOLE_SIDE))
        label = _NOT_SEEN if count else _NOT_KNOWN
        frames.append(Frame(album.add(np.asarray(whole)), whole.height, whole.width, label, bool(marks)))
    size = f"{width} x {height}"
    return ShownMedium(
        name=name,
        path=str(planned.medium.path),
        original=f"{view.width} x {view.height}",
        changes=tuple(_changes(planned)),
        seen=size if count == 1 else f"{count} times {size}" if count else "as the checkpoint's processor resizes it",
        num_tokens=planned.written.num_features,
        frames=tuple(frames),
        marks=marks,
    )


def _is_alike(before: float, after: float) -> bool:
    return max(before, after) <= _STRETCH * min(before, after)


def _changes(planned: PlannedMedium) -> Iterator[str]:
    """What is done to a medium before it is resized."""
    view, augment = planned.view, planned.rules.augment
    if (view.crop_height, view.crop_width) != (view.height, view.width):
        yield f"cut out: {view.crop_width} x {view.crop_height} at {view.left}, {view.top}"
    if view.flipped:
        yield "mirrored"
    if augment is not None and augment.colour:
        yield "colours moved"
    if augment is not None and augment.jpeg is not None:
        yield "compressed as JPEG"


def _label(number: int, count: int, planned: PlannedMedium) -> str:
    if planned.clip is None:
        return f"tile {number + 1} of {count}" if count > 1 else ""
    times = planned.clip.timestamps
    return f"{times[number]:.2f} s" if number < len(times) else "the last again"


def describe_rules(visit: Visit, run: MediaRules) -> Iterator[str]:
    """The rules of a sample's media that are not left to the checkpoint, as the keys that set them."""
    assert isinstance(visit.found, Sample)
    entry = visit.found.rules
    own, merged = dict(flat_rules(entry)), dict(flat_rules(entry.over(run)))
    absent = [] if visit.found.images else ["image."]
    absent += [] if visit.found.videos else ["video."]
    absent += ["augment."] if visit.key is None else []
    for key, value in merged.items():
        if key.startswith(tuple(absent)):
            continue
        yield f"dataset.{visit.entry}.{key}={value}" if key in own else f"model.{key}={value}"


def flat_rules(rules: MediaRules) -> Iterator[tuple[str, Any]]:
    """The rules that say something, as dotted keys."""
    for name, value in rules.model_dump(exclude_defaults=True).items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", below) for key, below in value.items())
        else:
            yield name, value


def _answer(visit: Visit, sample: Sample) -> str | None:
    if sample.target is not None:
        return _describe(sample.target)
    last = sample.messages[-1]
    return last.text if visit.key is None and last.role == "assistant" else None


def _describe(target: Target) -> str:
    match target:
        case Preference(chosen, rejected):
            return f"chosen: {chosen}\nrejected: {rejected}"
        case Rated(answer, good):
            return f"{'good' if good else 'bad'} answer: {answer}"
        case Solution(text):
            return f"solution: {text}"
        case Labels(names):
            return f"class: {', '.join(names)}"
