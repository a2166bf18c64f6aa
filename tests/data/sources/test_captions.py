import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.data.making import save_picture
from vlmft.config.spec import validate
from vlmft.data import CaptionsDataset, DatasetSpec
from vlmft.data.problems import SampleError
from vlmft.data.sources.caption_schema import CaptionSchema, read_schema
from vlmft.data.sources.captions import parse_caption
from vlmft.data.sources.parsed import MEDIUM, Reference
from vlmft.data.split import refuse_overlap
from vlmft.errors import ConfigError, DataError
from vlmft.types import Image, Video

HARBOUR: dict[str, Any] = {
    "type": "object",
    "$defs": {"Light": {"enum": ["day", "night"], "description": "as seen from the quay"}},
    "properties": {
        "id": {"type": "string"},
        "video": {"type": "string"},
        "caption": {"type": "string", "minLength": 3},
        "manoeuvre": {"enum": ["docking", "leaving", "none"]},
        "hazards": {"type": "array", "uniqueItems": True, "items": {"enum": ["fog", "traffic", "wake"]}},
        "light": {"$ref": "#/$defs/Light"},
        "tugs": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 4}, {"type": "null"}]},
    },
    "required": ["video", "caption", "manoeuvre", "hazards", "light"],
}
ROW: dict[str, Any] = {
    "video": "videos/1.mp4",
    "light": "night",
    "hazards": ["wake", "fog"],
    "caption": "Eine Fähre legt an.",
    "manoeuvre": "docking",
}
ANSWER = '{"caption": "Eine Fähre legt an.", "manoeuvre": "docking", "hazards": ["fog", "wake"], "light": "night"}'
FIELDS = """\
- caption: text
- manoeuvre: one of "docking", "leaving", "none"
- hazards: list of any of "fog", "traffic", "wake"
- light: one of "day", "night"; as seen from the quay
- tugs (may be left out): whole number from 0 up to 4 or null"""


def read(tmp_path: Path, value: Any) -> CaptionSchema:
    (tmp_path / "s.json").write_text(json.dumps(value))
    return read_schema(tmp_path / "s.json")


@pytest.fixture
def harbour(tmp_path: Path) -> CaptionSchema:
    return read(tmp_path, HARBOUR)


def write(folder: Path, *rows: dict[str, Any], schema: dict[str, Any] = HARBOUR, name: str = "metadata.jsonl") -> Path:
    """A folder as the video playbook has it."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for row in rows:
        if isinstance(row.get("video"), str):
            (folder / row["video"]).write_bytes(b"not decoded here")
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "schema.json").write_text(json.dumps(schema))
    return folder


class TestEntry:
    def test_the_form_that_the_video_playbook_documents(self, tmp_path):
        folder = write(tmp_path / "dataset", ROW, ROW | {"id": "second", "tugs": None})
        for data_path in (folder, folder / "metadata.jsonl"):
            spec = validate(DatasetSpec, {"_target_": "vlmft.data.CaptionsDataset", "data_path": str(data_path)})
            source = pickle.loads(pickle.dumps(spec.open("harbour")))
            assert [source[row].id for row in (0, 1)] == ["harbour/0", "harbour/second"]
            question, answer = source[0].messages
            assert question.parts[0] == Video(folder / "videos" / "1.mp4")
            assert question.text == (
                f"Describe the video as one JSON object and nothing else. Its fields, in this order:\n{FIELDS}"
            )
            assert answer.text == ANSWER
            assert source[1].messages[1].text == ANSWER[:-1] + ', "tugs": null}'

    def test_an_own_question_stands_before_the_fields(self, tmp_path):
        folder = write(tmp_path, ROW)
        source = CaptionsDataset(data_path=folder, prompt="What does the ferry do?", system_prompt="S").open("h")
        assert source[0].messages[1].text == f"What does the ferry do?\n{FIELDS}"

    def test_pictures_and_a_schema_elsewhere(self, tmp_path):
        save_picture(tmp_path / "media" / "images" / "1.png")
        row = {"image": "images/1.png"} | {key: value for key, value in ROW.items() if key != "video"}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        (tmp_path / "harbour.schema.json").write_text(json.dumps(HARBOUR))
        keys = {"data_path": "rows.jsonl", "media_dir": "media", "schema_path": "harbour.schema.json"}
        sample = CaptionsDataset(root=tmp_path, **keys).open("harbour")[0]
        assert sample.messages[0].parts[0] == Image(tmp_path / "media" / "images" / "1.png")
        assert sample.messages[0].text.startswith("Describe the image as one JSON object")
        assert sample.messages[1].text == ANSWER

    def test_held_out_rows_by_file_or_folder(self, tmp_path):
        write(tmp_path, ROW | {"light": "day"}, name="eval.jsonl")
        write(tmp_path, ROW)
        write(tmp_path / "held", ROW)
        train = CaptionsDataset(data_path=tmp_path).open("h")
        assert CaptionsDataset(data_path=tmp_path).open_eval("h") is None
        other = CaptionsDataset(data_path=tmp_path, eval_data_path=tmp_path / "eval.jsonl").open_eval("h")
        refuse_overlap([(train, [0])], [(other, [0])])
        same = CaptionsDataset(data_path=tmp_path, eval_data_path=tmp_path / "held").open_eval("h")
        with pytest.raises(DataError, match=r"^1 training samples are also held out"):
            refuse_overlap([(train, [0])], [(same, [0])])

    def test_every_problem_of_a_row_is_listed_with_its_line(self, tmp_path):
        row = ROW | {"manoeuvre": "dock", "hazards": ["fogg"], "tugs": 7, "weather": "mild"}
        source = CaptionsDataset(data_path=write(tmp_path, ROW, row)).open("h")
        assert source[0].id == "h/0"
        with pytest.raises(SampleError) as caught:
            source.check_row(1)
        start = f"h/1 ({tmp_path}/metadata.jsonl:2, row 1): "
        assert sorted(caught.value.problems) == [
            f"{start}it has the key 'weather', which the schema does not name; remove it, or add it to the schema",
            f'{start}its \'hazards[0]\' is \'fogg\'; expected one of "fog", "traffic", "wake"; did you mean fog?',
            f'{start}its \'manoeuvre\' is \'dock\'; expected one of "docking", "leaving", "none"; '
            "did you mean docking?",
            f"{start}its 'tugs' is 7; expected whole number from 0 up to 4 or null",
        ]

    @pytest.mark.parametrize(
        ("keys", "match"),
        [
            ({"data_path": "none"}, r"^h: data_path .*/none does not exist; give the path of a \.json or \.jsonl file"),
            ({"data_path": "videos"}, r"^h: data_path .*/videos/metadata\.jsonl does not exist"),
            (
                {"schema_path": "none.json"},
                r"^h: schema_path .*/none\.json cannot be read: No such file .*; expected \{",
            ),
            ({"media_dir": "none"}, "^h: media_dir .*/none is not a folder"),
        ],
    )
    def test_entries_that_cannot_be_opened(self, tmp_path, keys, match):
        write(tmp_path, ROW)
        with pytest.raises(DataError, match=match):
            CaptionsDataset(root=tmp_path, **({"data_path": "."} | keys)).open("h")

    def test_a_medium_key_that_is_none(self):
        with pytest.raises(ConfigError, match="^media_key: Input should be 'video' or 'image' "):
            validate(CaptionsDataset, {"data_path": "x", "media_key": "clip"})


class TestRow:
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"manoeuvre": 3}, "its 'manoeuvre' is 3; expected one of \"docking\""),
            ({"caption": None}, "its 'caption' is None; expected text"),
            ({"caption": "A"}, "its 'caption' is 'A': 'A' is too short; mend it, or the schema"),
            ({"hazards": "fog"}, "its 'hazards' is 'fog'; expected list of any of \"fog\""),
            ({"hazards": ["fog", "fog"]}, r"its 'hazards' is \['fog', 'fog'\]: .* non-unique elements; mend it"),
            ({"tugs": 1.5}, "its 'tugs' is 1.5; expected whole number from 0 up to 4 or null"),
            ({"light": "dusk"}, "its 'light' is 'dusk'; expected one of \"day\", \"night\""),
            (
                {"captions": "A tug."},
                "it has the key 'captions', which the schema does not name; did you mean caption?",
            ),
            ({"caption": "[ANNOTATE: what happens]"}, "the answer is still to be filled in"),
            ({"video": None}, r"it has neither 'image' nor 'video' \(its keys: .*\); expected one medium"),
            ({"image": "a.png"}, "it has both 'image' and 'video'"),
            ({"video": 3}, "its 'video' holds 3; expected a path"),
            ({"id": []}, "its id is a list"),
        ],
    )
    def test_broken_rows(self, harbour, change, match):
        with pytest.raises(DataError, match=f"^{match}"):
            parse_caption(ROW | change, harbour)

    def test_a_missing_field_says_what_belongs_there(self, harbour):
        row = {key: value for key, value in ROW.items() if key not in ("light", "caption")}
        with pytest.raises(DataError) as caught:
            parse_caption(row, harbour)
        assert caught.value.problems == (
            "it has no 'caption'; expected text",
            'it has no \'light\'; expected one of "day", "night"',
        )

    def test_the_named_medium_has_to_be_there(self, harbour):
        assert parse_caption(ROW, harbour, media_key="video").media == [Reference("video", "videos/1.mp4")]
        with pytest.raises(DataError, match="^it has no 'image' .*; expected the path of a picture"):
            parse_caption(ROW, harbour, media_key="image")
        with pytest.raises(DataError, match="^it has the key 'image', which the schema does not name"):
            parse_caption(ROW | {"image": "a.png"}, harbour, media_key="video")

    def test_several_media_and_frames(self, harbour):
        parsed = parse_caption(ROW | {"video": ["1.jpg", "2.jpg"]}, harbour, frames_fps=2)
        assert parsed.media == [Reference("video", ("1.jpg", "2.jpg"), 2)]
        assert parse_caption(ROW | {"video": ["1.mp4", "2.mp4"]}, harbour).turns[0].parts[:2] == (MEDIUM, MEDIUM)

    def test_no_row_is_no_object(self, harbour):
        with pytest.raises(DataError, match="^the row is a list; expected an object with 'video' or 'image', and the"):
            parse_caption([], harbour)


class TestSchema:
    def test_a_list_that_is_no_set_keeps_its_order(self, tmp_path):
        ordered = read(tmp_path, {"properties": {"steps": {"type": "array", "items": {"enum": ["a", "b"]}}}})
        assert ordered.answer({"steps": ["b", "a", "b"]}) == '{"steps": ["b", "a", "b"]}'

    def test_inner_objects_are_closed_ordered_and_described(self, tmp_path):
        ship = {"properties": {"name": {"type": "string"}, "flag": {"const": "DK"}}, "required": ["name"]}
        schema = read(
            tmp_path, {"properties": {"ship": {"type": "object"} | ship, "all": {"type": "array", "items": ship}}}
        )
        assert schema.answer({"all": [{"flag": "DK", "name": "B"}], "ship": {"flag": "DK", "name": "A"}}) == (
            '{"ship": {"name": "A", "flag": "DK"}, "all": [{"name": "B", "flag": "DK"}]}'
        )
        assert schema.fields().splitlines() == [
            "- ship: object",
            "  - name: text",
            '  - flag (may be left out): always "DK"',
            "- all: list",
            "  - name: text",
            '  - flag (may be left out): always "DK"',
        ]
        assert sorted(schema.problems({"ship": {"nam": "A"}, "all": [{"name": 1}]})) == [
            "its 'all[0].name' is 1; expected text",
            "its 'ship' has no 'name'; expected text",
            "its 'ship' has the key 'nam', which the schema does not name; did you mean name?",
        ]

    def test_other_keys_are_allowed_where_the_schema_says_so(self, tmp_path):
        properties = {"properties": {"b": {"type": "boolean"}}}
        schema = read(tmp_path, properties | {"additionalProperties": True})
        assert schema.problems({"z": 1, "b": True, "a": 2}) == []
        assert schema.answer({"z": 1, "b": True, "a": 2}) == '{"b": true, "z": 1, "a": 2}'
        numbers = read(tmp_path, properties | {"additionalProperties": {"type": "number"}})
        assert numbers.problems({"z": "1"}) == ["its 'z' is '1'; expected number"]
        patterns = read(tmp_path, properties | {"patternProperties": {"^x-": {}}, "additionalProperties": False})
        assert patterns.problems({"x-1": 1}) == []
        assert patterns.problems({"y": 1})[0].startswith("it: 'y' does not match any of the regexes")

    def test_a_schema_may_hold_itself(self, tmp_path):
        node = {"type": "object", "properties": {"name": {"type": "string"}, "inner": {"$ref": "#/$defs/node"}}}
        schema = read(tmp_path, {"$defs": {"node": node}, "properties": {"top": {"$ref": "#/$defs/node"}}})
        assert schema.fields().count("- name") == 3
        assert (
            schema.answer({"top": {"inner": {"inner": {"name": "x"}}}})
            == '{"top": {"inner": {"inner": {"name": "x"}}}}'
        )

    def test_a_number_that_json_does_not_know(self, tmp_path):
        schema = read(tmp_path, {"properties": {"speed": {"type": "number"}}})
        with pytest.raises(DataError, match="^it holds NaN or Infinity, which is no number in JSON; write null"):
            schema.answer({"speed": float("nan")})

    @pytest.mark.parametrize(
        ("written", "match"),
        [
            ("{", "is not valid JSON: Expecting property name"),
            ("\ud800", "is not valid JSON"),
            ("[]", 'describes no object; expected {"type": "object", "properties": '),
            ('{"type": "string"}', "describes no object"),
            (
                '{"properties": {"a": {"type": "txt"}}}',
                "is no JSON Schema: properties/a/type: 'txt' is not valid under",
            ),
            (
                '{"properties": {"a": {"$ref": "https://a.org/s.json"}}}',
                "refers to https://a.org/s.json; write what it",
            ),
            ('{"properties": {"a": {"$ref": "#/$defs/x"}}}', r"refers to #/\$defs/x, which it does not hold; mend the"),
            ('{"properties": {"video": {}, "id": {}}}', "asks for nothing beside id, image, video; expected"),
        ],
    )
    def test_schemas_that_cannot_be_used(self, tmp_path, written, match):
        path = tmp_path / "s.json"
        path.write_text(written, errors="surrogatepass")
        with pytest.raises(DataError, match=f"^schema_path {path} {match}"):
            read_schema(path)
