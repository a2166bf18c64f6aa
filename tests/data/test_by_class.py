from collections import Counter

import pytest

from tests.data.making import Listed
from vlmft.data import ClassificationDataset, ImageFolderDataset, LLaVADataset
from vlmft.data.by_class import by_class, classes_of, count_classes, read_labels
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.data.problems import SampleError
from vlmft.errors import ConfigError, DataError
from vlmft.types import Classes, Labels, Solution, Target

CLASSES = Classes(("cat", "dog", "fish"))


class Labelled(Listed):
    """A source whose samples have these classes."""

    def __init__(self, targets: list[Target | None], name: str = "mine") -> None:
        super().__init__([f"{number:04d}" for number in range(len(targets))], name)
        self.targets = targets

    def target(self, row: int) -> Target | None:
        return self.targets[row]


def labelled(name: str = "mine", **counts: int) -> Labelled:
    return Labelled([Labels((label,)) for label, count in counts.items() for _ in range(count)], name)


def mixed(*sources: Labelled, factor: float = 1, weight: float | None = None) -> Mixture:
    return Mixture([MixturePart(source, factor, range(len(source)), weight) for source in sources], 0)


def drawn(mixture: Mixture, start: int, stop: int) -> Counter[str]:
    """How often each class comes in a stretch of the stream; those of several count as their names, joined."""
    found: Counter[str] = Counter()
    for position in range(start, stop):
        ref = mixture.at(position)
        source = mixture.parts[ref.part].source
        assert isinstance(source, Labelled)
        target = source.targets[ref.row]
        assert isinstance(target, Labels)
        found["+".join(target.names)] += 1
    return found


def balanced(mixture: Mixture, classes: Classes = CLASSES, **shares: float) -> Mixture:
    parts = read_labels(mixture, classes)
    counts = count_classes(parts, classes)
    return by_class(parts, counts, shares or dict.fromkeys(counts, 1.0), mixture.seed)


def test_samples_are_counted_by_class_over_all_entries() -> None:
    parts = read_labels(mixed(labelled("a", cat=3, dog=1), labelled("b", dog=2)), CLASSES)
    assert count_classes(parts, CLASSES) == {"cat": 3, "dog": 3, "fish": 0}
    assert [part.numbers for part in parts] == [[(0,), (0,), (0,), (1,)], [(1,), (1,)]]
    both = [Labels(("cat", "fish"), True), Labels((), True), Labels(("fish",), True)]
    parts = read_labels(mixed(Labelled([*both])), Classes(CLASSES.names, True))
    assert count_classes(parts, CLASSES) == {"cat": 1, "dog": 0, "fish": 2}
    quarter = read_labels(mixed(labelled(cat=80), factor=0.25), CLASSES)
    assert count_classes(quarter, CLASSES)["cat"] == 20


def test_every_stretch_of_a_balanced_stream_holds_each_class_alike() -> None:
    mixture = mixed(labelled(cat=90, dog=9, fish=1))
    stream = balanced(mixture)
    assert len(stream) == len(mixture) == 100
    for start in range(0, 300, 30):
        assert drawn(stream, start, start + 30) == {"cat": 10, "dog": 10, "fish": 10}
    assert stream.shares == pytest.approx((1.0,))
    assert stream.visits(100) == {"mine": 100}


def test_a_class_s_samples_come_in_epochs_of_their_own() -> None:
    """No dog comes a third time before each has come twice; and in another order each time."""
    stream = balanced(mixed(labelled(cat=90, dog=6, fish=3)))
    dogs = [stream.sample_id(stream.at(p)) for p in range(300) if stream.parts[stream.at(p).part].rows[0] == 90]
    epochs = [dogs[i : i + 6] for i in range(0, 96, 6)]
    assert {frozenset(epoch) for epoch in epochs} == {frozenset(dogs)} and len(set(dogs)) == 6
    assert len({tuple(epoch) for epoch in epochs}) > 10


def test_shares_are_those_given() -> None:
    stream = balanced(mixed(labelled(cat=90, dog=9, fish=1)), cat=1, dog=2, fish=1)
    assert drawn(stream, 0, 80) == {"cat": 20, "dog": 40, "fish": 20}


def test_a_class_of_several_entries_is_shared_by_their_samples() -> None:
    stream = balanced(mixed(labelled("a", cat=30, dog=10), labelled("b", cat=10, fish=10)))
    refs = [stream.at(position) for position in range(120)]
    entries = Counter(stream.parts[ref.part].source.name for ref in refs)
    assert drawn(stream, 0, 120) == {"cat": 40, "dog": 40, "fish": 40}
    assert entries == {"a": 30 + 40, "b": 10 + 40}
    assert stream.shares == pytest.approx((70 / 120, 50 / 120))
    assert stream.visits(120) == {"a": 70, "b": 50}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_ranks_shares_a_step(world_size: int) -> None:
    from vlmft.training.step_plan import StepPlan

    stream = balanced(mixed(labelled(cat=90, dog=9, fish=1)))
    plan = StepPlan.derive(len(stream), 12, 1, None, world_size)
    for step in (0, 3, 20):
        positions = sorted(p for rank in range(world_size) for p in plan.positions(step, rank))
        assert positions == list(range(step * 12, step * 12 + 12))
        assert drawn(stream, positions[0], positions[-1] + 1) == {"cat": 4, "dog": 4, "fish": 4}


@pytest.mark.parametrize(("factor", "length"), [(0.5, 50), (2, 200), (2.5, 250)])
def test_a_factor_holds_for_each_class(factor: float, length: int) -> None:
    stream = balanced(mixed(labelled(cat=80, dog=10, fish=10), factor=factor))
    assert len(stream) == length
    assert drawn(stream, 0, 60) == {"cat": 20, "dog": 20, "fish": 20}


def test_of_several_labels_a_sample_stands_for_its_rarest() -> None:
    several = Classes(CLASSES.names, True)
    targets = [("cat",)] * 40 + [("cat", "dog")] * 8 + [("dog", "fish")] * 2 + [()] * 50
    stream = balanced(mixed(Labelled([Labels(names, True) for names in targets])), several)
    # Half of the data has no class and keeps its half; the rest is shared by cat, dog and fish.
    assert drawn(stream, 0, 60) == {"": 30, "cat": 10, "cat+dog": 10, "dog+fish": 10}


def test_an_empty_class_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match="trainer.sampler: there is no training sample to be drawn for dog, fish"):
        balanced(mixed(labelled(cat=3)))


def test_entries_of_a_weight_of_their_own_are_refused() -> None:
    with pytest.raises(ConfigError, match="gives each class its share of the stream, and dataset.mine.weight"):
        balanced(mixed(labelled(cat=3, dog=3, fish=3), weight=2.0))


def test_what_has_no_class_is_named_and_may_be_left_out() -> None:
    class Broken(Labelled):
        def target(self, row: int) -> Target | None:
            if row == 1:
                raise SampleError("mine/0001: its 'label' holds 7", sample_id="mine/0001")
            return super().target(row)

    mixture = mixed(Broken([Labels(("cat",)), Labels(("cat",)), Solution("cat"), Labels(("dog",))]))
    with pytest.raises(DataError) as caught:
        read_labels(mixture, CLASSES, max_bad_samples=1)
    assert caught.value.problems[0].endswith("its 'label' holds 7")
    assert caught.value.problems[1].startswith("mine/0002: it has no class; trainer=classification")
    (part,) = read_labels(mixture, CLASSES, max_bad_samples=2)
    assert part.rows.tolist() == [0, 3] and part.numbers == [(0,), (1,)]


def test_entries_must_have_the_same_classes_in_the_same_order() -> None:
    one = ClassificationDataset(data_path="a.json", labels=("cat", "dog"))
    assert classes_of({"a": one, "b": one}) == Classes(("cat", "dog"))
    other = ClassificationDataset(data_path="a.json", labels=("dog", "cat"))
    several = ClassificationDataset(data_path="a.json", labels=("cat", "dog"), multi_label=True)
    with pytest.raises(ConfigError) as caught:
        classes_of({"a": one, "b": other, "c": several})
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "dataset: a has one of the classes cat, dog, b has one of the classes dog, cat",
        "dataset: a has one of the classes cat, dog, c has several of the classes cat, dog",
    ]


def test_an_entry_without_classes_is_named(tmp_path) -> None:
    folder = ImageFolderDataset(data_path=tmp_path)
    with pytest.raises(ConfigError, match="dataset: the samples of chat, folder have no classes; trainer"):
        classes_of({"chat": LLaVADataset(data_path="a.json"), "folder": folder})
    (tmp_path / "dog").mkdir()
    (tmp_path / "cat").mkdir()
    assert classes_of({"f": ImageFolderDataset(data_path=tmp_path, task="classification")}) == Classes(("cat", "dog"))
