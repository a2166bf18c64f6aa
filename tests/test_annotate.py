"""`python -m vlmft.annotate` as typed; what it does is in tests/annotation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.annotation.making import CAPTION, DASHCAM, OK, save_picture, serving, words
from tests.e2e.conftest import typed_in
from vlmft.annotate import AnnotateConfig
from vlmft.annotation import OpenAI, Placeholders
from vlmft.data.sources.captions import CaptionsDataset

CONF = Path(__file__).parents[1] / "conf"
HEAVY = {"torch", "transformers", "PIL", "av", "numpy", "datasets", "httpx", "jsonschema", "rich"}


def test_each_value_stands_in_its_yaml() -> None:
    shown = yaml.safe_load((CONF / "annotate.yaml").read_text())
    names = {field.alias or name for name, field in AnnotateConfig.model_fields.items()}
    assert set(shown) - {"defaults", "hydra"} == names - {"annotator"}
    for name, kind in {"none": Placeholders, "openai": OpenAI}.items():
        shown = yaml.safe_load((CONF / f"annotator/{name}.yaml").read_text())
        assert set(shown) - {"_target_"} == set(kind.model_fields)
    fields = [*AnnotateConfig.model_fields.values(), *OpenAI.model_fields.values()]
    assert all(field.is_required() for field in fields)


@pytest.mark.parametrize("module", ["annotate", "clips"])
@pytest.mark.parametrize("words", [("--help",), ("--cfg", "job")])
def test_what_is_answered_without_work_loads_nothing_heavy(module: str, words: tuple[str, ...]) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
        f"sys.argv[1:] = {list(words)!r}\n"
        f"from vlmft.{module} import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (f"python -m vlmft.{module} " if words == ("--help",) else "out: ???") in done.stdout
    assert set(done.stderr.split()) & HEAVY == set()


@pytest.mark.parametrize("ends", [True, False], ids=["all", "some"])
def test_the_exit_code_says_whether_all_are_annotated(tmp_path: Path, ends: bool) -> None:
    """And training's own reader takes what was written."""
    save_picture(tmp_path / "data/images/a.png")
    if not ends:
        (tmp_path / "data/images/b.png").write_bytes(b"")
    with serving(lambda asked: OK) as server:
        ended = typed_in(tmp_path, *words(server), module="vlmft.annotate", NO_PROXY="127.0.0.1")
    assert ended.code == (0 if ends else 2), ended.err
    (line,) = (tmp_path / "data/metadata.jsonl").read_text().splitlines()
    assert json.loads(line) == {"image": "images/a.png", **CAPTION}
    sample = CaptionsDataset(data_path=tmp_path / "data").open("mine")[0]
    assert json.loads(sample.messages[-1].text) == CAPTION
    assert (tmp_path / "data/schema.json").read_bytes() == DASHCAM.read_bytes()
