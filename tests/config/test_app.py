import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vlmft.config.app import Composition, load_config
from vlmft.errors import ConfigError, OutOfMemoryError

from .conftest import Main, Typed, write

Run = Callable[..., Typed]
SECRET = "hunter2-canary"


def test_a_run_gets_specs_and_what_belongs_to_them(typed: Run) -> None:
    result = typed("optim.lr=2e-4", "dataset=A", "+extra=fast")
    (specs,), (composition,) = result.specs, result.compositions
    assert (result.code, result.err) == (0, "")
    assert (specs.optim.lr, specs.seed) == (2e-4, 7)
    assert composition.overrides == ("optim.lr=2e-4", "dataset=A", "+extra=fast")
    assert composition.choices == {
        "model": "tiny",
        "dataset": "A",
        "metric": "none",
        "reward": "none",
        "optim": "adam",
        "extra": "fast",
    }
    assert composition.run_dir == Path(specs.run.dir)
    assert composition.run_dir.is_absolute() and composition.run_dir.name.endswith("-tiny")
    assert (composition.sweep_job, composition.run_dir_given) == (None, False)
    portable = yaml.safe_load(composition.portable)
    assert portable["run"] == {"name": "tiny", "dir": str(composition.run_dir)}
    assert portable["optim"] == {"lr": 2e-4, "betas": [0.9, 0.95]}


def test_a_run_makes_no_file_or_folder(typed: Run) -> None:
    typed()
    typed("run.dir=given/here")
    assert list(Path().iterdir()) == []


def test_the_users_folder_is_made_absolute(typed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    (given,) = typed("run.dir=some/where").compositions
    assert (given.run_dir, given.run_dir_given) == (Path("some/where").absolute(), True)
    assert typed("run.dir='~/x'").compositions[0].run_dir == Path("/home/somebody/x")
    assert typed(r"run.dir='/odd/\${x}'").specs[0].run.dir == "/odd/${x}"


@pytest.mark.parametrize(
    ("argv", "errors"),
    [
        (["model=tinny"], ["model: there is no option tinny; did you mean tiny?"]),
        (["model=zzz"], ["model: there is no option zzz; known: large, tiny"]),
        (["optim.lrr=1"], ["optim.lrr: unknown key; did you mean lr?"]),
        (["+optim.lrr=1"], ["optim.lrr: unknown key; did you mean lr?"]),
        (["++optim.lrr=1"], ["optim.lrr: unknown key; did you mean lr?"]),
        (["+optim={lrr: 1}"], ["optim.lrr: unknown key; did you mean lr?"]),
        (["optimm.lr=1"], ["optimm: unknown key; did you mean optim?"]),
        (["datset=A"], ["datset: unknown key; did you mean dataset?"]),
        (["+zzz=1"], ["zzz: unknown key; known here: model, dataset, metric, reward, optim, run, seed, token"]),
        (
            ["seed=x", "optim.lr=fast"],
            [
                "optim.lr: Input should be a valid number, unable to parse string as a number (found 'fast')",
                "seed: Input should be a valid integer, unable to parse string as an integer (found 'x')",
            ],
        ),
        (["optim.betas=[1"], ["optim.betas=[1: cannot be read: no viable alternative at input '[1'"]),
        (["seed"], ["seed: cannot be read: "]),
        (["seed=1,2"], ["seed=1,2: several values are a sweep and need -m; a list is written seed=[1,2]"]),
        (["seed=???"], ["seed: a value is required (seed=...)"]),
        (["seed=${sed}"], ["seed: Interpolation key 'sed' not found"]),
        (["~seed"], ["seed: Field required"]),
        (["extra=fast"], ["Could not override 'extra'. No match in the defaults list."]),
        (["run.dir=null"], ["run.dir: should be the path of a folder; found None"]),
        (["run=null"], ["run: Input should be a valid dictionary or instance of Run (found None)"]),
        (
            ["token=${oc.env:VLMFT_TEST_UNSET}", "seed=${token}"],
            [
                "seed: the environment variable VLMFT_TEST_UNSET is not set",
                "token: the environment variable VLMFT_TEST_UNSET is not set",
            ],
        ),
        (["--config-dir", "/nowhere/at/all"], ["Additional config directory '/nowhere/at/all' not found"]),
        (["--config-name", "nomain"], ["there is no config named nomain"]),
        (["--resolve"], ["The --resolve flag can only be used in conjunction with --cfg or --help"]),
        (["--experimental-rerun=x.pickle"], ["--experimental-rerun: is not supported, as it would load a pickle"]),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(typed: Run, argv: list[str], errors: list[str]) -> None:
    result = typed(*argv)
    lines = result.err.splitlines()
    assert len(lines) == len(errors), result.err
    for line, error in zip(lines, errors, strict=True):
        assert line.startswith(f"error: {error}")
    assert (result.code, result.out, result.specs) == (2, "", [])
    assert list(Path().iterdir()) == []


def test_an_unknown_option_argument_is_argparses_error(typed: Run) -> None:
    result = typed("--bad")
    assert result.code == 2
    assert "python -m vlmft.main: error: unrecognized arguments: --bad" in result.err


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("width: [8\n", "tiny.yaml:2:1: bad YAML: "),
        ("width: 8\nwidth: 9\n", "tiny.yaml:2:1: bad YAML: found duplicate key width"),
        ("width: ${oc.env:X\n", "error: "),
        ("defaults: {a: b}\n", "Invalid defaults list in 'model/tiny', defaults must be a list"),
        ("defaults: [{deep: gone}]\n", "model/deep: there is no option gone (chosen in model/tiny)"),
        ("_target_: os.system\nwidth: 1\n", "model: _target_ 'os.system' is not allowed"),
    ],
)
def test_a_bad_option_file_is_named(typed: Run, home: Path, text: str, error: str) -> None:
    write(home, {"conf/model/tiny.yaml": text})
    result = typed()
    assert result.code == 2
    assert error in result.err and "Traceback" not in result.err
    assert len(result.err.splitlines()) == 1


def test_what_the_job_raises_ends_the_command(typed: Run) -> None:
    def out_of_memory(specs: Main, composition: Composition) -> int:
        raise OutOfMemoryError("the device is full", "lower batching.max_tokens")

    result = typed(job=out_of_memory)
    assert (result.code, result.err) == (4, "error: the device is full\nerror: lower batching.max_tokens\n")

    def broken(specs: Main, composition: Composition) -> int:
        raise KeyError("oops")

    result = typed(job=broken)
    assert result.code == 1
    assert result.err.startswith("Traceback") and "KeyError: 'oops'" in result.err

    def interrupted(specs: Main, composition: Composition) -> int:
        raise KeyboardInterrupt

    assert typed(job=interrupted).code == 130
    assert typed(job=lambda specs, composition: 75).code == 75


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_hydras_variable_is_the_users_during_the_job_and_after(
    typed: Run, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    if before is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    seen = []

    def job(specs: Main, composition: Composition) -> int:
        seen.append(os.environ.get("HYDRA_FULL_ERROR"))
        return 0

    typed(job=job)
    result = typed("optim.lrr=1")
    assert seen == [before] and os.environ.get("HYDRA_FULL_ERROR") == before
    assert ("Traceback" in result.err) == (before == "1")
    assert result.err.endswith("error: optim.lrr: unknown key; did you mean lr?\n")


@pytest.mark.parametrize(
    "words",
    [
        ["token=${oc.env:CANARY}"],
        ["token='key ${oc.env:CANARY}'"],
        ["+run.key=${oc.env:CANARY}", "token=${run.key}"],
        ["token='${oc.decode:${oc.env:CANARY}}'"],
        ["token='${oc.env:VLMFT_TEST_UNSET,${oc.env:CANARY}}'"],
        ["seed=${oc.env:CANARY}"],
        ["-m", "token=${oc.env:CANARY}", "seed=1,2", "run.dir=s"],
    ],
)
def test_no_secret_is_written_or_printed(typed: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setenv("CANARY", SECRET)
    result = typed(*words)
    for composition in result.compositions:
        assert SECRET not in composition.portable
        assert SECRET not in "".join(composition.overrides)
    assert SECRET not in result.err + result.out
    assert all(SECRET not in path.read_text() for path in Path().rglob("*") if path.is_file())
    if result.specs:
        assert SECRET in str(result.specs[0].token)


def test_what_a_run_wrote_is_what_a_rank_reads(typed: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", SECRET)
    result = typed("dataset=A+B", "token='${oc.env:CANARY}/${run.name}/${now:%S}'")
    path = Path("config.yaml").absolute()
    path.write_text(result.compositions[0].portable)
    assert load_config(path, Main, home) == result.specs[0]
    monkeypatch.delenv("CANARY")
    with pytest.raises(ConfigError, match="token: the environment variable CANARY is not set"):
        load_config(path, Main, home)


def test_a_rank_checks_what_it_reads(home: Path) -> None:
    path = write(Path(), {"config.yaml": "optim: {lrr: 1}\n"}) / "config.yaml"
    with pytest.raises(ConfigError, match=r"optim\.lrr: unknown key; did you mean lr\?"):
        load_config(path, Main, home)


def test_help_shows_usage_groups_and_config(typed: Run) -> None:
    result = typed("--help")
    assert result.code == 0
    for part in (
        "python -m vlmft.main dataset=A+B*2+C@0.25",
        "dataset: A, B, mix, sample_qa\n",
        "model: large, tiny\n",
        "seed: 0\n",
        'eval "$(vlmft-main -sc install=bash)"',
    ):
        assert part in result.out


def test_the_config_is_shown_without_running(typed: Run) -> None:
    result = typed("--cfg", "job", "dataset=A*2")
    assert result.code == 0 and result.specs == []
    shown = yaml.safe_load(result.out)
    assert shown["dataset"]["A"]["factor"] == 2.0
    assert shown["run"]["dir"] == "runs/${now:%Y-%m-%d}-${run.name}"
    assert yaml.safe_load(typed("--cfg", "job", "--resolve").out)["run"]["name"] == "tiny"
    assert "main" in typed("--info", "defaults").out


def test_composing_imports_nothing_heavy(home: Path) -> None:
    code = """
import sys
from pathlib import Path
from vlmft.config.app import run_app

code = run_app("main", None, None, None, ["--cfg", "job", "dataset=A+B"], Path(sys.argv[1]))
heavy = {"torch", "transformers", "PIL", "peft", "trl", "numpy", "pydantic", "rich"} & set(sys.modules)
sys.exit(str(heavy) if heavy else code)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
