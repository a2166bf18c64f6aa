"""Real processes: small children that record what they see, and drivers that are signalled and killed."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from vlmft import launch
from vlmft.errors import ConfigError
from vlmft.launch import RanksExit, count_devices, joined, run_ranks

# A rank that answers signals: it notes them, announces itself, and leaves with the code of its plan.
RANK = """
import json, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(os.environ["FOLDER"])
rank = os.environ["RANK"]
plan = json.loads(os.environ["PLAN"])[int(rank) % len(json.loads(os.environ["PLAN"]))]
def note(number, frame):
    with open(folder / f"signals{rank}", "a") as file:
        file.write(signal.Signals(number).name + "\\n")
    if plan["on_signal"] is not None:
        sys.exit(plan["on_signal"])
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    if plan.get("handles", True):
        signal.signal(number, note)
if plan.get("binds"):
    from vlmft.launch import bind_to_parent
    bind_to_parent()
if plan.get("loader"):
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    loader = subprocess.Popen([sys.executable, "-S", "-c", stubborn])
    (folder / f"loader{rank}").write_text(str(loader.pid))
(folder / f"ready{rank}.tmp").write_text(str(os.getpid()))
os.rename(folder / f"ready{rank}.tmp", folder / f"ready{rank}")
end = time.monotonic() + 60
while time.monotonic() < end:
    time.sleep(0.02)
    if (folder / f"go{rank}").exists():
        os._exit(plan["code"])
"""
DRIVER = """
import dataclasses, json, os, signal, sys
signal.signal(signal.SIGHUP, getattr(signal, os.environ.get("HANGUP", "SIG_DFL")))  # not what the tests run under
from vlmft.launch import run_ranks
folder, ranks, timeout_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ended = run_ranks([sys.executable, "-S", "-c", os.environ["RANK_CODE"]], ranks, {"FOLDER": folder}, timeout_s)
print(json.dumps(dataclasses.asdict(ended)))
sys.exit(ended.exit_code)
"""


def until(condition: Callable[[], object], what: str, timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s in vain until {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Driver:
    """A driver in a process of its own, whose ranks say when they can be signalled."""

    def __init__(self, folder: Path, plan: list[dict[str, object]], ranks: int, timeout_s: float) -> None:
        self.folder = folder
        self.ranks = ranks
        plan = [{"on_signal": None, "code": 0, **rank} for rank in plan]
        env = {
            **os.environ,
            "PLAN": json.dumps(plan),
            "RANK_CODE": RANK,
            "PYTHONPATH": str(Path(launch.__file__).parents[1]),
        }
        env = {key: value for key, value in env.items() if key not in ("RANK", "WORLD_SIZE")}
        command = [sys.executable, "-c", DRIVER, str(folder), str(ranks), str(timeout_s)]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
        until(lambda: all((folder / f"ready{rank}").exists() for rank in range(ranks)), "every rank is ready")
        self.pids = [int((folder / f"ready{rank}").read_text()) for rank in range(ranks)]
        self.pids += [int(path.read_text()) for path in folder.glob("loader*")]

    def go(self, rank: int) -> None:
        (self.folder / f"go{rank}").touch()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def seen(self, rank: int) -> list[str]:
        path = self.folder / f"signals{rank}"
        return path.read_text().split() if path.exists() else []

    def end(self) -> dict[str, object]:
        output, _ = self.process.communicate(timeout=20)
        ended: dict[str, object] = json.loads(output)
        assert self.process.returncode == ended["exit_code"]
        assert [pid for pid in self.pids if alive(pid)] == [], "processes outlived the driver"
        return ended

    def clear(self) -> None:
        for pid in [self.process.pid, *self.pids]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def make(*plan: dict[str, object], ranks: int = 2, timeout_s: float = 20.0) -> Driver:
        drivers.append(Driver(tmp_path, list(plan), ranks, timeout_s))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.clear()


def run(code: str, ranks: int = 1, env: dict[str, str] | None = None, timeout_s: float = 5.0) -> RanksExit:
    return run_ranks([sys.executable, "-S", "-c", textwrap.dedent(code)], ranks, env or {}, timeout_s)


def test_ranks_get_their_places(tmp_path: Path) -> None:
    code = """
    import json, os, pathlib, sys
    seen = {"pgid": os.getpgid(0), "pid": os.getpid(), "stdin": sys.stdin.read(), **os.environ}
    pathlib.Path(os.environ["FOLDER"], os.environ["RANK"]).write_text(json.dumps(seen))
    """
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)]
    ended = run(code, ranks=2, env={"FOLDER": str(tmp_path)})
    assert ended == RanksExit(0, None, "every rank ended with exit code 0", None)
    seen = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    for rank, environment in enumerate(seen):
        assert environment["RANK"] == environment["LOCAL_RANK"] == str(rank)
        assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "2"
        assert environment["MASTER_ADDR"] == "127.0.0.1"
        assert environment["PATH"] == os.environ["PATH"], "the driver's environment is passed on"
        assert environment["pgid"] == environment["pid"], "a rank leads its own group"
        assert environment["stdin"] == ""
    assert seen[0]["MASTER_PORT"] == seen[1]["MASTER_PORT"]
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)]


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 75, 130])
def test_exit_code_passes_through(code: int) -> None:
    assert run(f"import os; os._exit({code})") == RanksExit(code, 0, f"rank 0 ended with exit code {code}", None)


def test_death_by_signal_is_named() -> None:
    ended = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert ended == RanksExit(137, 0, "rank 0 was killed by signal SIGKILL", None)


def test_failing_rank_ends_the_others(tmp_path: Path) -> None:
    code = """
    import os, pathlib, signal, sys, time
    ready = pathlib.Path(os.environ["FOLDER"], "ready")
    if os.environ["RANK"] == "1":
        while not ready.exists(): time.sleep(0.01)
        sys.exit(3)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    ready.touch()
    time.sleep(60)
    """
    assert run(code, ranks=2, env={"FOLDER": str(tmp_path)}) == RanksExit(3, 1, "rank 1 ended with exit code 3", None)


def test_stated_cause_replaces_the_echo_of_a_lost_peer(tmp_path: Path) -> None:
    code = """
    import os, pathlib, signal, sys, time
    ready = pathlib.Path(os.environ["FOLDER"], "ready")
    if os.environ["RANK"] == "0":
        while not ready.exists(): time.sleep(0.01)
        sys.exit(1)  # "connection closed by peer"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    ready.touch()
    time.sleep(60)
    """
    assert run(code, ranks=2, env={"FOLDER": str(tmp_path)}) == RanksExit(4, 1, "rank 1 ended with exit code 4", None)


def test_rank_that_ignores_its_peers_failure_is_killed(tmp_path: Path) -> None:
    code = """
    import os, pathlib, signal, sys, time
    ready = pathlib.Path(os.environ["FOLDER"], "ready")
    if os.environ["RANK"] == "0":
        while not ready.exists(): time.sleep(0.01)
        sys.exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.touch()
    time.sleep(60)
    """
    began = time.monotonic()
    ended = run(code, ranks=2, env={"FOLDER": str(tmp_path)}, timeout_s=0.3)
    assert ended == RanksExit(1, 0, "rank 0 ended with exit code 1", None)
    assert time.monotonic() - began < 10


def test_leaving_alone_sends_no_signal_to_the_others(start: Callable[..., Driver]) -> None:
    driver = start({"code": 75}, {"code": 75, "on_signal": 9})
    driver.go(0)
    until(lambda: not alive(driver.pids[0]), "rank 0 has left")
    driver.go(1)
    ended = driver.end()
    assert (ended["exit_code"], driver.seen(1)) == (75, [])


@pytest.mark.parametrize("code", [1, 134])
def test_the_loss_of_a_peer_that_left_on_request_is_no_failure(start: Callable[..., Driver], code: int) -> None:
    driver = start({"code": 75}, {"code": code})
    driver.go(0)
    until(lambda: not alive(driver.pids[0]), "rank 0 has left")
    driver.go(1)
    ended = driver.end()
    assert (ended["exit_code"], ended["reason"]) == (75, "rank 0 ended with exit code 75")


@pytest.mark.parametrize("code", [3, 139])
def test_a_failure_that_no_lost_peer_explains_is_told(start: Callable[..., Driver], code: int) -> None:
    driver = start({"code": 75}, {"code": code})
    driver.go(0)
    until(lambda: not alive(driver.pids[0]), "rank 0 has left")
    driver.go(1)
    ended = driver.end()
    assert (ended["exit_code"], ended["reason"]) == (code, f"rank 1 ended with exit code {code}")


def test_the_others_are_told_when_one_left_alone(start: Callable[..., Driver]) -> None:
    """Somebody asked rank 0, and nobody rank 1, which is busy or waits for it."""
    driver = start({"code": 130}, {"on_signal": 75})
    driver.go(0)
    ended = driver.end()
    assert (ended["exit_code"], ended["reason"]) == (130, "rank 0 ended with exit code 130")
    assert driver.seen(1) == ["SIGTERM"]


def test_one_that_waits_for_a_peer_that_left_is_killed(start: Callable[..., Driver]) -> None:
    """In a collective it hears no signal."""
    driver = start({"code": 75}, {"on_signal": None}, timeout_s=0.4)
    driver.go(0)
    ended = driver.end()
    assert (ended["exit_code"], ended["reason"]) == (75, "rank 0 ended with exit code 75")


@pytest.mark.parametrize(
    ("sent", "seen", "code"),
    [
        (signal.SIGTERM, "SIGTERM", 75),
        (signal.SIGUSR1, "SIGUSR1", 75),
        (signal.SIGINT, "SIGINT", 130),
        (signal.SIGHUP, "SIGTERM", 75),
    ],
)
def test_signal_is_passed_on_once_to_every_rank(
    start: Callable[..., Driver], sent: signal.Signals, seen: str, code: int
) -> None:
    driver = start({"on_signal": code, "loader": True})
    driver.send(sent)
    driver.send(sent)
    ended = driver.end()
    assert ended["exit_code"] == code
    assert ended["signal_received"] == signal.Signals[seen]
    assert [driver.seen(rank) for rank in range(2)] == [[seen], [seen]]


def test_under_nohup_a_hangup_is_no_signal(start: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANGUP", "SIG_IGN")
    driver = start({"on_signal": 75})
    driver.send(signal.SIGHUP)
    driver.send(signal.SIGINT)
    ended = driver.end()
    assert ended["signal_received"] == signal.SIGINT
    assert [driver.seen(rank) for rank in range(2)] == [["SIGINT"], ["SIGINT"]]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_signal_before_the_rank_has_a_handler(start: Callable[..., Driver], sent: signal.Signals, code: int) -> None:
    driver = start({"handles": False}, ranks=1)
    driver.send(sent)
    assert driver.end()["exit_code"] == code


def test_stubborn_rank_is_killed_after_the_timeout(start: Callable[..., Driver]) -> None:
    driver = start({"on_signal": 75}, {"on_signal": None, "loader": True}, timeout_s=0.4)
    driver.send(signal.SIGTERM)
    ended = driver.end()
    assert ended["exit_code"] == 137
    assert ended["reason"] == "rank 1 had not ended 0.4 s after SIGTERM and was killed"
    assert driver.seen(1) == ["SIGTERM"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_second_signal_kills_at_once(start: Callable[..., Driver], sent: signal.Signals, code: int) -> None:
    driver = start({"loader": True}, timeout_s=60)
    driver.send(sent)
    until(lambda: driver.seen(0) and driver.seen(1), "the first signal has arrived")
    time.sleep(launch.ECHO_S)
    driver.send(sent)
    ended = driver.end()
    assert ended["exit_code"] == code
    assert str(ended["reason"]).endswith(f"was killed at once by a second {sent.name}")


def test_term_after_usr1_is_no_second_signal(start: Callable[..., Driver]) -> None:
    driver = start({"code": 75}, ranks=1)
    driver.send(signal.SIGUSR1)
    until(lambda: driver.seen(0) == ["SIGUSR1"], "the first signal has arrived")
    driver.send(signal.SIGTERM)
    until(lambda: driver.seen(0) == ["SIGUSR1", "SIGTERM"], "the second signal has arrived")
    driver.go(0)
    ended = driver.end()
    assert (ended["exit_code"], ended["signal_received"]) == (75, signal.SIGUSR1)


def test_loader_of_a_crashed_rank_is_gone(start: Callable[..., Driver]) -> None:
    driver = start({"loader": True}, ranks=1)
    os.kill(driver.pids[0], signal.SIGKILL)
    assert driver.end()["exit_code"] == 137


def test_killed_driver_leaves_nothing(start: Callable[..., Driver]) -> None:
    # Rank 0 leaves when told; rank 1 does not, and is killed with its loader.
    driver = start({"binds": True, "on_signal": 75}, {"binds": True, "loader": True}, timeout_s=0.3)
    driver.send(signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in driver.pids), "nothing is left")
    assert [driver.seen(rank) for rank in range(2)] == [["SIGTERM"], ["SIGTERM"]]


def test_bind_to_parent_does_nothing_without_a_driver() -> None:
    before = threading.active_count()
    launch.bind_to_parent()
    assert threading.active_count() == before


def test_works_outside_the_main_thread() -> None:
    results: list[RanksExit] = []
    thread = threading.Thread(target=lambda: results.append(run("import os; os._exit(5)")))
    thread.start()
    thread.join()
    assert results[0].exit_code == 5


def test_command_that_cannot_be_started() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        run_ranks(["/no-such-program"], 2, {}, 1.0)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert not joined()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="RANK is set in the environment but WORLD_SIZE is not"):
        joined()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert joined()
    monkeypatch.setenv("RANK", "")
    with pytest.raises(ConfigError, match="WORLD_SIZE is set in the environment but RANK is not"):
        joined()


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("NoDevFiles", 0),
        ("0", 1),
        ("2, 0", 2),
        ("0,-1,1", 1),
        ("0,9,1", 1),
        ("1,1", 0),
        ("GPU-8932f937-d72c", 1),
        ("MIG-a,MIG-b,MIG-c,MIG-d,MIG-e", 5),
    ],
)
def test_count_devices_by_environment(monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int) -> None:
    monkeypatch.setattr(launch, "_devices_present", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_devices() == count


def test_count_devices_asks_nvidia_smi_where_there_are_no_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "Path", lambda _: tmp_path)  # stands for /dev
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert count_devices() == 0
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho '  MIG 1g.5gb Device 0: (UUID: MIG-1)'\necho 'GPU 1: B'\n"
    )
    tool.chmod(0o755)
    assert count_devices() == 2
    tool.write_text("#!/bin/sh\necho 'GPU access blocked'\nexit 9\n")
    assert count_devices() == 0
    for name in ("nvidia0", "nvidia1", "nvidia11", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert count_devices() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert count_devices() == 2
