"""A checkpoint's own Python files are not run, and nobody is asked; where they are trusted, one commit's alone are."""

import builtins
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.merging.support import merge
from tests.recipes.training import save_trained, train
from tests.security.canary import commit_all, git, write_code_canary, write_working_canary
from tests.support import CPU, compose, literally, tiny
from vlmft import load
from vlmft.config.spec import validate
from vlmft.errors import ConfigError
from vlmft.models import ModelSpec, Qwen25VL


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def repository(tmp_path: Path, marker: Path) -> Path:
    """The tiny checkpoint, turned into one that brings its own code."""
    folder = Path(shutil.copytree(tiny().folder(), tmp_path / "repository"))
    write_code_canary(folder, marker)
    return folder


def spec(folder: Path) -> Qwen25VL:
    return Qwen25VL(**(dict(tiny()) | {"path": str(folder)}))


@pytest.mark.parametrize("what", ["model", "processor"])
def test_a_checkpoint_that_needs_its_own_code_is_refused(repository: Path, marker: Path, what: str) -> None:
    message = f"model.path: {repository} needs Python code of its own (auto_map in its JSON files), which is not run"
    with pytest.raises(ConfigError, match=literally(message)):
        if what == "model":
            spec(repository).load_model(CPU)
        else:
            spec(repository).load_processor()
    assert not marker.exists()


def test_own_code_beside_a_known_class_is_not_run(repository: Path, marker: Path) -> None:
    for name in ("config.json", "processor_config.json"):
        (repository / name).unlink()
    shutil.copytree(tiny().folder(), repository, dirs_exist_ok=True)
    known = (repository / "config.json").read_text().rstrip()[:-1]
    (repository / "config.json").write_text(known + ', "auto_map": {"AutoConfig": "canary_code.Canary"}}')
    spec(repository).load_model(CPU)
    spec(repository).load_processor()
    assert not marker.exists()


def test_nobody_is_asked_on_a_terminal(repository: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda prompt="": asked.append(prompt) or "y")
    for read in (spec(repository).load_processor, lambda: spec(repository).load_model(CPU)):
        with pytest.raises(ConfigError):
            read()
    assert asked == []
    assert not marker.exists()


@pytest.mark.parametrize("name", ["TRUST_REMOTE_CODE", "HF_TRUST_REMOTE_CODE", "HF_HUB_TRUST_REMOTE_CODE"])
def test_nothing_else_turns_it_on(repository: Path, marker: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    for file in ("config.json", "processor_config.json", "tokenizer_config.json"):
        values = json.loads((repository / file).read_text())
        (repository / file).write_text(json.dumps(values | {"trust_remote_code": True}))
    for read in (spec(repository).load_processor, lambda: spec(repository).load_model(CPU)):
        with pytest.raises(ConfigError, match="needs Python code of its own"):
            read()
    assert not marker.exists()


@dataclass
class Canary:
    """A checkpoint in a git checkout, whose own classes work and add a word to `marker` where they are imported."""

    folder: Path
    commit: str
    marker: Path

    def spec(self, **values: Any) -> Qwen25VL:
        trusted = {"path": str(self.folder), "revision": self.commit, "trust_remote_code": True}
        return Qwen25VL(**(dict(tiny()) | trusted | values))

    @property
    def sung(self) -> str:
        return self.marker.read_text() if self.marker.exists() else ""

    def refused(self, *messages: str, **values: Any) -> None:
        """Loading ends in an error that says this, before anything of it has run."""
        before = self.sung
        for read in (self.spec(**values).load_processor, lambda: self.spec(**values).load_model(CPU)):
            with pytest.raises(ConfigError) as raised:
                read()
            assert all(message in str(raised.value) for message in messages), raised.value
        assert self.sung == before


def make_canary(folder: Path, marker: Path, song: str) -> Canary:
    shutil.copytree(tiny().folder(), folder)
    write_working_canary(folder, marker, song)
    return Canary(folder, commit_all(folder), marker)


@pytest.fixture
def canary(tmp_path: Path, marker: Path) -> Canary:
    return make_canary(tmp_path / "repository", marker, "one")


def test_own_code_that_works_is_not_run_untrusted(canary: Canary) -> None:
    model = canary.spec(trust_remote_code=False).load_model(CPU)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    with pytest.raises(ConfigError, match="is not run; use a checkpoint") as raised:
        spec(canary.folder).load_processor()
    assert "model.trust_remote_code=true model.revision=<its commit>" in raised.value.problems[1]
    assert canary.sung == ""


def test_trusted_code_of_the_commit_runs_and_works(canary: Canary) -> None:
    processor = canary.spec().load_processor()
    assert type(processor).__name__ == "OwnProcessor"
    assert canary.sung == "one "
    model = canary.spec().load_model(CPU)
    assert type(model).__name__ == "OwnModel" and type(model.config).__name__ == "OwnConfig"
    expected = tiny().load_model(CPU).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("revision", [None, "main", "v1", "refs/heads/main", "{short}", "{upper}", "{commit}0", ""])
def test_trust_needs_a_commit_in_full(canary: Canary, revision: str | None) -> None:
    commit = canary.commit
    given = revision and revision.format(short=commit[:12], upper=commit.upper(), commit=commit)
    values = canary.spec().to_config() | {"revision": given}
    with pytest.raises(ConfigError) as raised:
        validate(ModelSpec, values)
    (problem,) = raised.value.problems
    assert problem.startswith(
        "trust_remote_code: needs revision to be a commit's full hash, 40 digits of 0-9a-f "
        f"(it is {given or 'null'}): a branch or a tag can be moved to other code than you have read; `git rev-parse"
    )
    assert canary.sung == ""


def test_a_spec_that_skipped_validation_is_refused_as_well(canary: Canary) -> None:
    for revision in (None, "main"):
        with pytest.raises(ConfigError, match=f"model.revision: is {revision or 'null'}, but the git checkout"):
            canary.spec().model_copy(update={"revision": revision}).load_processor()
    assert canary.sung == ""


def change(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


def hide_and_change(folder: Path) -> None:
    git(folder, "update-index", "--assume-unchanged", "canary_code.py")
    change(folder / "canary_code.py")


def import_an_ignored_module(folder: Path) -> None:
    (folder / ".git/info/exclude").write_text("*.py\n")
    (folder / "more.py").write_text("")


def link_to_the_same(folder: Path) -> None:
    shutil.move(folder / "canary_helper.py", folder.parent / "elsewhere.py")
    (folder / "canary_helper.py").symlink_to(folder.parent / "elsewhere.py")


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "the code": (lambda folder: change(folder / "canary_code.py"), "canary_code.py: has changed"),
    "what it imports": (lambda folder: change(folder / "canary_helper.py"), "canary_helper.py: has changed"),
    "what names it": (lambda folder: change(folder / "config.json"), "config.json: has changed"),
    "unseen by git status": (hide_and_change, "canary_code.py: has changed"),
    "an untracked module": (lambda folder: (folder / "more.py").touch(), "more.py: is not part of the commit"),
    "an ignored module": (import_an_ignored_module, "more.py: is not part of the commit"),
    "bytecode": (lambda folder: (folder / "more.pyc").touch(), "more.pyc: is not part of the commit"),
    "a library": (lambda folder: (folder / "more.so").touch(), "more.so: is not part of the commit"),
    "a staged module": (
        lambda folder: [(folder / "more.py").touch(), git(folder, "add", ".")],
        "more.py: is not part of the commit",
    ),
    "a module in a folder": (
        lambda folder: [(folder / "custom_generate").mkdir(), (folder / "custom_generate/generate.py").touch()],
        "custom_generate/generate.py: is not part of the commit",
    ),
    "a linked folder": (lambda folder: (folder / "more").symlink_to("/usr"), "more: is not part of the commit"),
    "a link in place of a file": (link_to_the_same, "canary_helper.py: is a symlink"),
    "a lost file": (lambda folder: (folder / "canary_helper.py").unlink(), "canary_helper.py: is missing"),
    "a new config": (lambda folder: (folder / "more.json").touch(), "more.json: is not part of the commit"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_folder_that_is_not_what_the_commit_holds_is_refused(canary: Canary, case: str) -> None:
    make, expected = CHANGES[case]
    make(canary.folder)
    canary.refused(
        f"model.trust_remote_code: {canary.folder} is not what commit {canary.commit} (model.revision) holds",
        f"\n  {expected}",
        f"\n  clone it anew and check out {canary.commit}; or, if this is your own work, commit it",
    )


def test_another_commit_than_the_one_checked_out_is_refused(canary: Canary) -> None:
    change(canary.folder / "canary_code.py")
    newer = commit_all(canary.folder)
    canary.refused(f"model.revision: is {canary.commit}, but the git checkout {canary.folder} is at {newer}")
    canary.refused("model.revision: is " + "a" * 40, revision="a" * 40)


def test_a_folder_of_no_repository_is_refused(canary: Canary) -> None:
    shutil.rmtree(canary.folder / ".git")
    canary.refused(f"{canary.folder} is neither a git checkout nor a snapshot in the Hugging Face cache")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "auto_map", {"AutoConfig": "other/repository--canary_code.OwnConfig"}),
        ("config.json", "auto_map", {"AutoModelForImageTextToText": "other/repository--canary_code.OwnModel"}),
        ("config.json", "vision_config", {"auto_map": {"AutoModel": "other/repository--canary_code.OwnModel"}}),
        ("processor_config.json", "auto_map", {"AutoProcessor": "other/repository--canary_code.OwnProcessor"}),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["other/repository--a.B", None]}),
        ("tokenizer_config.json", "auto\\u005fmap", [None, "other/repository--a.B"]),
        ("preprocessor_config.json", "auto_map", {"AutoImageProcessor": {"torchvision": "other/repository--a.B"}}),
        ("config.json", "auto_map", {"AutoConfig": "{outside}/canary_code.OwnConfig"}),
        ("config.json", "auto_map", {"AutoConfig": "../outside/canary_code.OwnConfig"}),
        ("config.json", "auto_map", {"AutoConfig": "missing.OwnConfig"}),
    ],
)
def test_code_from_elsewhere_is_refused_by_name(canary: Canary, file: str, key: str, value: Any) -> None:
    outside = canary.folder.parent / "outside"
    shutil.copytree(canary.folder, outside)
    path = canary.folder / file
    text = json.dumps((json.loads(path.read_text()) if path.exists() else {}) | {key: value})
    path.write_text(text.replace("{outside}", str(outside)).replace("\\\\", "\\"))
    canary.commit = commit_all(canary.folder)
    expected = "which is code of another repository" if "--" in text else "but there is no"
    canary.refused("needs code that model.revision does not pin", f"  {file}: auto_map names ", expected)


def test_the_base_of_an_adapter_is_not_pinned(canary: Canary) -> None:
    (canary.folder / "config.json").rename(canary.folder / "adapter_config.json")
    canary.commit = commit_all(canary.folder)
    canary.refused("is an adapter without its base")


@pytest.mark.parametrize("hostile", [True, False])
def test_a_repository_s_config_starts_nothing(canary: Canary, tmp_path: Path, hostile: bool) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch '{ran}'\ncat\n")
    program.chmod(0o755)
    (canary.folder / ".git/info/attributes").write_text("* filter=canary diff=canary\n")
    for name in (
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "core.alternateRefsCommand",
        "diff.external",
        "diff.canary.textconv",
        "filter.canary.clean",
        "filter.canary.smudge",
        "filter.canary.process",
        "credential.helper",
        "gpg.program",
    ):
        git(canary.folder, "config", name, str(program))
    shutil.copytree(canary.folder / ".git/hooks", tmp_path / "hooks", dirs_exist_ok=True)
    for name in ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc"):
        shutil.copy(program, tmp_path / "hooks" / name)
    git(canary.folder, "config", "core.hooksPath", str(tmp_path / "hooks"))
    if not hostile:  # the canary sings
        subprocess.run(["git", "-C", str(canary.folder), "status"], capture_output=True)
        assert ran.exists()
        return
    canary.spec().load_processor()
    assert canary.sung == "one "
    change(canary.folder / "canary_code.py")
    canary.refused("canary_code.py: has changed")
    assert not ran.exists()


def test_the_users_own_git_variables_do_not_lead_elsewhere(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(canary.folder.parent))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(canary.folder.parent))
    canary.spec().load_processor()
    assert canary.sung == "one "


def test_what_runs_is_never_an_earlier_commit_of_the_same_name(tmp_path: Path, marker: Path) -> None:
    first = make_canary(tmp_path / "a/repository", marker, "one")
    other = make_canary(tmp_path / "b/repository", marker, "two")
    for canary in (first, other, first):
        canary.spec().load_processor()
    assert marker.read_text() == "one two "
    write_working_canary(first.folder, marker, "three")  # the same folder moves on
    first.commit = commit_all(first.folder)
    first.spec().load_processor()
    (first.folder / "canary_helper.py").write_text("def sing(song):\n    sing.__globals__['found'] = song\n")
    first.commit = commit_all(first.folder)  # and so does a module that it imports
    first.spec().load_processor()
    assert marker.read_text() == "one two three "


@pytest.mark.slow
def test_a_copy_that_somebody_changed_is_not_run(canary: Canary) -> None:
    """transformers imports from copies in a folder of its own."""
    load_once = "import sys; from tests.security.test_code import load_canary; load_canary(*sys.argv[1:])"
    command = [sys.executable, "-c", load_once, str(canary.folder), canary.commit]
    run = lambda: subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: E731
    run()
    modules = Path(os.environ["XDG_CACHE_HOME"]) / "huggingface/modules/transformers_modules/repository"
    copies = [path for path in modules.rglob("canary_code.py") if "one" in path.read_text()]
    copies = [path for path in copies if str(canary.marker) in path.with_name("canary_helper.py").read_text()]
    assert copies
    for path in copies:
        path.write_text(path.read_text().replace("one", "stale"))
    run()
    assert canary.sung == "one one "


def load_canary(folder: str, commit: str) -> None:
    Canary(Path(folder), commit, Path()).spec().load_processor()


@pytest.mark.parametrize("recipe", ["lora_llm", "fft"])
def test_a_saved_model_s_code_is_not_run_unasked(canary: Canary, recipe: str, tmp_path: Path) -> None:
    config = compose(f"recipe={recipe}").model_copy(update={"model": canary.spec()})
    final = save_trained(train(config, steps=0), tmp_path / "final")
    record = json.loads((final / "vlmft.json").read_text())
    assert (record["base"]["path"], record["base"]["revision"]) == (str(canary.folder), canary.commit)
    assert record["model"]["trust_remote_code"] is True
    message = (
        f"{final}: was trained with the Python code of {canary.folder} at commit {canary.commit}, which is not run"
    )
    with pytest.raises(ConfigError, match=literally(message)):
        load(final)
    model, processor = load(final, trust_remote_code=True)
    assert "OwnModel" in {type(module).__name__ for module in model.modules()}
    assert type(processor).__name__ == "OwnProcessor"

    planted = final / "canary_code.py"
    good = planted.read_text()
    planted.write_text(good + f"\nopen({str(canary.marker)!r}, 'a').write('planted')\n")
    with pytest.raises(ConfigError, match=literally(f"canary_code.py: is not a file of {canary.folder}")):
        load(final, trust_remote_code=True)
    planted.write_text(good)
    change(canary.folder / "canary_helper.py")
    with pytest.raises(ConfigError, match=r"canary_helper\.py: has changed"):
        load(final, trust_remote_code=True)
    assert "planted" not in canary.sung


def test_asking_for_trust_gives_none_where_none_was_given_before(canary: Canary, tmp_path: Path) -> None:
    known = json.loads((tiny().folder() / "processor_config.json").read_text())
    (canary.folder / "processor_config.json").write_text(json.dumps(known))
    config = compose("recipe=projector").model_copy(update={"model": canary.spec(trust_remote_code=False)})
    load(save_trained(train(config, steps=0), tmp_path / "final"), trust_remote_code=True)
    assert canary.sung == ""


def test_a_base_that_changed_meanwhile_does_not_keep_a_model_from_being_saved(canary: Canary) -> None:
    trusted = canary.spec()
    change(canary.folder / "canary_code.py")
    assert trusted.located().path == str(canary.folder)


def test_a_merge_asks_for_trust_too_and_takes_the_code_along(canary: Canary, tmp_path: Path) -> None:
    config = compose("recipe=lora_llm").model_copy(update={"model": canary.spec()})
    final = save_trained(train(config, steps=1), tmp_path / "final")
    with pytest.raises(ConfigError, match=r"not run unasked; .* trust_remote_code=true in a merge"):
        merge(tmp_path / "untrusted", final)
    folder = merge(tmp_path / "trusted", final, trust_remote_code=True)
    assert {path.name for path in canary.folder.glob("*.py")} <= {path.name for path in folder.iterdir()}
    assert not (tmp_path / "untrusted" / "merged").exists()
