import sys
from collections import Counter

import pytest
from PIL import Image

from vlmft.data import Digits
from vlmft.data.check import check
from vlmft.data.split import refuse_overlap
from vlmft.errors import ConfigError


def digits(**keys) -> Digits:
    return Digits(**({"eval_samples": 400, "image_size": 56} | keys))


def test_a_missing_scikit_learn_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn, which is not installed; pip install 'vlmft\[demo\]'"):
        digits().open("digits")


def test_halves_are_disjoint_by_content_and_balanced():
    pytest.importorskip("sklearn")
    train, held_out = digits().open("digits"), digits().open_eval("digits")
    assert (len(train), len(held_out)) == (1397, 400)
    assert check([(train, range(1397)), (held_out, range(400))], 30).problems == []
    halves = [
        {Image.open(source[row].images[0].path).tobytes() for row in range(len(source))} for source in (train, held_out)
    ]
    assert halves[0].isdisjoint(halves[1])
    refuse_overlap([(train, range(1397))], [(held_out, range(400))])
    answers = Counter(held_out[row].messages[1].text for row in range(400))
    assert answers == {str(digit): 40 for digit in range(10)}
    assert held_out[0].messages[0].text == "Which digit is written here?"
    assert Image.open(held_out[0].images[0].path).size == (56, 56)


def test_the_right_digit_stands_under_each_picture():
    datasets = pytest.importorskip("sklearn.datasets")
    small = digits(image_size=8)
    target = datasets.load_digits().target
    for source in (small.open("digits"), small.open_eval("digits")):
        for row in range(0, len(source), 37):
            number = int(source.sample_id(row).partition("/")[2])
            assert source[row].messages[1].text == str(target[number])
            assert source[row].images[0].path.stem == f"{number:04d}"
