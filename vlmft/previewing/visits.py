"""Which samples are looked at: the first of the training stream, those held out, or some by their ids."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from vlmft.config.hints import did_you_mean
from vlmft.data.problems import SampleError
from vlmft.data.run_data import RunData
from vlmft.data.spec import Source
from vlmft.errors import ConfigError
from vlmft.types import Sample

_COMPARED = 10_000  # ids that a misspelt one is compared with


@dataclass(frozen=True, slots=True)
class Visit:
    """A place in the stream, or among the held-out samples, and what was read there."""

    number: int
    """Counted from 0."""
    id: str
    entry: str
    key: int | None
    """Seeds its augmentation while it trains; None: held out, to be answered."""
    found: Sample | str
    """The sample, or why there is none."""


@dataclass(frozen=True, slots=True)
class _Place:
    number: int
    source: Source
    row: int
    key: int | None

    @property
    def id(self) -> str:
        return self.source.sample_id(self.row)

    def read(self) -> Visit:
        try:
            found: Sample | str = self.source[self.row]
        except SampleError as error:
            found = str(error)
        return Visit(self.number, self.id, self.source.name, self.key, found)


def first(data: RunData, n: int, start: int = 0, held_out: bool = False) -> list[Visit]:
    """`n` places of the training stream from `start` on; or of the held-out samples, in the order of their files.

    Raises:
        ConfigError: no more than `start` samples are held out.
    """
    if held_out and start >= data.num_held_out:
        raise ConfigError(_too_few_held_out(data, start))
    places = _held_out(data) if held_out else _trained(data, start + n)
    return [place.read() for place in islice(places, start, start + n)]


def by_id(data: RunData, ids: Iterable[str], held_out: bool = False) -> list[Visit]:
    """The samples of these ids, in their order: where each is trained on first, or held out.

    Raises:
        ConfigError: names each id that is not there.
    """
    if held_out and not data.num_held_out:
        raise ConfigError(_too_few_held_out(data, 0))
    wanted = list(dict.fromkeys(ids))
    places: dict[str, _Place] = {}
    seen: list[str] = []
    for place in _held_out(data) if held_out else _trained(data, len(data.mixture)):
        name = place.id
        if name in wanted and name not in places:
            places[name] = place
            if len(places) == len(wanted):
                break
        if len(seen) < _COMPARED:
            seen.append(name)
    if missing := [name for name in wanted if name not in places]:
        elsewhere = set() if held_out else {place.id for place in _held_out(data)}
        raise ConfigError(*(_missing(name, held_out, elsewhere, seen) for name in missing))
    return [places[name].read() for name in wanted]


def _trained(data: RunData, stop: int) -> Iterator[_Place]:
    for position in range(stop):
        ref = data.mixture.at(position)
        yield _Place(position, data.mixture.parts[ref.part].source, ref.row, ref.key)


def _held_out(data: RunData) -> Iterator[_Place]:
    places = ((source, int(row)) for source, rows in data.held_out for row in rows)
    return (_Place(number, source, row, None) for number, (source, row) in enumerate(places))


def _too_few_held_out(data: RunData, start: int) -> str:
    if not data.num_held_out:
        return "eval=true: nothing is held out; name data with eval_dataset=, or take a share with holdout=0.05"
    return f"start={start}: only {data.num_held_out} samples are held out; lower it"


def _missing(name: str, held_out: bool, elsewhere: set[str], seen: Sequence[str]) -> str:
    if name in elsewhere:
        return f"ids: {name} is held out, so no step trains on it; add eval=true to see it as a prompt"
    where = "among the held-out samples" if held_out else "in a pass over the training stream"
    longer = next((known for known in seen if known.endswith(f"/{name}")), None)
    hint = f"; did you mean {longer}?" if longer else did_you_mean(name, seen)
    return f"ids: there is no sample {name!r} {where}{hint or ' (an id is <entry>/<id>, or <entry>/<row>)'}"
