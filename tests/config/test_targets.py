import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmft.config.spec import Spec
from vlmft.config.targets import resolve_target

FORBIDDEN = ["os.system", "torch.load", "pathlib.Path.write_text", "torch.utils.collect_env.run", "builtins.eval"]


@pytest.mark.parametrize("target", FORBIDDEN)
def test_a_target_outside_the_packages_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=f"_target_ '{target}' is not allowed: targets may come from vlmft"):
        resolve_target(target, Spec)


def test_refusing_a_target_does_not_import_it() -> None:
    code = f"""
import sys
from vlmft.config.spec import Spec, validate
from vlmft.errors import ConfigError

class Base(Spec, abstract=True): pass
class Main(Spec): items: dict[str, Base]

try:
    validate(Main, {{"items": {{t: {{"_target_": t}} for t in {FORBIDDEN}}}}})
except ConfigError as error:
    print(len(error.problems))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(FORBIDDEN)), "False"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("vlmft.config.roots.os.system", "is not allowed: there is no module 'vlmft.config.roots.os'"),
        ("vlmft.config.sweep.Path", "is not allowed: it is no Spec"),
        ("vlmft.config.spec.BaseModel", "is not allowed: it is no Spec"),
        ("vlmft.config.spec.validate", "is not allowed: it is no Spec"),
        ("vlmft.config.spec.Spek", r"vlmft\.config\.spec has no 'Spek'; did you mean Spec\?"),
        ("vlmft.konfig.spec.Spec", "there is no module 'vlmft.konfig'"),
        ("Spec", "should be a dotted path to a class"),
        (3, "should be a dotted path to a class"),
        ("", "should be a dotted path to a class"),
        (".vlmft.Spec", "is not allowed"),
        ("vlmft..Spec", "is not allowed"),
    ],
)
def test_a_target_that_is_no_spec_is_refused(target: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_target(target, Spec)


def test_a_module_that_lacks_what_it_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmft.config import targets

    name = f"needy_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(targets, "_allowed_packages", {name})
    with pytest.raises(ValueError, match=f"{name} cannot be imported: No module named 'nowhere_at_all'"):
        resolve_target(f"{name}.X", Spec)


@given(st.text(st.characters(codec="ascii"), max_size=20))
def test_any_text_is_a_spec_or_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="_target_"):
        resolve_target(f"vlmft.{text}", Spec)
