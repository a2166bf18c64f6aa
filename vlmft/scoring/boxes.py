"""Answers that are boxes: how well they cover the reference's."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from vlmft.data.media.coordinates import Mark, find_marks
from vlmft.errors import DataError
from vlmft.scoring.answers import answer_of
from vlmft.scoring.base import MetricSpec, shown

if TYPE_CHECKING:
    import numpy as np

_NUMBER = r"\s*[0-9]+(?:\.[0-9]+)?\s*"
_PAIR = f"({_NUMBER}),({_NUMBER})"
_BARE = re.compile(rf"\[{_PAIR},{_PAIR}\] | \({_PAIR}\)\s*,\s*\({_PAIR}\)", re.VERBOSE)


class BoxIoU(MetricSpec):
    """How well an answer's boxes cover the reference's: their intersection over union (IoU), matched one to one.

    Boxes are written `"bbox_2d": [x1, y1, x2, y2]`, `"bbox": ...`, `<box>x1,y1,x2,y2</box>` or as
    `vlmft.data.media.coordinates` says; in a text that has none of these, `[x1, y1, x2, y2]` and `(x1, y1),(x2, y2)`
    are boxes as well. Both texts use the same numbers, pixels, thousandths or shares: the IoU is the same in each.
    Labels do not matter, and points are no boxes.

    Each box is matched with at most one of the other text such that the sum of IoUs is greatest; the score is this sum
    over the number of boxes in the text that has more. So what is missing costs as much as what is too much. Boxes for
    different pictures (`"image": n`) never match. An answer without boxes, or with one that cannot be read, scores 0.
    """

    threshold: float | None = Field(
        default=None, gt=0, le=1, description="a matched box counts 1 from this IoU on, else 0; null: its IoU"
    )

    def score(self, prediction: str, reference: str) -> float:
        """Return the matched boxes' IoUs over the larger number of boxes."""
        wanted = _reference_boxes(reference)
        try:
            found = _boxes(prediction)
        except DataError:
            return 0.0
        if not found:
            return 0.0
        from scipy.optimize import linear_sum_assignment

        overlaps = _overlaps(found, wanted)
        if self.threshold is not None:
            overlaps = (overlaps >= self.threshold).astype(float)
        matched = overlaps[linear_sum_assignment(overlaps, maximize=True)]
        return min(1.0, math.fsum(matched) / max(len(found), len(wanted)))

    def check(self, reference: str) -> None:
        """Raise `DataError` where the reference has no box, or one without size."""
        _reference_boxes(reference)


def _boxes(text: str) -> list[Mark]:
    answer = answer_of(text)
    if marks := find_marks(answer):
        return [mark for mark in marks if mark.kind == "box"]
    return [
        Mark("box", *match.span(), tuple(float(number) for number in match.groups() if number is not None), ())
        for match in _BARE.finditer(answer)
    ]


def _reference_boxes(reference: str) -> list[Mark]:
    boxes = _boxes(reference)
    if not boxes:
        raise DataError(
            f'its reference {shown(reference)} has no box; expected "bbox_2d": [x1, y1, x2, y2], '
            "<box>x1,y1,x2,y2</box> or [x1, y1, x2, y2]"
        )
    for box in boxes:
        if not _area(box.numbers) > 0:
            raise DataError(
                f"its reference has the box {', '.join(f'{number:g}' for number in box.numbers)}, which has no size; "
                "expected left, top, right, bottom"
            )
    return boxes


def _overlaps(found: Sequence[Mark], wanted: Sequence[Mark]) -> "np.ndarray":
    """The IoU of each found box (rows) with each wanted one (columns); 0 where they are for different pictures."""
    import numpy as np

    return np.array([[_iou(a.numbers, b.numbers) if _same_picture(a, b) else 0.0 for b in wanted] for a in found])


def _same_picture(a: Mark, b: Mark) -> bool:
    """A box that names no picture may be for any: there is mostly one."""
    return a.image is None or b.image is None or a.image == b.image


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - shared
    share = shared / union if union > 0 else 0.0
    return min(1.0, share) if share >= 0 else 0.0  # no number at all where a model writes nan or 1e308


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
