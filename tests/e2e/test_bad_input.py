"""What a user may get wrong: each is answered with what, where and how to mend it, exit code 2, and nothing else.

No weight is loaded, no rank is started, no run folder is left, and the driver imports no torch. A spy in each process
notes what it imported and what ran.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.making import qa, turns
from tests.e2e.conftest import Ended, entry, typed_in

# Loaded by every Python that the command starts; what it finds at the end is noted in a file a process.
SPY = """
import atexit, os, sys
def note():
    watched = ("torch", "transformers", "PIL", "peft", "trl", "torch.utils.collect_env", "booby_trap")
    found = [name for name in watched if name in sys.modules]
    with open(os.path.join(os.environ["SPY_FOLDER"], str(os.getpid())), "w") as file:
        file.write("\\n".join(found))
atexit.register(note)
"""
TRAP = "raise SystemExit('imported!')\n"


@dataclass
class Desk:
    """A user's files, and the command typed over them."""

    root: Path
    work: Path
    spy: Path

    def rows(self, *rows: Any, name: str = "mine", **fields: Any) -> Path:
        """Write rows as the dataset `name`, with one good picture beside them; returns the JSON file."""
        path = self.root / "data" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (28, 28), "red").save(path.parent / "good.png")
        path.write_text(json.dumps(rows))
        entry(self.root, name, data_path=f"data/{name}.json", **fields)
        return path

    def type(self, *words: str, vlmft_path: str | None = None) -> Ended:
        """Type the command; everything that holds for all bad input is checked here."""
        ended = typed_in(
            self.work,
            *words,
            VLMFT_PATH=vlmft_path or str(self.root),
            PYTHONPATH=str(self.spy),
            SPY_FOLDER=str(self.spy / "seen"),
        )
        assert ended.code == 2, (ended.code, ended.out, ended.err)
        assert ended.out == ""
        assert ended.errors
        assert list(self.work.iterdir()) == []  # no run folder, and no other
        seen = list((self.spy / "seen").iterdir())
        assert len(seen) == 1, "another process was started"
        imported = set(seen[0].read_text().split())
        assert "torch" not in imported and "transformers" not in imported and "booby_trap" not in imported
        return ended


@pytest.fixture
def desk(root: Path, work: Path, tmp_path: Path) -> Desk:
    spy = tmp_path / "spy"
    (spy / "seen").mkdir(parents=True)
    (spy / "sitecustomize.py").write_text(SPY)
    (spy / "booby_trap.py").write_text(TRAP)
    return Desk(root, work, spy)


WORDS = {
    "unknown dataset": (["dataset=shaeps"], ["dataset=shaeps: shaeps: unknown dataset; did you mean shapes?"]),
    "unknown recipe": (["recipe=lora_lm"], ["recipe: there is no option lora_lm; did you mean lora_llm?"]),
    "unknown model": (["model=tiny_qwen25"], ["model: there is no option tiny_qwen25; did you mean tiny_qwen25vl?"]),
    "unknown metric": (["metric=exact"], ["metric=exact: exact: unknown metric; did you mean exact_match?"]),
    "unknown reward": (
        ["trainer=grpo", "reward=fromat@2.0+correctness@5.0"],
        ["reward=fromat@2.0+correctness@5.0: fromat: unknown reward; did you mean format?"],
    ),
    "a weight of 0": (["trainer=grpo", "reward=format@0"], ["format: the number after @ should be finite and above 0"]),
    "no reward": (["trainer=grpo"], ["reward: trainer=grpo learns from rewards, and none is chosen; choose such as"]),
    "a reward for another trainer": (["reward=format"], ["reward: format is for trainer=grpo; answers of another"]),
    "completions that leave no room": (
        ["trainer=grpo", "reward=format", "trainer.max_new_tokens=9000"],
        ["trainer.max_new_tokens: 9000 leave no room for a prompt in batching.max_tokens=8192"],
    ),
    "generation settings that contradict": (
        ["trainer=grpo", "reward=format", "trainer.num_generations=1"],
        ["trainer.num_generations: Input should be greater than or equal to 2 (found 1)"],
    ),
    "unknown group": (["optimiser=adamw"], ["optimiser"]),
    "unknown key": (["optim.learning_rate=1"], ["optim.learning_rate: unknown key", "lr"]),
    "misspelt key": (["trainer.max_step=3"], ["trainer.max_step: unknown key; did you mean max_steps?"]),
    "misspelt key with +": (["+trainer.max_step=3"], ["trainer.max_step: unknown key; did you mean max_steps?"]),
    "misspelt root key with +": (["+presicion=fp32"], ["presicion: unknown key; did you mean precision?"]),
    "misspelt key of an entry": (
        ["+dataset.shapes.train_sample=3"],
        ["dataset.shapes.train_sample: unknown key; did you mean train_samples?"],
    ),
    "wrong type": (["global_batch_size=many"], ["global_batch_size: ", "(found 'many')"]),
    "wrong type of a list": (["optim.betas=[0.9]"], ["optim.betas"]),
    "out of range": (["optim.lr=-1"], ["optim.lr: Input should be greater than 0 (found -1"]),
    "two at once": (
        ["optim.lr=0", "trainer.epochs=none", "precision=fp8"],
        ["optim.lr: Input should be greater than 0", "trainer.epochs: ", "precision: Input should be 'bf16', 'fp16'"],
    ),
    "empty term": (["dataset=shapes+"], ["'shapes+': term 2 of 2 is empty"]),
    "twice the same": (["dataset=shapes+shapes"], ["shapes: shapes is there twice; first reached as"]),
    "bad factor": (["dataset=shapes*0"], ["the number after * should be whole and at least 1", "found '0'"]),
    "a value for a group": (["recipe.llm=frozen"], ["recipe.llm"]),
    "several values without -m": (["seed=1,2"], ["seed=1,2: several values are a sweep and need -m"]),
    "unreadable word": (["dataset=[shapes"], ["dataset=[shapes: cannot be read"]),
    "holdout out of range": (["holdout=1"], ["holdout: Input should be less than 1 (found 1"]),
    "trusted code without a commit": (
        ["model=qwen25vl", "model.trust_remote_code=true"],
        ["model.trust_remote_code: needs revision to be a commit's full hash, 40 digits of 0-9a-f (it is null)"],
    ),
    "trusted code of a branch": (
        ["model=qwen25vl", "model.trust_remote_code=true", "model.revision=main"],
        ["model.trust_remote_code: needs revision to be a commit's full hash, 40 digits of 0-9a-f (it is main)"],
    ),
    "trusted code of vlmft's own model": (
        ["model.trust_remote_code=true"],
        ["model.trust_remote_code: needs path: without one there is no checkpoint, or vlmft's own"],
    ),
    "no dataset": (["dataset=none"], ["dataset: "]),
    "a folder that is missing": (
        ["model=qwen25vl", "model.path=./weights"],
        ["model.path: there is no folder ./weights"],
    ),
    "a step that the ranks cannot share": (
        ["strategy.ranks=3"],
        ["global_batch_size: 16 samples a step cannot be shared evenly by 3 ranks"],
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_words(desk: Desk, case: str) -> None:
    words, expected = WORDS[case]
    ended = desk.type(*words)
    for text in expected:
        assert any(text in line for line in ended.errors), ended.err
    assert len(ended.errors) == (len(expected) if case == "two at once" else 1), ended.err


# What is wrong with the sample `mine/bad`, and what is said about it.
SAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "no conversations": (
        {"id": "bad", "image": "good.png", "messages": []},
        "it has no 'conversations' (its keys: id, image, messages); expected a list of",
    ),
    "more tags than pictures": (
        qa("<image>\n<image>\nWhat?", id="bad", image="good.png"),
        "its text has 2 <image> tags, but it has 1 picture; write one tag for each picture",
    ),
    "fewer tags than pictures": (
        qa("<image>\nWhat?", id="bad", image=["good.png", "good.png"]),
        "its text has 1 <image> tag, but it has 2 pictures; write one tag for each picture",
    ),
    "a tag without a picture": (qa("<image>\nWhat?", id="bad"), "its text has 1 <image> tag, but it has no picture"),
    "an empty answer": (qa("What?", " \n", id="bad"), "turn 2 is an empty answer; give the answer, or leave the"),
    "a question last": (
        turns(("human", "A?"), ("gpt", "B."), ("human", "C?"), id="bad"),
        "the last turn is the user's; add its answer, or remove the turn",
    ),
    "two answers in a row": (
        turns(("human", "A?"), ("gpt", "B."), ("gpt", "C."), id="bad"),
        "turns 2 and 3 are both the assistant's; join them, or add the user's turn",
    ),
    "an unknown speaker": (turns(("robot", "A?"), id="bad"), "turn 1 is from 'robot'; expected one of human, user"),
    "a missing picture": (
        qa("<image>\nWhat?", id="bad", image="gone.png"),
        "gone.png does not exist in media_dir {data}; mend the path or media_dir",
    ),
    "a truncated picture": (
        qa("<image>\nWhat?", id="bad", image="cut.png"),
        "{data}/cut.png cannot be decoded: ",
    ),
    "no picture": (qa("<image>\nWhat?", id="bad", image="text.png"), "{data}/text.png is no picture in a known format"),
    "a path that leads out": (
        qa("<image>\nWhat?", id="bad", image="../outside.png"),
        "../outside.png leads by .. out of media_dir {data}; copy the file into that folder",
    ),
    "an absolute path": (
        qa("<image>\nWhat?", id="bad", image="/etc/passwd"),
        "/etc/passwd is an absolute path out of media_dir {data}; write it relative to media_dir",
    ),
    "a symlink that leads out": (
        qa("<image>\nWhat?", id="bad", image="link.png"),
        "link.png is or passes a symlink that leads out of media_dir {data}; copy the file",
    ),
    "a URL": (
        qa("<image>\nWhat?", id="bad", image="https://example.com/a.png"),
        "https://example.com/a.png is a URL; media are read from files: save it below {data}",
    ),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_a_sample(desk: Desk, case: str) -> None:
    row, expected = SAMPLES[case]
    file = desk.rows(qa(id="good"), row)
    data = file.parent
    Image.effect_noise((200, 200), 90).save(data / "whole.png")
    (data / "cut.png").write_bytes((data / "whole.png").read_bytes()[:20_000])
    (data / "text.png").write_text("not a picture")
    Image.new("RGB", (8, 8)).save(desk.root / "outside.png")
    (data / "link.png").symlink_to(desk.root / "outside.png")
    ended = desk.type("dataset=mine")
    (line,) = ended.errors
    assert line.startswith(f"mine/bad ({file}:1, row 1): {expected.format(data=data)}"), line


def files(desk: Desk, problem: str) -> list[str]:
    """Make a problem of files; return what has to be said about it, one text a line of stderr."""
    data = desk.root / "data"
    data.mkdir()
    if problem == "no data_path":
        entry(desk.root, "mine", media_dir="data")
        return ["dataset.mine.data_path: Field required"]
    if problem == "missing file":
        entry(desk.root, "mine", data_path="data/mine.json")
        return [f"mine: data_path {data}/mine.json does not exist; give the path of a .json or .jsonl file"]
    if problem == "missing media_dir":
        desk.rows(qa(), media_dir="pictures")
        return [f"mine: media_dir {desk.root}/pictures is not a folder; give the folder that the media lie in"]
    if problem == "no list":
        entry(desk.root, "mine", data_path="data/mine.json")
        (data / "mine.json").write_text('{"samples": []}')
        return [f"mine: {data}/mine.json: holds a JSON object; expected a list of samples"]
    if problem == "no JSON":
        entry(desk.root, "mine", data_path="data/mine.json")
        (data / "mine.json").write_text('[\n{"id": 1,}\n]')
        return [f"mine: {data}/mine.json: is not valid JSON: "]
    if problem == "two ids":
        file = desk.rows(qa(id="x"), qa(id="x"))
        return [f"mine/x ({file}:1, row 1): row 0 has the same id; give each sample an id of its own"]
    if problem == "defined twice":
        first = entry(desk.root, "mine", data_path="a.json")
        second = first.with_name("more.yaml")
        second.write_text(first.read_text())
        return [f"{second}: mine: is defined already in {first}"]
    if problem == "mixture cycle":
        (desk.root / "registry" / "mixtures.yaml").write_text("mine: shapes+other\nother: [mine*2]\n")
        return ["mine -> other -> mine: a mixture cannot contain itself"]
    if problem == "pictures among videos":
        file = desk.rows(qa(image="a.png"), is_video=True)
        return [f"mine/0 ({file}:1, row 0): it has the key 'image', but its entry says is_video: true; call it 'video'"]
    if problem == "all bad samples":
        file = desk.rows(qa("What?", "", id="a"), qa(id="b"), turns(("human", "A?"), id="c"))
        return [
            f"mine/a ({file}:1, row 0): turn 2 is an empty answer",
            f"mine/c ({file}:1, row 2): it has no assistant turn",
        ]
    raise AssertionError(problem)


@pytest.mark.parametrize(
    "problem",
    [
        "no data_path",
        "missing file",
        "missing media_dir",
        "no list",
        "no JSON",
        "two ids",
        "defined twice",
        "mixture cycle",
        "pictures among videos",
        "all bad samples",
    ],
)
def test_files(desk: Desk, problem: str) -> None:
    expected = files(desk, problem)
    ended = desk.type("dataset=mine")
    assert len(ended.errors) == len(expected), ended.err
    for line, text in zip(ended.errors, expected, strict=True):
        assert text in line, ended.err


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{tmp}/gone", "{tmp}/gone: there is no such folder (from VLMFT_PATH)"),
        ("{tmp}/spy", "{tmp}/spy: has neither a conf/ nor a registry/ folder (from VLMFT_PATH)"),
    ],
)
def test_a_root_that_is_none(desk: Desk, tmp_path: Path, path: str, message: str) -> None:
    ended = desk.type(vlmft_path=path.format(tmp=tmp_path))
    assert ended.errors == [message.format(tmp=tmp_path)]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "pathlib.Path.write_text",
        "torch.utils.collect_env.run",
        "booby_trap.Dataset",
        "builtins.exec",
        "llava.data.LLaVADataset",
    ],
)
def test_a_target_of_others_is_refused_without_its_import(desk: Desk, target: str) -> None:
    entry(desk.root, "mine", _target_=target, data_path="a.json")
    (line,) = desk.type("dataset=mine").errors
    assert line.startswith(f"dataset.mine: _target_ {target!r} is not allowed: targets may come from vlmft; ")
    assert "root.yaml" in line


@pytest.mark.parametrize("target", ["vlmft.train.os.system", "vlmft.data.hashing.hashlib.blake2b", "vlmft.cache.Path"])
def test_a_target_through_vlmft_is_refused_as_well(desk: Desk, target: str) -> None:
    entry(desk.root, "mine", _target_=target, data_path="a.json")
    (line,) = desk.type("dataset=mine").errors
    assert line.startswith(f"dataset.mine: _target_ {target!r} is not allowed: ")


def test_a_target_typed_on_the_command_line_is_refused(desk: Desk) -> None:
    marker = desk.root / "ran"
    ended = desk.type("+dataset.shapes.system_prompt._target_=os.system", "model._target_=os.mkdir", f"seed={marker}")
    assert any("model: _target_ 'os.mkdir' is not allowed" in line for line in ended.errors)
    assert not marker.exists()


def test_problems_of_one_pass_are_listed_together(desk: Desk) -> None:
    """Keys, types and targets of the whole config, entries of the registry included."""
    desk.rows(qa(), medai_dir="data", repeat=0)
    entry(desk.root, "other", _target_="torch.load")
    ended = desk.type("dataset=mine+other", "optim.lr=fast", "+seeed=3")
    assert sorted(line.partition(":")[0] for line in ended.errors) == [
        "dataset.mine.medai_dir",
        "dataset.mine.repeat",
        "dataset.other",
        "optim.lr",
        "seeed",
    ]
