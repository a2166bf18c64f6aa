import pytest

from tests.support import literally
from vlmft.config.spec import validate
from vlmft.errors import ConfigError, DataError
from vlmft.scoring import BoxIoU, MetricSpec

TWO = '[{"bbox_2d": [0, 0, 10, 10], "label": "car"}, {"bbox_2d": [20, 0, 30, 10], "label": "bus"}]'


@pytest.mark.parametrize(
    "text",
    [
        '{"bbox_2d": [0, 0, 10, 20]}',
        '{"bbox": [0, 0, 10, 20], "label": "car"}',
        "It is at <box>0,0,10,20</box>.",
        "<|box_start|>(0,0),(10,20)<|box_end|>",
        "[0, 0, 10.0, 20]",
        "(0,0), (10,20)",
        "<think>[3, 3, 4, 4]?</think><answer>[0,0,10,20]</answer>",
    ],
)
def test_boxes_in_every_form(text: str) -> None:
    assert BoxIoU().score(text, "<box>0,0,10,20</box>") == 1.0
    assert BoxIoU().score("<box>0,0,10,10</box>", text) == 0.5


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        # 5 x 10 shared of 100 + 100 - 50.
        ("[5, 0, 15, 10]", 1 / 3),
        ("[2, 2, 8, 8]", 0.36),
        ("[10, 0, 20, 10]", 0.0),
        ("[0.0, 0.0, 10.0, 10.0]", 1.0),
        ("[10, 10, 0, 0]", 0.0),
        ("[0, 0, 0, 0]", 0.0),
        ("no box", 0.0),
        ("", 0.0),
        ("[0, 0, 10]", 0.0),
        ('{"point_2d": [5, 5]}', 0.0),
        ("<box>0,0,10</box>", 0.0),
        ('{"bbox_2d": [0, 0, 10, 10', 0.0),
        ("[0, 0, 10, 10], [50, 50, 60, 60]", 0.5),
        ("<box>0,0,nan,10</box>", 0.0),
        ("<box>0,0,inf,inf</box>", 0.0),
        ("<box>0,0,1e300,1e300</box> <box>0,0,10,10</box>", 0.5),
    ],
)
def test_one_box_by_hand(answer: str, score: float) -> None:
    assert BoxIoU().score(answer, "[0, 0, 10, 10]") == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("[20, 0, 30, 10] [0, 0, 10, 10]", 1.0),  # the order does not matter
        ("[0, 0, 10, 10]", 0.5),
        ("[0, 0, 10, 10] [0, 0, 10, 10]", 0.5),  # one box is never matched twice
        ("[0, 0, 10, 5] [20, 0, 30, 5]", 0.5),
        ("[0, 0, 10, 10] [20, 0, 30, 10] [40, 0, 50, 10] [60, 0, 70, 10]", 0.5),
        # Were the wide box, which covers a third of either, given the car, the other would be left with the bus: 1 / 6.
        ("[0, 0, 30, 10] [0, 0, 10, 10]", (1 / 3 + 1) / 2),
    ],
)
def test_several_boxes_by_hand(answer: str, score: float) -> None:
    assert BoxIoU().score(answer, TWO) == pytest.approx(score, abs=1e-12)


def test_shares_and_pixels_score_the_same() -> None:
    """A picture of 200 x 100: the shape of its sides leaves an IoU alone."""
    pixels = BoxIoU().score("[20, 10, 80, 70]", "[40, 20, 100, 60]")
    shares = BoxIoU().score("[0.1, 0.1, 0.4, 0.7]", "[0.2, 0.2, 0.5, 0.6]")
    assert pixels == pytest.approx(shares, abs=1e-12) == pytest.approx(1600 / (3600 + 2400 - 1600))


def test_boxes_of_other_pictures_do_not_match() -> None:
    reference = '{"bbox_2d": [0, 0, 10, 10], "image": 1}'
    assert BoxIoU().score(reference, reference) == 1.0
    assert BoxIoU().score('{"bbox_2d": [0, 0, 10, 10], "image": 2}', reference) == 0.0
    assert BoxIoU().score("[0, 0, 10, 10]", reference) == 1.0


@pytest.mark.parametrize(("threshold", "score"), [(0.3, 1.0), (0.5, 0.5), (0.9, 0.0)])
def test_a_threshold(threshold: float, score: float) -> None:
    assert BoxIoU(threshold=threshold).score("[0, 0, 10, 8] [20, 0, 30, 4]", TWO) == score


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("red", "its reference 'red' has no box; expected \"bbox_2d\": [x1, y1, x2, y2], <box>x1,y1,x2,y2</box> or"),
        ("<point>1,2</point>", "its reference '<point>1,2</point>' has no box"),
        ("[5, 5, 5, 9]", "its reference has the box 5, 5, 5, 9, which has no size; expected left, top, right, bottom"),
        ("<box>1,2,3</box>", "its text has `<box>1,2,3</box>`, 3 numbers"),
    ],
)
def test_refuses_references_without_boxes(reference: str, problem: str) -> None:
    with pytest.raises(DataError, match=literally(problem)):
        BoxIoU().check(reference)
    with pytest.raises(DataError, match=literally(problem)):
        BoxIoU().score("[0, 0, 1, 1]", reference)


@pytest.mark.parametrize("threshold", [0, 1.5, -1])
def test_a_threshold_that_cannot_be_met_or_missed_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold: Input should be (greater|less) than"):
        validate(MetricSpec, {"_target_": "vlmft.scoring.BoxIoU", "threshold": threshold})
