"""Session-wide: offline, one thread a process, signals as in a terminal, and one cache folder for models and data."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# Before anything imports torch or huggingface_hub, and for the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell starts in the background ignores Ctrl-C, and under nohup hang-ups; so would all that tests start.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a cache folder of its own; xdist's workers inherit it, and build into it once between them."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp(prefix="vlmft-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["XDG_CACHE_HOME"] = folder


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user root with the entry `mine` of six samples; returns its data file."""
    from tests.support import write_llava  # not before a test asks for it: this brings torch

    root = tmp_path / "root"
    (root / "registry" / "datasets").mkdir(parents=True)
    entry = "mine: {_target_: vlmft.data.LLaVADataset, data_path: data/dataset.json}\n"
    (root / "registry" / "datasets" / "mine.yaml").write_text(entry)
    monkeypatch.setenv("VLMFT_PATH", str(root))
    return write_llava(root / "data")
