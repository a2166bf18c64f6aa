"""What stands in the environment is found in nothing that a run writes or prints."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Ended, typed_in

REFERENCED = "canary-5b1f0c-referenced"
UNREFERENCED = {
    "HF_TOKEN": "hf_canary-77d2e9-token",
    "WANDB_API_KEY": "canary-c40a18-key",
    "MY_PASSWORD": "canary-9e-pw",
}
WORDS = (
    "run.dir=run",
    "trainer.max_steps=2",
    "trainer.save_every=1",
    "trainer.num_workers=0",
    "evaluation=none",
    "logger=wandb",
    "dataset.shapes.train_samples=64",
    "dataset.shapes.eval_samples=8",
    "global_batch_size=4",
    # What the model is told is data: it is trained on, but written nowhere.
    "dataset.shapes.system_prompt=${oc.env:CANARY}",
)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("secrets")
    # Offline, wandb writes what it would upload. Its other files go below HOME.
    done = typed_in(folder, *WORDS, CANARY=REFERENCED, WANDB_MODE="offline", HOME=str(folder), **UNREFERENCED)
    assert done.code == 0, done.err
    return done


def holding(folder: Path, secret: str) -> list[str]:
    """The files below `folder` that hold a secret, in any place of a file or of its name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    return [
        str(path.relative_to(folder)) for path in files if secret.encode() in path.read_bytes() or secret in str(path)
    ]


@pytest.mark.parametrize("secret", [REFERENCED, *UNREFERENCED.values()])
def test_no_file_and_no_output_holds_a_secret(ended: Ended, secret: str) -> None:
    assert holding(ended.folder, secret) == []
    assert secret not in ended.out + ended.err


def test_what_a_tracker_would_upload_is_among_the_files(ended: Ended) -> None:
    """The arguments and figures are readable in wandb's file, so a secret would be."""
    (upload,) = ended.run.glob("wandb/offline-run-*/*.wandb")
    for uploaded in (b"gradient_accumulation_steps", b"qwen2_5_vl", b"train/loss"):
        assert uploaded in upload.read_bytes()


def test_the_reference_stays_in_the_config(ended: Ended) -> None:
    assert "system_prompt: ${oc.env:CANARY}" in (ended.run / "config.yaml").read_text()


def test_a_changed_secret_is_a_difference_that_is_refused_unnamed(ended: Ended) -> None:
    other = "canary-0aa7-other"
    again = typed_in(ended.folder, *WORDS, CANARY=other, **UNREFERENCED)
    assert again.code == 2
    assert "dataset.shapes.system_prompt: was 'sha256 " in again.err
    assert other not in again.out + again.err and REFERENCED not in again.out + again.err
    assert holding(ended.folder, other) == []
    assert json.loads((ended.run / "result.json").read_text())["state"] == "done"
