from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vlmft.config.portable import escape, resolve, resolve_key
from vlmft.errors import ConfigError

SECRET = "hunter2-canary"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SECRET": SECRET, "COUNT": "3", "SCRATCH": "/scratch-canary", "WHICH": "b"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)
    OmegaConf.register_new_resolver("clock", lambda pattern: f"at-{pattern}", replace=True)


def round_trip(values: dict[str, Any]) -> dict[str, Any]:
    """Resolve, check against OmegaConf's own answer and against reading the text back; return the text's tree."""
    cfg = OmegaConf.create(values)
    OmegaConf.set_struct(cfg, True)
    raw, truth = OmegaConf.to_container(cfg), OmegaConf.to_container(cfg, resolve=True)
    resolved = resolve(cfg)
    assert OmegaConf.to_container(cfg) == raw
    assert resolved.values == truth
    again = OmegaConf.create(resolved.text)
    OmegaConf.clear_resolver("clock")  # the ranks have neither clock nor Hydra
    assert OmegaConf.to_container(again, resolve=True) == truth
    assert "canary" not in resolved.text
    tree = OmegaConf.to_container(again)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


@pytest.mark.parametrize(
    ("written", "portable"),
    [
        ("${oc.env:SECRET}", "${oc.env:SECRET}"),
        ("${token}", "${token}"),
        ("${deep.token}", "${deep.token}"),
        ("Bearer ${oc.env:SECRET}", "Bearer ${oc.env:SECRET}"),
        ("${plain}:${token}:${plain}", "text:${token}:text"),
        ("${oc.env:UNSET,none}", "${oc.env:UNSET,none}"),
        ("${oc.env:UNSET,${plain}}", "${oc.env:UNSET,'text'}"),
        ("${oc.env:UNSET,${clock:now}}", "${oc.env:UNSET,'at-now'}"),
        ("${oc.env:UNSET,'say ${clock:now}'}", "${oc.env:UNSET,'say at-now'}"),
        ("${oc.env:UNSET,${oc.env:SECRET}}", "${oc.env:UNSET,${oc.env:SECRET}}"),
        ("${oc.env:UNSET,${oc.env:UNSET,${clock:now}}}", "${oc.env:UNSET,${oc.env:UNSET,'at-now'}}"),
        ("${oc.decode:${oc.env:COUNT}}", "${oc.decode:${oc.env:COUNT}}"),
        ("${oc.env:SCRATCH}/${clock:day}/x", "${oc.env:SCRATCH}/at-day/x"),
        ("${table.${oc.env:WHICH}}", "${table.${oc.env:WHICH}}"),
        ("${oc.select:token}", "${oc.select:token}"),
        ("${deep}", "${deep}"),
        ("${oc.dict.values:deep}", "${oc.dict.values:deep}"),
        ("${plain}", "text"),
        ("${number}", 1e-5),
        ("${nothing}", None),
        ("${table}", {"a": 1, "b": 2}),
        ("${clock:now}", "at-now"),
        (r"\${plain}", r"\${plain}"),
        (r"${odd}", "\\${x}\\"),
        (r"\\${plain}", r"\text"),
        (r"\\${token}", r"\\${token}"),
        (r"${odd}${token}", r"\${x}\\${token}"),
        ("${oc.env:UNSET,${odd}}", r"${oc.env:UNSET,'\${x}\\'}"),
        ("${oc.env:UNSET,[1,${plain}]}", "${oc.env:UNSET,[1,'text']}"),
        ("1e-4", "1e-4"),
    ],
)
def test_only_what_needs_the_environment_stays_a_reference(written: str, portable: Any) -> None:
    tree = round_trip(
        {
            "value": written,
            "listed": [1, written],
            "token": "${oc.env:SECRET}",
            "deep": {"token": "${..token}"},
            "plain": "text",
            "number": 1e-5,
            "nothing": None,
            "table": {"a": 1, "b": 2},
            "odd": "\\${x}\\",
        }
    )
    assert tree["value"] == tree["listed"][1] == portable


def test_relative_references_start_from_their_own_place() -> None:
    tree = round_trip({"a": {"b": "${.c}-${..d}", "c": "x", "e": ["${..c}", "${oc.env:COUNT}-${...d}"]}, "d": "y"})
    assert tree["a"] == {"b": "x-y", "c": "x", "e": ["x", "${oc.env:COUNT}-y"]}


@given(st.text(st.sampled_from("\\${}'ab,: "), max_size=12), st.booleans())
def test_any_text_survives_beside_a_reference(text: str, quoted: bool) -> None:
    cfg = OmegaConf.create({"text": escape(text), "inner": "${oc.env:HOME}"})
    cfg.both = ("${oc.env:NOT_SET_ANYWHERE,${text}}" if quoted else "${text}") + "${inner}"
    resolved = resolve(cfg)
    assert resolved.values["text"] == text
    assert resolved.values["both"] == text + resolved.values["inner"]
    again = OmegaConf.create(resolved.text)
    assert OmegaConf.to_container(again, resolve=True) == resolved.values


def test_every_unresolvable_key_is_listed() -> None:
    cfg = OmegaConf.create(
        {"a": {"b": "${oc.env:UNSET}"}, "c": "${a.b}", "d": "???", "e": ["${gone.key}"], "f": "x ${oc.env:UNSET_TOO}"}
    )
    with pytest.raises(ConfigError) as caught:
        resolve(cfg)
    assert caught.value.problems == (
        "a.b: the environment variable UNSET is not set",
        "c: the environment variable UNSET is not set",
        "d: a value is required (d=...)",
        "e[0]: Interpolation key 'gone.key' not found",
        "f: the environment variable UNSET_TOO is not set",
    )


def test_an_error_in_a_secret_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", f"[{SECRET}")
    with pytest.raises(ConfigError, match=r"^a: what the environment gives cannot be used here$"):
        resolve(OmegaConf.create({"a": "${oc.decode:${oc.env:SECRET}}"}))


def test_a_message_about_a_secret_is_redacted() -> None:
    resolved = resolve(OmegaConf.create({"a": "${oc.env:SECRET}"}))
    assert resolved.redact(f"a: is no number (found {SECRET!r})") == "a: is no number (found '${oc.env:SECRET}')"
    assert SECRET not in repr(resolved).replace(repr(resolved.values), "")


def test_the_environment_is_read_as_usual_afterwards() -> None:
    resolve(OmegaConf.create({"a": "${oc.env:SECRET}"}))
    assert OmegaConf.create({"a": "${oc.env:SECRET}"}).a == SECRET
    assert not OmegaConf.has_resolver("vlmft.identity")


def test_one_key_is_resolved_alone() -> None:
    cfg = OmegaConf.create({"run": {"dir": "${oc.env:SCRATCH}/x"}, "other": "???"})
    assert resolve_key(cfg, "run", "dir") == "/scratch-canary/x"
    assert resolve_key(cfg, "run", "name") is None
    assert resolve_key(cfg, "gone", "dir") is None


def test_text_is_yaml_that_a_file_can_hold(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"name": "1e-4", "unicode": "ä – 犬", "none": None, "nested": {"empty": {}, "list": []}})
    (tmp_path / "config.yaml").write_text(resolve(cfg).text, encoding="utf-8")
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")) == OmegaConf.to_container(cfg)
