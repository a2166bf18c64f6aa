from types import SimpleNamespace

import pytest

from tests.data.making import Listed, qa, save_picture
from vlmft.data import check as module
from vlmft.data.check import check, examine
from vlmft.data.media.image import open_image
from vlmft.data.problems import SampleError, naming_sample
from vlmft.errors import DataError
from vlmft.types import Image, Message, Sample


def read_fully(source, row):
    """What a reader does while training."""
    sample = source[row]
    with naming_sample(sample.id, sample.place):
        for image in sample.images:
            open_image(image)


def rows_of(source):
    return source, range(len(source))


def test_good_data_has_no_problem(dataset):
    report = check([rows_of(dataset([qa(image="a.png"), qa()])), rows_of(dataset([qa(image="b.png")], "other"))], 10)
    assert report.problems == []
    assert (report.checked, report.parsed, report.total, report.complete) == (3, 3, 3, True)


@pytest.fixture
def broken(dataset, media):
    whole = save_picture(media / "cut.png", (64, 64)).read_bytes()
    (media / "cut.png").write_bytes(whole[: len(whole) // 2])
    save_picture(media.parent / "out.png")
    (media / "link.png").symlink_to(media.parent / "out.png")
    return dataset(
        [
            qa(id="good", image="a.png"),
            qa(id="cut", image=["a.png", "cut.png"], question="Both?"),
            qa("Q", "", id="empty"),
            qa(id="missing", image="none.png"),
            qa(id="link", image="link.png"),
            qa("<image>", id="tags"),
            qa("Again?", id="cut too", image="cut.png"),
            {"id": "no turns"},
        ]
    )


def test_problems_come_in_file_order_with_entry_place_and_fix(broken, media):
    report = check([rows_of(broken)], 10)
    place = f"({media}/mine.json:1, row "
    assert [problem.partition(":1, row ")[0] for problem in report.problems] == [
        f"mine/{name} ({media}/mine.json" for name in ("cut", "empty", "missing", "link", "tags", "cut too", "no turns")
    ]
    assert all(place in problem and "; " in problem for problem in report.problems)
    assert report.problems[0].startswith(f"mine/cut {place}1): {media}/cut.png cannot be decoded: ")
    assert report.problems[0].endswith("; replace the file or remove its samples")
    assert (report.checked, report.total, report.complete) == (8, 8, True)


def test_reading_later_says_the_same(broken):
    later = []
    for row in range(len(broken)):
        try:
            read_fully(broken, row)
        except SampleError as error:
            later.append(str(error))
            assert error.sample_id == broken.sample_id(row)
    assert check([rows_of(broken)], 10).problems == later


def test_a_sample_with_two_bad_pictures_names_the_first_as_reading_would(dataset, media):
    for name in ("y.png", "x.png"):
        (media / name).write_text("no picture")
    source = dataset([qa(image=["y.png", "x.png"])])
    (problem,) = check([rows_of(source)], 10).problems
    assert "y.png" in problem
    with pytest.raises(SampleError) as caught:
        read_fully(source, 0)
    assert str(caught.value) == problem


def test_only_the_given_rows_are_checked(broken):
    assert check([(broken, [0])], 10).problems == []


def test_no_time_checks_nothing(broken):
    report = check([rows_of(broken)], 0)
    assert (report.problems, report.checked, report.parsed, report.complete) == ([], 0, 0, False)
    assert check([], 0).complete
    assert check([], 5).complete


def test_time_runs_out_evenly(dataset, monkeypatch):
    first, second = (dataset([qa("Q", f"{name}{i}") for i in range(2000)], name) for name in ("one", "two"))
    clock = iter(range(10_000))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    seen = []
    for source in (first, second):
        object.__setattr__(source, "check_row", lambda row, name=source.name: seen.append((name, row)))
    report = check([rows_of(first), rows_of(second)], 10)
    assert not report.complete
    assert report.checked == 0
    assert report.parsed == len(seen) == 9 * 64
    assert 200 < sum(name == "one" for name, _ in seen) < 376
    assert min(row for _, row in seen) < 100
    assert max(row for _, row in seen) > 1900


def test_the_check_stops_at_its_limit(dataset):
    source = dataset([qa("Q", "") for _ in range(300)])
    report = check([rows_of(source)], 10, limit=7)
    assert len(report.problems) == 7
    assert not report.complete
    assert report.problems == sorted(report.problems, key=lambda problem: int(problem.split()[0].partition("/")[2]))


def test_the_limit_holds_for_media_too(dataset, media):
    (media / "cut.png").write_bytes(b"x")
    report = check([rows_of(dataset([qa(f"Q{i}", image="cut.png") for i in range(300)]))], 10, limit=7)
    assert len(report.problems) == 7
    assert report.parsed == 300
    assert not report.complete


def test_a_shared_picture_is_decoded_once(dataset, media, monkeypatch):
    decoded = []
    monkeypatch.setattr(module, "open_image", lambda medium: decoded.append(medium.path))
    check([rows_of(dataset([qa(f"Q{i}", image="a.png") for i in range(300)]))], 10)
    assert decoded == [media / "a.png"]


def test_large_pictures_are_decoded_on_threads(dataset, media, monkeypatch):
    monkeypatch.setattr(module, "_WORTH_A_THREAD", 0)
    (media / "c.png").write_bytes(b"x")
    report = check([rows_of(dataset([qa(f"Q{i}", image=f"{'abc'[i % 3]}.png") for i in range(9)]))], 10)
    assert len(report.problems) == 3
    assert report.complete


@pytest.mark.parametrize("answer", ["A", ""])
def test_what_lies_beyond_the_limit_leaves_the_check_incomplete(dataset, media, answer):
    (media / "cut.png").write_bytes(b"x")
    source = dataset([qa(f"Q{i}", answer, image="cut.png") for i in range(5)])
    few, all_of_them = (check([rows_of(source)], 10, limit=limit) for limit in (4, 6))
    assert (len(few.problems), few.complete) == (4, False)
    assert (len(all_of_them.problems), all_of_them.complete) == (5, True)


class Brought(Listed):
    """A source whose samples bring their pictures with them, all under one name, as a table's rows do."""

    def __init__(self, pictures):
        super().__init__([str(number) for number in range(len(pictures))])
        self.pictures = pictures

    def __getitem__(self, row):
        medium = Image(self.data_file / "medium 0", self.pictures[row])
        return Sample(self.sample_id(row), (Message("user", (medium,)),), f"{self.data_file}, row {row}")


def test_media_that_are_no_files_are_told_apart(media):
    good = (media / "a.png").read_bytes()
    report = check([rows_of(Brought([good, b"no picture", good, b"nor this", b"no picture"]))], 10)
    assert [problem.partition(":")[0] for problem in report.problems] == [
        f"mine/{row} (/data/mine.json, row {row})" for row in (1, 3, 4)
    ]
    assert report.checked == 5


def test_lists_of_frames_in_one_folder_are_told_apart(dataset, media):
    save_picture(media / "other.png", (10, 10))
    videos = [["a.png", "b.png"], ["a.png", "other.png"], ["b.png", "c.png"]]
    (problem,) = check([rows_of(dataset([qa("<video>\nQ", video=frames) for frames in videos]))], 10).problems
    assert problem.startswith("mine/1 (") and "give all frames of a video one size" in problem


def test_what_is_seen_in_a_sample_or_why_it_cannot_be(dataset):
    source = dataset([qa("Q"), qa("Q", "")])

    def refuse(sample):
        raise DataError("it is blue; make it red")

    assert examine(source, 0, lambda sample: sample.messages[1].text) == "A kite."
    place = f"({source.data_file}:1, row "
    blue, empty = examine(source, 0, refuse), examine(source, 1, refuse)
    assert (str(blue), blue.sample_id) == (f"mine/0 {place}0): it is blue; make it red", "mine/0")
    assert str(empty).startswith(f"mine/1 {place}1): turn 2 is an empty answer")
    assert empty.place == f"{source.data_file}:1, row 1"
