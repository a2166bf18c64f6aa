"""A command that is killed, or told to stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.annotation.conftest import Typed
from tests.annotation.making import CAPTION, OK, Asked, Reply, Server, counts, lines, row, serving, words


def start(folder: Path, server: Server, *more: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    command = [sys.executable, "-m", "vlmft.annotate", *words(server, "annotator.concurrency=2", *more)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_command_leaves_whole_lines_and_goes_on(typed: Typed, images: Path, tmp_path: Path) -> None:
    def answer(asked: Asked) -> Reply:
        return Reply(CAPTION, delay_s=0 if asked.grey in (0, 50) else 60)

    with serving(answer) as server:
        process = start(tmp_path, server)
        until(lambda: len(server.asked) == 4)
        until(lambda: Path("data/metadata.jsonl").read_text().count("\n") == 2)
        code, _, err = typed(*words(server))  # beside the other
        assert (code, err) == (
            2,
            f"error: {tmp_path}/data/metadata.jsonl: another command is writing it; wait for it, or stop it\n",
        )
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert sorted(lines(), key=str) == [row(0), row(1)]
    with serving(lambda asked: OK) as server:
        assert typed(*words(server))[0] == 0
        assert sorted(asked.grey for asked in server.asked) == [100, 150]
    assert lines() == [row(number) for number in range(4)]


def test_ctrl_c_keeps_what_came(typed: Typed, images: Path, tmp_path: Path) -> None:
    def answer(asked: Asked) -> Reply:
        return Reply(CAPTION, delay_s=0 if asked.grey != 100 else 60)

    with serving(answer) as server:
        process = start(tmp_path, server)
        until(lambda: Path("data/metadata.jsonl").exists())
        until(lambda: Path("data/metadata.jsonl").read_text().count("\n") == 3)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert time.monotonic() - began < 30
    assert process.returncode == 130
    kept = tmp_path / "data/metadata.jsonl"
    assert err == f"error: interrupted; 3 new captions are kept in {kept}, and the same command goes on\n"
    assert counts(out) == [0, 3, 0, 1]
    assert sorted(lines(), key=str) == [row(0), row(1), row(3)]
