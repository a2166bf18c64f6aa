"""Which folders count as one commit's: checkouts of several kinds, the hub's cache; and forgeries that do not."""

import hashlib
import zlib
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest

from tests.security.canary import commit_all, git
from tests.support import literally, tiny
from vlmft.errors import ConfigError
from vlmft.models import Qwen25VL
from vlmft.models.pinned import check_copied, check_pinned, digest


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "model").mkdir(parents=True)
    (folder / "setup.py").write_text("one")
    (folder / "model" / "code.py").write_text("one")
    (folder / "model" / "config.json").write_text('{"auto_map": {"AutoConfig": "code.Config"}}')
    (folder / "model" / "model.safetensors").write_text("weights")
    return folder


def refused(folder: Path, commit: str, message: str) -> None:
    with pytest.raises(ConfigError, match=literally(message)):
        check_pinned(folder, commit)


def test_a_checkout_its_subfolders_its_worktrees_and_clones_are_pinned(checkout: Path, tmp_path: Path) -> None:
    commit = commit_all(checkout)
    git(checkout, "worktree", "add", "--quiet", "--detach", str(tmp_path / "worktree"))
    git(tmp_path, "clone", "--quiet", "--shared", str(checkout), "clone")
    for folder in (checkout, tmp_path / "worktree", tmp_path / "clone"):
        (folder / "setup.py").touch()
        check_pinned(folder / "model", commit)
        (folder / "model" / "code.py").write_text("two")
        refused(folder / "model", commit, "code.py: has changed")
        (folder / "model" / "code.py").write_text("one")
        (folder / "setup.py").write_text("two")  # outside the folder that is loaded
        check_pinned(folder / "model", commit)
    git(checkout, "gc", "--quiet")
    check_pinned(checkout / "model", commit)


def test_a_folder_that_its_checkout_does_not_track_is_not_pinned(checkout: Path) -> None:
    commit = commit_all(checkout)
    (checkout / "other").mkdir()
    (checkout / "other" / "code.py").write_text("one")
    refused(checkout / "other", commit, "code.py: is not part of the commit")


def test_weights_are_data_and_not_looked_at(checkout: Path) -> None:
    commit = commit_all(checkout)
    (checkout / "model" / "model.safetensors").write_text("changed")
    (checkout / "model" / "more.safetensors").symlink_to("/usr")
    (checkout / "model" / "notes.txt").write_text("mine")
    check_pinned(checkout / "model", commit)


def test_a_file_of_git_lfs_is_compared_with_its_pointer(checkout: Path) -> None:
    large = checkout / "model" / "tokenizer.json"
    content = b'{"large": true}'
    sha256 = hashlib.sha256(content).hexdigest()
    large.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n")
    commit = commit_all(checkout)
    large.write_bytes(content)
    check_pinned(checkout / "model", commit)
    large.write_bytes(content + b" ")
    refused(checkout / "model", commit, "tokenizer.json: has changed")


def test_a_commit_that_is_replaced_in_the_repository_is_not_taken_for_itself(checkout: Path) -> None:
    honest = commit_all(checkout)
    (checkout / "model" / "code.py").write_text("evil")
    evil = commit_all(checkout)
    git(checkout, "update-ref", "HEAD", honest)
    git(checkout, "replace", honest, evil)
    assert "code.py" not in git(checkout, "diff", "--name-only", "HEAD")  # git itself is misled
    refused(checkout / "model", honest, "code.py: has changed")


@pytest.mark.parametrize("kind", ["commit", "tree"])
def test_an_object_under_another_s_hash_is_not_believed(checkout: Path, kind: str) -> None:
    honest = commit_all(checkout)
    honest_tree = git(checkout, "rev-parse", "HEAD:model")
    (checkout / "model" / "code.py").write_text("evil")
    evil = commit_all(checkout)
    evil_tree = git(checkout, "rev-parse", "HEAD:model")
    git(checkout, "update-ref", "HEAD", honest)
    objects = checkout / ".git" / "objects"
    forged, source = (honest, evil) if kind == "commit" else (honest_tree, evil_tree)
    target = objects / forged[:2] / forged[2:]
    target.chmod(0o644)
    target.write_bytes((objects / source[:2] / source[2:]).read_bytes())
    assert zlib.decompress(target.read_bytes()).startswith(kind.encode())
    with pytest.raises(ConfigError, match=rf"its object {forged} has another hash|git cat-file fails"):
        check_pinned(checkout / "model", honest)


def test_what_a_partial_clone_lacks_is_not_fetched(checkout: Path, tmp_path: Path) -> None:
    commit = commit_all(checkout)
    tree = git(checkout, "rev-parse", "HEAD:model")
    (checkout / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    git(checkout, "config", "extensions.partialClone", "origin")
    git(checkout, "config", "core.repositoryFormatVersion", "1")
    git(checkout, "config", "remote.origin.url", f"ext::touch {tmp_path / 'ran'}")
    git(checkout, "config", "remote.origin.promisor", "true")
    git(checkout, "config", "protocol.ext.allow", "always")
    refused(checkout / "model", commit, "model.trust_remote_code: git cat-file fails")
    assert not (tmp_path / "ran").exists()


def test_without_git_nothing_is_pinned(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = commit_all(checkout)
    monkeypatch.setenv("PATH", "")
    refused(checkout, commit, "model.trust_remote_code: needs git, to check which commit the code is of; install it")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`nobody/model` in a hub cache, as huggingface_hub keeps it: each file a link to a blob named by its hash."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--nobody--model"
    files = {"code.py": "one", "config.json": "{}", "tokenizer.json": "large", "model.safetensors": "weights"}
    (folder / "blobs").mkdir(parents=True)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    for name, content in files.items():
        blob = folder / "blobs" / "new"
        blob.write_text(content)
        # What the hub keeps with git-lfs goes by sha256.
        named = hashlib.sha256(content.encode()).hexdigest() if name == "tokenizer.json" else digest(blob)
        blob.rename(blob.with_name(named))
        (folder / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{named}")
    return folder / "snapshots" / COMMIT


def hub(**values: Any) -> Qwen25VL:
    trusted = {"path": "nobody/model", "revision": COMMIT, "trust_remote_code": True}
    return Qwen25VL(**(dict(tiny()) | trusted | values))


def test_a_snapshot_in_the_hub_s_cache_is_pinned_by_its_name_and_its_files_by_theirs(snapshot: Path) -> None:
    assert hub().folder() == hub(path=str(snapshot)).folder() == snapshot
    other = hub(path=str(snapshot), revision="f" * 40)
    with pytest.raises(ConfigError, match=f"it is the snapshot of commit {COMMIT}"):
        other.folder()


@pytest.mark.parametrize("name", ["code.py", "config.json", "tokenizer.json"])
def test_a_file_edited_in_the_cache_is_refused(snapshot: Path, name: str) -> None:
    (snapshot / name).write_text("edited")  # through the link
    with pytest.raises(ConfigError, match=rf"{name}: has changed since it was fetched\n.*let it be fetched again"):
        hub().folder()
    assert hub(trust_remote_code=False).folder() == snapshot


def test_a_file_put_into_the_cache_is_refused(snapshot: Path) -> None:
    (snapshot / "more.py").write_text("put")
    refused(snapshot, COMMIT, "more.py: is no link to a file that was fetched")
    (snapshot / "more.py").unlink()
    (snapshot / "more.py").symlink_to(snapshot.parents[2])
    refused(snapshot, COMMIT, "more.py: is no link to a file that was fetched")


def test_a_branch_with_the_name_of_a_hash_is_found_out(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    with pytest.raises(ConfigError, match=f"it is the snapshot of commit {COMMIT}"):
        hub(revision="f" * 40).folder()


@pytest.mark.parametrize("trusted", [True, False])
def test_python_files_are_fetched_only_where_they_are_trusted(
    snapshot: Path, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **named: asked.append(named) or str(snapshot))
    hub(trust_remote_code=trusted).folder()
    (call,) = asked
    assert call["revision"] == COMMIT
    assert ("*.py" in call["allow_patterns"]) is trusted


def test_a_copy_has_to_be_of_the_origin_s_files(checkout: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "code.py").write_text("one")
    (copy / "own.json").write_text("{}")
    check_copied(copy, checkout / "model")
    (copy / "more.py").write_text("more")
    with pytest.raises(ConfigError, match=literally(f"more.py: is not a file of {checkout / 'model'}")):
        check_copied(copy, checkout / "model")


def test_many_differences_are_counted(checkout: Path) -> None:
    commit = commit_all(checkout)
    for number in range(30):
        (checkout / f"more{number:02}.py").touch()
    with pytest.raises(ConfigError) as raised:
        check_pinned(checkout, commit)
    assert len(raised.value.problems) == 23
    assert raised.value.problems[-2] == "  and 10 more"
