"""Which samples are looked at."""

from pathlib import Path

import pytest

from tests.support import compose, literally
from vlmft.data import LLaVADataset
from vlmft.data.run_data import RunData, open_run_data
from vlmft.errors import ConfigError
from vlmft.previewing.visits import by_id, first
from vlmft.types import Sample


@pytest.fixture
def data(mine: Path) -> RunData:
    """Six samples of `mine` twice, and 12 of shapes with 4 held out."""
    shapes = compose("dataset=shapes", "dataset.shapes.train_samples=12", "dataset.shapes.eval_samples=4").dataset
    return open_run_data({"mine": LLaVADataset(data_path=mine, factor=2), **shapes}, {}, 0.0, seed=3)


def test_the_first_are_those_of_training_with_their_keys(data: RunData) -> None:
    visits = first(data, 30, start=2)
    refs = [data.mixture.at(position) for position in range(2, 32)]
    assert len(data.mixture) == 24  # so the last ones are of the second pass
    assert [(v.number, v.id, v.key) for v in visits] == [
        (i + 2, data.mixture.sample_id(ref), ref.key) for i, ref in enumerate(refs)
    ]
    assert [visit.found for visit in visits] == [data.mixture.read(ref) for ref in refs]
    assert {visit.entry for visit in visits} == {"mine", "shapes"}


def test_held_out_ones_come_in_the_order_of_their_files(data: RunData) -> None:
    visits = first(data, 10, start=1, held_out=True)
    assert [(visit.number, visit.id, visit.key) for visit in visits] == [
        (number, f"shapes/eval-{number:05}", None) for number in (1, 2, 3)
    ]
    with pytest.raises(ConfigError, match="^start=4: only 4 samples are held out; lower it$"):
        first(data, 1, start=4, held_out=True)


def test_one_that_cannot_be_read_says_why(mine: Path) -> None:
    (mine.parent / "0.png").unlink()
    visits = first(open_run_data({"mine": LLaVADataset(data_path=mine)}, {}, 0.0, seed=0), 6)
    bad = {visit.id: visit.found for visit in visits if isinstance(visit.found, str)}
    assert bad.keys() == {"mine/one", "mine/system"}
    assert bad["mine/one"].startswith(f"mine/one ({mine}:1, row 0): 0.png does not exist in media_dir {mine.parent}")


def test_ids_pick_samples_where_they_are_first_trained_on(data: RunData) -> None:
    visits = by_id(data, ["shapes/train-00003", "mine/two", "shapes/train-00003"])
    assert [visit.id for visit in visits] == ["shapes/train-00003", "mine/two"]
    for visit in visits:
        places = [i for i in range(24) if data.mixture.sample_id(data.mixture.at(i)) == visit.id]
        assert (visit.number, visit.key) == (places[0], data.mixture.at(places[0]).key)
        assert isinstance(visit.found, Sample) and visit.found.id == visit.id
    (held_out,) = by_id(data, ["shapes/eval-00002"], held_out=True)
    assert (held_out.number, held_out.key) == (2, None)


NOT_IN_STREAM = "ids: there is no sample {!r} in a pass over the training stream{}"


@pytest.mark.parametrize(
    ("ids", "held_out", "problems"),
    [
        (
            ["mine/twoo"],
            False,
            ["ids: there is no sample 'mine/twoo' in a pass over the training stream; did you mean mine/two?"],
        ),
        (
            ["two", "mine/one"],
            False,
            ["ids: there is no sample 'two' in a pass over the training stream; did you mean mine/two?"],
        ),
        (
            ["zzzzz", "shapes/eval-00001"],
            False,
            [
                NOT_IN_STREAM.format("zzzzz", " (an id is <entry>/<id>, or <entry>/<row>)"),
                "ids: shapes/eval-00001 is held out, so no step trains on it; add eval=true to see it as a prompt",
            ],
        ),
        (
            ["shapes/eval-00009"],
            True,
            ["ids: there is no sample 'shapes/eval-00009' among the held-out samples; did you mean shapes/eval-00003?"],
        ),
    ],
)
def test_ids_that_are_not_there(data: RunData, ids: list[str], held_out: bool, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        by_id(data, ids, held_out)
    assert list(error.value.problems) == problems


def test_nothing_held_out(mine: Path) -> None:
    data = open_run_data({"mine": LLaVADataset(data_path=mine)}, {}, 0.0, seed=0)
    said = literally("eval=true: nothing is held out; name data with eval_dataset=, or take a share with holdout=0.05")
    with pytest.raises(ConfigError, match=said):
        first(data, 1, held_out=True)
    with pytest.raises(ConfigError, match=said):
        by_id(data, ["mine/one"], held_out=True)
