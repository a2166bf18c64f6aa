import json
import pickle
from pathlib import Path

import pytest

from tests.data.making import qa, save_picture, turns
from vlmft.config.spec import validate
from vlmft.data import DatasetSpec, LLaVADataset
from vlmft.data.problems import SampleError
from vlmft.errors import ConfigError, DataError
from vlmft.types import Image, Message, Video


def test_a_sample(dataset, media):
    source = dataset([qa("<image>\nWhat is it?", "A kite.", id="k1", image="a.png"), qa("Hi", "Ho")])
    assert len(source) == 2
    sample = source[0]
    assert sample.id == source.sample_id(0) == "mine/k1"
    assert sample.place == f"{media / 'mine.json'}:1, row 0"
    assert sample.messages == (
        Message("user", (Image(media / "a.png"), "What is it?")),
        Message("assistant", ("A kite.",)),
    )
    assert source[1].id == "mine/1"
    assert source[1].images == ()


def test_a_vila_entry_works_after_changing_its_target(tmp_path, media):
    # The form that VILA documents: rows without ids and tags, pictures below the folder, is_video left or false.
    folder = tmp_path / "vila" / "birds"
    for number in (1, 2):
        save_picture(folder / "images" / f"{number}.jpg")
    rows = [
        qa("Which bird is this?", "A heron.", image="images/1.jpg"),
        qa("How many birds fly?", "Three of them.", image="images/2.jpg"),
    ]
    (folder / "dataset.json").write_text(json.dumps(rows))
    entry = {
        "_target_": "vlmft.data.LLaVADataset",
        "data_path": str(folder / "dataset.json"),
        "media_dir": str(folder),
        "is_video": False,
    }
    source = validate(DatasetSpec, entry).open("Birds")
    assert [source[row].messages[0].parts[0] for row in (0, 1)] == [
        Image((folder / "images" / f"{number}.jpg").resolve()) for number in (1, 2)
    ]


def test_the_forms_that_qwen2_vl_finetune_documents(dataset):
    source = dataset(
        [
            turns(
                ("human", "<image>\nWhich tram is it?"),
                ("gpt", "Line nine."),
                ("human", "Does it stop here?"),
                ("gpt", "It does."),
                id="000000000007",
                image="a.png",
            ),
            qa("<image>\n<image>\nDid the tram move?", "By one stop.", id="000000000008", image=["a.png", "b.png"]),
        ]
    )
    assert [len(source[row].images) for row in (0, 1)] == [1, 2]
    assert source[0].id == "mine/000000000007"
    assert source[1].messages[0].text == "Did the tram move?"


def test_a_vila_video_entry_works_after_changing_its_target(tmp_path):
    folder = tmp_path / "vila" / "harbour"
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "1.mp4").write_bytes(b"not decoded here")
    rows = [qa("Which ships leave the harbour?", "Two ferries, and a tug.", video="videos/1.mp4")]
    (folder / "dataset.json").write_text(json.dumps(rows))
    entry = {
        "_target_": "vlmft.data.LLaVADataset",
        "data_path": str(folder / "dataset.json"),
        "media_dir": str(folder),
        "is_video": True,
    }
    sample = validate(DatasetSpec, entry).open("Harbour")[0]
    assert sample.messages[0].parts == (Video(folder / "videos" / "1.mp4"), "Which ships leave the harbour?")
    assert (sample.images, len(sample.videos)) == ((), 1)


def test_the_video_form_that_qwen2_vl_finetune_documents(dataset, media):
    (media / "clip.mp4").write_bytes(b"not decoded here")
    source = dataset([qa("<video>\nWho crosses the road?", "A fox.", id="clip1", video="clip.mp4")])
    assert source[0].messages[0].parts == (Video(media / "clip.mp4"), "Who crosses the road?")


def test_frames_of_a_video_by_list_and_by_folder(dataset, media):
    for name in ("10.png", "9.png", ".hidden.png"):
        save_picture(media / "walk" / name)
    source = dataset([qa(video=["b.png", "a.png"]), qa(video="walk"), qa(video=["walk/", "walk"])], frames_fps=4)
    assert source[0].videos == (Video(media, (media / "b.png", media / "a.png"), 4.0),)
    walk = Video(media / "walk", (media / "walk" / "9.png", media / "walk" / "10.png"), 4.0)
    assert source[1].videos == (walk,)
    assert source[2].videos == (walk, walk)


def test_media_that_a_row_holds_itself(dataset, media):
    source = dataset([qa(image="data:image/png;base64,UE5H", video="data:video/mp4;base64,TVA0")])
    assert source[0].media == (
        Image(media / "mine.json:1, row 0: picture 0", b"PNG"),
        Video(media / "mine.json:1, row 0: video 1", data=b"MP4"),
    )


def test_an_entry_that_gives_both_rules_for_frames_is_refused():
    entry = {"data_path": "x.json", "video": {"num_frames": 8, "fps": 2}}
    with pytest.raises(ConfigError, match=r"^video: num_frames=8 and fps=2 say two things; give one, and null for"):
        validate(LLaVADataset, entry)


def test_json_lines(media):
    path = media / "rows.jsonl"
    path.write_text(json.dumps(qa(id=1, image="a.png")) + "\n\n" + json.dumps(qa(id=2)) + "\n")
    source = LLaVADataset(data_path=path).open("mine")
    assert [source[row].id for row in (0, 1)] == ["mine/1", "mine/2"]
    assert source[1].place == f"{path}:3, row 1"


def test_relative_paths_start_from_the_root_and_tilde_is_the_home(media, monkeypatch, tmp_path):
    (media / "rows.json").write_text(json.dumps([qa(image="media/a.png")]))
    for keys in (
        {"root": tmp_path, "data_path": "media/rows.json", "media_dir": "."},
        {"root": "~", "data_path": "media/rows.json", "media_dir": "."},
        {"root": "/nowhere", "data_path": "~/media/rows.json", "media_dir": tmp_path},
    ):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert LLaVADataset(**keys).open("mine")[0].images == (Image(media / "a.png"),)
    monkeypatch.chdir(tmp_path)
    assert LLaVADataset(data_path=Path("media/rows.json"), media_dir=Path()).open("mine")[0].images


def test_the_system_prompt_goes_where_there_is_none(dataset):
    rows = [qa(), turns(("system", "Own."), ("human", "Q"), ("gpt", "A"))]
    source = dataset(rows, system_prompt="Be brief.")
    assert [source[row].messages[0] for row in (0, 1)] == [
        Message("system", ("Be brief.",)),
        Message("system", ("Own.",)),
    ]
    assert len(source[1].messages) == 3
    assert dataset(rows)[0].messages[0].role == "user"


def test_held_out_rows(dataset, media):
    assert LLaVADataset(data_path=media / "mine.json").open_eval("mine") is None
    (media / "mine.json").write_text(json.dumps([qa()]))
    (media / "eval.json").write_text(json.dumps([qa("Held out?", "Yes.", image="b.png")]))
    held_out = LLaVADataset(data_path=media / "mine.json", eval_data_path=media / "eval.json").open_eval("mine")
    assert held_out is not None
    assert held_out[0].messages[1].text == "Yes."


def test_visits(media):
    assert LLaVADataset(data_path=media / "x.json", factor=0.5, repeat=4).visits == 2
    for keys in ({"factor": 0}, {"factor": -1}, {"factor": float("inf")}, {"repeat": 0}, {"repeat": 1.5}):
        with pytest.raises(ConfigError, match=f"^{next(iter(keys))}: "):
            validate(LLaVADataset, {"data_path": "x.json"} | keys)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"data_path": "none.json"}, r"^mine: data_path .*/none\.json does not exist; give the path of a \.json or"),
        ({"data_path": "."}, "^mine: data_path .* is a folder, not a file"),
        ({"eval_data_path": "none.json"}, r"^mine: eval_data_path .*/none\.json does not exist"),
        ({"media_dir": "none"}, r"^mine: media_dir .*/none is not a folder; give the folder that the media lie in"),
    ],
)
def test_entries_that_cannot_be_opened(media, keys, match):
    (media / "rows.json").write_text(json.dumps([qa()]))
    entry = LLaVADataset(root=media, **({"data_path": "rows.json"} | keys))
    with pytest.raises(DataError, match=match):
        (entry.open_eval if "eval_data_path" in keys else entry.open)("mine")


def test_a_broken_file_is_named_with_its_entry(dataset, media):
    with pytest.raises(DataError, match=rf"^mine: {media}/mine\.json: holds a JSON object; expected a list"):
        dataset({"a": 1})


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"id": "x"}, "it has no 'conversations'"),
        (qa("Q", " ", id="x"), "turn 2 is an empty answer"),
        (qa("<image>", id="x"), "its text has 1 <image> tag, but it has no pictures"),
        (qa(id="x", image="no.png"), r"no\.png does not exist in media_dir"),
        (qa(id="x", image="../out.png"), r"\.\./out\.png leads by \.\. out of media_dir"),
        (qa(id="x", image="/etc/passwd"), "/etc/passwd is an absolute path out of media_dir"),
        (qa(id="x", image="https://a.org/b.png"), "https://a.org/b.png is a URL; .* or set allow_urls: true"),
        (qa(id="x", image="a\0.png"), r"'a\\x00\.png' holds a NUL character; write the path of a file below"),
        (qa(id="x", video="a.png"), "its 'video' holds 'a.png', a picture"),
        (qa(id="x", video="no.mp4"), r"no\.mp4 does not exist in media_dir"),
        (qa(id="x", video="empty"), ".*/empty is an empty folder; expected a video file, or a folder of its frames"),
        (qa(id="x", video=[["a.png", "../out.png"]]), r"\.\./out\.png leads by \.\. out of media_dir"),
    ],
)
def test_a_broken_sample_is_named_with_its_file_and_row(dataset, media, row, match):
    (media / "empty").mkdir()
    source = dataset([qa(), row])
    with pytest.raises(SampleError, match=rf"^mine/x \({media}/mine\.json:1, row 1\): {match}") as caught:
        source[1]
    assert caught.value.sample_id == "mine/x"
    assert caught.value.exit_code == 2
    assert source[0].id == "mine/0"


def test_duplicate_ids_are_refused(dataset, media):
    with pytest.raises(DataError, match=rf"^mine/7 \({media}/mine\.json:1, row 2\): row 0 has the same id; give each"):
        dataset([qa(id=7), qa(id=8), qa(id="7")])
    with pytest.raises(DataError, match=r"^mine/1 .*row 1\): row 0 has the same id"):
        dataset([qa(id="1"), qa()])
    with pytest.raises(DataError) as caught:
        dataset([qa(id="same")] * 10)
    assert len(caught.value.problems) == 6
    assert caught.value.problems[-1] == f"mine: 4 more ids stand twice in {media / 'mine.json'}"


def test_content_is_compared_without_ids_and_spelling(dataset):
    first = dataset([qa("<image>\nWhat?", id="x", image="a.png"), qa("broken", " ")], "first")
    second = dataset(
        [
            turns(("user", "What?"), ("assistant", "A kite."), image=["./a.png"]),
            qa("<image>\nWhat?", image="b.png"),
            qa("<image>\nWhat?", "A boat.", image="a.png"),
            qa("broken", " "),
        ],
        "second",
    )
    keys = [second.content_key(row) for row in range(4)]
    assert first.content_key(0) == keys[0]
    assert first.content_key(1) == keys[3]
    assert len(set(keys)) == 4


def test_media_of_every_kind_are_compared_by_what_they_are(dataset):
    rows = [
        qa(image="data:image/png;base64,UE5H"),
        qa(image="data:application/octet-stream;base64,UE5H"),
        qa(image="data:image/png;base64,TVA0"),
        qa(video=["./1.jpg", "2.jpg"]),
        qa(video=[["1.jpg", "x/../2.jpg"]]),
        qa(video=["2.jpg", "1.jpg"]),
        qa(image="https://a.org//x/../b.png"),
        qa(image="https://a.org/b.png"),
    ]
    source = dataset(rows)
    one, same, other, frames, alike, reversed_, url, another = (source.content_key(row) for row in range(8))
    assert one == same and frames == alike
    assert len({one, other, frames, reversed_, url, another}) == 6


def test_malformed_rows_are_alike_only_where_they_say_the_same(dataset):
    first, second = dataset([qa("Q", ""), qa("R", " ")], "first"), dataset([qa("R", ""), qa("Q", "")], "second")
    assert first.content_key(0) == second.content_key(1)
    assert first.content_key(0) != second.content_key(0)


def test_the_fingerprint_tells_one_file_from_another(dataset):
    one, same, other = (dataset([qa(id=i)], f"entry{n}").fingerprint() for n, i in enumerate((1, 1, 2)))
    assert one == same != other
    assert one["rows"] == 1


def test_a_source_travels_to_other_processes(dataset):
    source = dataset([qa(image="a.png", id="x")])
    assert pickle.loads(pickle.dumps(source))[0] == source[0]


def test_a_sample_error_keeps_its_id_between_processes():
    error = pickle.loads(pickle.dumps(SampleError("one", "two", sample_id="mine/x")))
    assert error.sample_id == "mine/x"
    assert error.problems == ("one", "two")


def test_unknown_keys_are_refused():
    with pytest.raises(ConfigError, match=r"^media_folder: unknown key; did you mean media_dir\?"):
        validate(LLaVADataset, {"data_path": "x.json", "media_folder": "y"})
    with pytest.raises(ConfigError, match="^data_path: "):
        validate(LLaVADataset, {})
