from collections.abc import Callable
from pathlib import Path

import pytest

from vlmft.config.app import Composition
from vlmft.config.sweep import JobRecord, folder_given
from vlmft.errors import DataError, InterruptedRunError, PreemptedError

from .conftest import Main, Typed, write

Run = Callable[..., Typed]


@pytest.mark.parametrize(
    ("overrides", "given"),
    [
        ((), None),
        (("run.dir=x",), "run.dir"),
        (("+run.dir=x",), "run.dir"),
        (("run.dirs=x", "a='run.dir=x'"), None),
    ],
)
def test_the_users_folder_is_recognised(overrides: tuple[str, ...], given: str | None) -> None:
    found = folder_given(overrides)
    assert (found and found.key_or_group) == given


def test_each_job_has_a_numbered_folder_below_run_dir(typed: Run) -> None:
    result = typed("-m", "model=tiny,large", "run.dir=all")
    folder = Path("all").absolute()
    assert result.code == 0
    assert [c.run_dir for c in result.compositions] == [folder / "0", folder / "1"]
    assert [specs.run.dir for specs in result.specs] == [str(folder / "0"), str(folder / "1")]
    assert [(c.sweep_job, c.run_dir_given) for c in result.compositions] == [(0, True), (1, True)]
    assert [c.choices["model"] for c in result.compositions] == ["tiny", "large"]
    assert f"dir: {folder / '1'}" in result.compositions[1].portable
    assert result.sweeps == [
        (
            folder,
            [
                JobRecord(0, ("model=tiny", "run.dir=all"), folder / "0", 0),
                JobRecord(1, ("model=large", "run.dir=all"), folder / "1", 0),
            ],
        )
    ]
    assert [path.name for path in folder.iterdir()] == ["multirun.yaml"]


def test_all_jobs_share_the_sweeps_folder_though_run_dir_names_what_is_swept(typed: Run) -> None:
    result = typed("-m", "model=large,tiny")
    (folder,) = {c.run_dir.parent for c in result.compositions}
    assert folder.name.endswith("-tiny")  # what the sweep as a whole would choose
    assert [specs.run.name for specs in result.specs] == ["large", "tiny"]
    assert [path.name for path in Path("runs").iterdir()] == [folder.name]


def test_a_failing_job_does_not_end_the_others(typed: Run) -> None:
    def job(specs: Main, composition: Composition) -> int:
        if specs.seed == 2:
            raise DataError("a.json: is no list", "b.json: is no list")
        if specs.seed == 3:
            raise RuntimeError("out of luck")
        if specs.seed == 4:
            raise SystemExit(9)
        return 0

    result = typed("-m", "seed=1,2,3,4,5", "run.dir=s", job=job)
    assert [record.exit_code for record in result.sweeps[0][1]] == [0, 2, 1, 9, 0]
    assert result.code == 2
    assert result.err.startswith("error: a.json: is no list\nerror: b.json: is no list\nTraceback")
    assert "RuntimeError: out of luck" in result.err


def test_a_wrong_value_fails_its_own_job_only(typed: Run) -> None:
    result = typed("-m", "seed=1,x,3", "run.dir=s")
    assert [record.exit_code for record in result.sweeps[0][1]] == [0, 2, 0]
    assert [specs.seed for specs in result.specs] == [1, 3]


@pytest.mark.parametrize(
    ("end", "code"),
    [(KeyboardInterrupt(), 130), (InterruptedRunError("stopped"), 130), (PreemptedError("SIGTERM"), 75), (75, 75)],
)
def test_an_interrupt_or_preemption_ends_the_sweep(typed: Run, end: BaseException | int, code: int) -> None:
    def job(specs: Main, composition: Composition) -> int:
        if specs.seed == 1:
            return 4
        if isinstance(end, int):
            return end
        raise end

    result = typed("-m", "seed=1,2,3", "run.dir=s", job=job)
    assert [record.exit_code for record in result.sweeps[0][1]] == [4, code]
    assert result.code == code


@pytest.mark.parametrize("existing", [[], ["s"], ["s/kept.txt"]])
def test_a_misspelt_option_leaves_nothing_behind(typed: Run, existing: list[str]) -> None:
    for name in existing:
        (write(Path(), {name: ""}) if "." in name else Path(name).mkdir())
    before = sorted(Path().rglob("*.txt"))
    result = typed("-m", "model=tiny,tinny", "run.dir=s/t/u")
    assert result.err == "error: model: there is no option tinny; did you mean tiny?\n"
    assert (result.code, result.specs, result.sweeps) == (2, [], [])
    assert sorted(Path().rglob("*.txt")) == before
    assert not Path("s/t").exists()
    assert Path("s").exists() == bool(existing)


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (
            ["run.dir=a,b"],
            "run.dir: names the folder of the whole sweep, with a folder for each job in it; give one value",
        ),
        (["run.dir=null", "seed=1"], "run.dir: should be the path of a folder; found None"),
        (["run.dir=${oc.env:VLMFT_TEST_UNSET}"], "run.dir: the environment variable VLMFT_TEST_UNSET is not set"),
    ],
)
def test_a_folder_that_cannot_be_is_an_error(typed: Run, argv: list[str], error: str) -> None:
    result = typed("-m", *argv)
    assert (result.code, result.err) == (2, f"error: {error}\n")
    assert list(Path().iterdir()) == []


def test_a_sweep_without_run_dir_has_a_folder_of_hydras_kind(typed: Run, home: Path) -> None:
    text = (home / "conf/main.yaml").read_text()
    (home / "conf/main.yaml").write_text(text.replace("  dir: runs", "  where: runs"))
    result = typed("-m", "seed=1")
    assert result.code == 2  # the schema of these tests requires run.dir
    assert result.sweeps[0][0].relative_to(Path.cwd()).parts[0] == "multirun"


def test_an_error_in_the_final_table_is_reported(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vlmft.config.app import run_app
    from vlmft.errors import StorageError

    def sweep_done(folder: Path, records: list[JobRecord]) -> None:
        raise StorageError("summary.csv: the disk is full")

    code = run_app("main", Main, lambda specs, composition: 0, sweep_done, ["-m", "seed=1", "run.dir=s"], home)
    assert (code, capsys.readouterr().err) == (5, "error: summary.csv: the disk is full\n")
