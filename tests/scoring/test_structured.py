import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import literally
from vlmft.config.spec import validate
from vlmft.errors import ConfigError, DataError
from vlmft.scoring import FieldAccuracy, JsonValidity, MetricSpec
from vlmft.scoring.structured import parse_object

SCHEMA = {
    "type": "object",
    "properties": {
        "video": {"type": "string"},
        "event": {"enum": ["crash", "near miss", "none"]},
        "cars": {"type": "integer", "minimum": 0},
        "weather": {"type": "array", "items": {"enum": ["rain", "fog", "snow"]}},
    },
    "required": ["video", "event", "cars"],
}
CAPTION = {"event": "crash", "cars": 2, "weather": ["rain", "fog"]}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


@pytest.mark.parametrize(
    "text",
    [
        ' {"a": [1]}\n',
        '```json\n{"a": [1]}\n```',
        '```\n{"a": [1]}\n```',
        '<think>{"a": 0}</think><answer>{"a": [1]}</answer>',
    ],
)
def test_an_object_is_read(text: str) -> None:
    assert parse_object(text) == {"a": [1]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expecting value"),
        ("red", "Expecting value"),
        ("{'a': 1}", "Expecting property name"),
        ('{"a": 1', "Expecting ',' delimiter"),
        ('{"a": 1}, as I said', "Extra data"),
        ('[{"a": 1}]', "it is a list"),
        ('{"a": 1, "a": 2}', "a key stands there twice"),
        ('{"a": NaN}', "NaN is no number in JSON"),
        ('{"a": ' + "[" * 60 + "]" * 60 + "}", "it is nested more than 50 deep"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "it is nested too deeply"),
    ],
)
def test_what_is_no_object(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=literally(problem)):
        parse_object(text)
    assert JsonValidity().score(text, "{}") == 0.0
    assert FieldAccuracy().score(text, '{"a": 1}') == 0.0


class TestJsonValidity:
    @pytest.mark.parametrize(
        ("answer", "score"),
        [
            (CAPTION, 1.0),
            ({"event": "none", "cars": 0}, 1.0),
            ({"event": "none"}, 0.0),
            ({"event": "explosion", "cars": 0}, 0.0),
            ({"event": "none", "cars": "two"}, 0.0),
            ({"event": "none", "cars": -1}, 0.0),
            ({"event": "none", "cars": 0, "colour": "red"}, 0.0),
            ({"event": "none", "cars": 0, "video": "a.mp4"}, 0.0),
            ({"event": "none", "cars": 0, "weather": ["sun"]}, 0.0),
        ],
    )
    def test_keeps_to_the_schema(self, schema: Path, answer: Any, score: float) -> None:
        assert JsonValidity(schema_path=schema).score(json.dumps(answer), "") == score
        assert JsonValidity().score(json.dumps(answer), "") == 1.0

    def test_refuses_references_of_another_dataset(self, schema: Path) -> None:
        metric = JsonValidity(schema_path=schema)
        metric.check(json.dumps(CAPTION))
        with pytest.raises(DataError) as caught:
            metric.check('{"event": "crash", "colour": "red"}')
        assert sorted(caught.value.problems) == [
            f"its reference breaks the schema {schema}: it has no 'cars'; expected whole number from 0",
            f"its reference breaks the schema {schema}: it has the key 'colour', which the schema does not name; "
            "remove it, or add it to the schema",
        ]
        with pytest.raises(DataError, match=r"its reference 'red' is no JSON object: Expecting value"):
            JsonValidity().check("red")

    def test_a_schema_that_cannot_be_used_is_refused_when_it_is_chosen(self, tmp_path: Path) -> None:
        choice = {"_target_": "vlmft.scoring.JsonValidity", "schema_path": str(tmp_path / "no.json")}
        expected = f"schema_path {tmp_path}/no.json cannot be read: No such file or directory"
        with pytest.raises(ConfigError, match=literally(expected)):
            validate(MetricSpec, choice)
        (tmp_path / "no.json").write_text('{"type": "object"}')
        with pytest.raises(ConfigError, match="describes no object"):
            validate(MetricSpec, choice)

    def test_travels_as_a_config(self, schema: Path) -> None:
        metric = JsonValidity(schema_path=schema)
        assert validate(MetricSpec, metric.to_config()) == metric
        assert metric.to_config()["schema_path"] == str(schema)


class TestFieldAccuracy:
    @pytest.mark.parametrize(
        ("answer", "wanted", "score"),
        [
            (CAPTION, CAPTION, 1.0),
            ({"event": " Crash.", "cars": 2.0, "weather": ["fog", "rain"]}, CAPTION, 1.0),
            ({"event": "none", "cars": 2, "weather": ["rain", "fog"]}, CAPTION, 2 / 3),
            # One of two found, none wrong: F1 is 2 * 1 / (1 + 2).
            ({"event": "crash", "cars": 2, "weather": ["rain"]}, CAPTION, (1 + 1 + 2 / 3) / 3),
            # Both found, and a third: 2 * 2 / (3 + 2).
            ({"event": "crash", "cars": 2, "weather": ["rain", "fog", "snow"]}, CAPTION, (1 + 1 + 4 / 5) / 3),
            ({"event": "crash", "cars": 2}, CAPTION, 2 / 3),
            ({**CAPTION, "colour": "red"}, CAPTION, 3 / 4),
            ({}, CAPTION, 0.0),
            ({"a": ["x", "x", "y"]}, {"a": ["x", "y", "y"]}, 2 * 2 / 6),
            ({"a": []}, {"a": []}, 1.0),
            ({"a": []}, {"a": ["x"]}, 0.0),
            ({"a": "x"}, {"a": ["x"]}, 0.0),
            ({"a": True}, {"a": 1}, 0.0),
            ({"a": None}, {"a": None}, 1.0),
            ({"a": None}, {"a": False}, 0.0),
            ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, 0.5),
            ({"a": {}}, {"a": {}}, 1.0),
            ({"a": [{"b": 1, "c": "X"}]}, {"a": [{"c": "x", "b": 1}]}, 1.0),
            ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, 0.0),
        ],
    )
    def test_by_hand(self, answer: Any, wanted: Any, score: float) -> None:
        assert FieldAccuracy().score(json.dumps(answer), json.dumps(wanted)) == pytest.approx(score, abs=1e-12)

    @pytest.mark.parametrize(("answer", "score"), [(["a", "b"], 1.0), (["b", "a"], 0.0), (["a"], 0.0)])
    def test_lists_as_a_whole(self, answer: list[str], score: float) -> None:
        assert FieldAccuracy(lists="exact").score(json.dumps({"x": answer}), '{"x": ["a", "b"]}') == score

    def test_some_fields_alone(self) -> None:
        some = FieldAccuracy(fields=("event", "cars", "speed"))
        answer = json.dumps({"event": "crash", "cars": 3, "weather": [], "colour": "red"})
        assert some.score(answer, json.dumps(CAPTION)) == 0.5
        assert some.score(json.dumps({"event": "crash", "cars": 2, "speed": 9}), json.dumps(CAPTION)) == 2 / 3

    def test_refuses_references_that_have_nothing_to_compare(self) -> None:
        with pytest.raises(DataError, match=re.escape("its reference '{}' has no field")):
            FieldAccuracy().check("{}")
        with pytest.raises(DataError, match=r"its reference '{\"a\": 1}' has none of the fields b, c$"):
            FieldAccuracy(fields=("b", "c")).check('{"a": 1}')
        with pytest.raises(DataError, match="its reference 'red' is no JSON object: Expecting value"):
            FieldAccuracy().score('{"a": 1}', "red")

    def test_settings_that_mean_nothing_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="lists: Input should be 'f1' or 'exact' .found 'f2'"):
            validate(MetricSpec, {"_target_": "vlmft.scoring.FieldAccuracy", "lists": "f2"})
        with pytest.raises(ConfigError, match="fields: Tuple should have at least 1 item"):
            validate(MetricSpec, {"_target_": "vlmft.scoring.FieldAccuracy", "fields": []})


def test_which_are_right_or_wrong() -> None:
    assert JsonValidity.is_binary and not FieldAccuracy.is_binary
