from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmft.config.app import run_app
from vlmft.config.messages import explain
from vlmft.errors import DataError

from .conftest import Main


def test_a_fault_of_the_program_is_not_explained_away() -> None:
    assert explain(RuntimeError("bug")) is None
    assert explain(AttributeError("bug")) is None


def test_our_own_error_is_found_below_what_wraps_it() -> None:
    error = DataError("a", "b")
    wrapped = HydraException("wrapped")
    wrapped.__cause__ = error
    assert explain(wrapped) is error

    def resolver() -> None:
        raise error

    OmegaConf.register_new_resolver("vlmft_test_raise", resolver, replace=True)
    with pytest.raises(OmegaConfBaseException) as caught:
        OmegaConf.to_container(OmegaConf.create({"a": "${vlmft_test_raise:}"}), resolve=True)
    assert explain(caught.value) is error


def test_the_search_path_and_notes_on_types_are_left_out() -> None:
    found = explain(ConfigCompositionException("first\n\n  second\n    full_key: a.b\nSearch path:\n\tmain"))
    assert found is not None and found.problems == ("first second",)


def test_an_error_without_a_text_has_its_kind() -> None:
    found = explain(ConfigCompositionException())
    assert found is not None and found.problems == ("ConfigCompositionException",)


def test_a_fault_while_composing_shows_a_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr("vlmft.config.app.load_registry", broken)
    assert run_app("main", Main, lambda specs, composition: 0, None, [], home) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "RuntimeError: bug" in err
