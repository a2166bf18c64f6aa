"""Several ranks train what one rank trains, with any mix of pictures and text, whoever starts them."""

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import Typed, entry, losses, read_lines, read_result, run_here
from tests.support import write_llava

# Steps of two samples, one a rank: now and then one rank has text alone while the other has two pictures. A large eps
# keeps AdamW from making whole steps of the rounding errors where a gradient is zero.
SAME = (
    "dataset=mine",
    "global_batch_size=2",
    "trainer.max_steps=6",
    "trainer.num_workers=0",
    "evaluation=none",
    "optim.warmup=0",
    "optim.eps=1e-3",
    "strategy.device=cpu",
)

Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the entry `mine`: samples with no, one and two pictures."""
    from tests.support import tiny

    tiny().folder()  # made here, not by several ranks at once: that is a test of its own
    root = tmp_path_factory.mktemp("ranks")
    write_llava(root / "data")
    entry(root, "mine", data_path="data/dataset.json")
    return root


@pytest.fixture
def alone(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train a recipe, and further words, on one rank, in this process; returns its run folder."""

    def run(recipe: str, *words: str) -> Path:
        monkeypatch.setenv("VLMFT_PATH", str(home))
        assert run_here(*SAME, f"recipe={recipe}", f"run.dir={tmp_path / recipe}", *words) == 0
        return tmp_path / recipe

    return run


def assert_same_training(one: Path, other: Path) -> None:
    assert len(losses(one)) == 6
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)
    for first, second in zip(read_lines(one), read_lines(other), strict=True):
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
    (file,) = [path.name for path in (one / "final").glob("*.safetensors")]
    weights, others = load_file(one / "final" / file), load_file(other / "final" / file)
    assert weights.keys() == others.keys()
    worst = max(float((weights[name] - others[name]).abs().max()) for name in weights)
    assert worst < 1e-5
    assert max(float(tensor.abs().max()) for tensor in weights.values()) > 0.1


@pytest.mark.parametrize(
    ("recipe", "samples"),
    [("lora_llm", 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("projector", 2), ("fft", 6)))],
)
def test_two_ranks_train_what_one_does(
    typed: Typed, home: Path, alone: Callable[..., Path], recipe: str, samples: int
) -> None:
    """Under `projector` no gradient reaches anything from a text alone, while the other rank has one to share.

    Six samples are shared out by cost, and not to each three.
    """
    words = (f"recipe={recipe}", f"global_batch_size={samples}")
    ended = typed(*SAME, *words, "strategy.ranks=2", VLMFT_PATH=str(home))
    assert ended.code == 0, ended.err
    share = f"{samples} samples a step = 2 ranks x {samples // 2}"
    assert f"{share}; 6 steps x {samples} = {6 * samples} samples" in ended.out
    assert_same_training(alone(recipe, words[1]), ended.run)
    assert [line["step"] for line in ended.lines] == list(range(1, 7))  # rank 0 alone writes


@pytest.mark.slow
def test_ranks_take_equally_many_micro_batches_where_samples_cannot_share_one(
    typed: Typed, home: Path, alone: Callable[..., Path]
) -> None:
    """Of Llama 3.2 Vision samples with no, one and two pictures lie apart: one rank has more kinds than the other."""
    rows = [row for row in json.loads((home / "data/dataset.json").read_text()) if row["id"] != "system"]
    (home / "data/apart.json").write_text(json.dumps(rows))
    entry(home, "apart", data_path="data/apart.json")
    words = ("dataset=apart", "model=tiny_mllama", "global_batch_size=4")
    ended = typed(*SAME, *words, "recipe=lora_llm", "strategy.ranks=2", VLMFT_PATH=str(home))
    assert ended.code == 0, ended.err
    whole = alone("lora_llm", *words)
    assert_same_training(whole, ended.run)
    cut = [[line["micro_batches"] for line in read_lines(run)] for run in (whole, ended.run)]
    assert max(cut[0]) == 3 and set(cut[1]) == {1, 2}, cut  # a rank has two samples of a step


@pytest.mark.slow
def test_one_rank_trains_on_text_alone(typed: Typed, home: Path) -> None:
    """Its tower and projector get no gradient, in no step; they stay as they are."""
    rows = [row for row in json.loads((home / "data/dataset.json").read_text()) if "image" not in row]
    (home / "data/text.json").write_text(json.dumps(rows))
    entry(home, "text", data_path="data/text.json")
    words = [word for word in SAME if not word.startswith(("dataset", "trainer.max_steps"))]
    ended = typed("dataset=text", *words, "trainer.max_steps=3", "recipe=fft", "strategy.ranks=1", VLMFT_PATH=str(home))
    assert ended.code == 0, ended.err
    first, *_, last = losses(ended.run)
    assert last < first


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def joining(rank: int, port: str) -> dict[str, str]:
    """What torchrun sets."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@pytest.mark.slow
def test_ranks_that_another_launcher_started_join(
    started: Started, work: Path, home: Path, alone: Callable[[str], Path]
) -> None:
    port = free_port()
    words = (*SAME, "recipe=fft", "run.dir=run")
    ranks = [started(*words, VLMFT_PATH=str(home), **joining(rank, port)) for rank in (1, 0)]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    assert read_result(work / "run")["state"] == "done"
    assert_same_training(alone("fft"), work / "run")


def test_ranks_that_join_need_a_common_folder(typed: Typed) -> None:
    ended = typed(*SAME[1:], **joining(0, free_port()))
    assert ended.code == 2
    assert ended.errors == ["run.dir: must be given where another launcher starts the ranks; all of them share it"]
    assert list(ended.folder.iterdir()) == []


def test_half_a_launcher_is_refused(typed: Typed) -> None:
    ended = typed(RANK="0")
    assert ended.code == 2
    (line,) = ended.errors
    assert line.startswith("RANK is set in the environment but WORLD_SIZE is not; set both")


@pytest.mark.slow
def test_a_bad_sample_of_any_rank_is_left_out_and_listed(typed: Typed, tmp_path: Path) -> None:
    """In a new cache folder, as on a machine's first day: the ranks want the tiny checkpoint all at once."""
    root = tmp_path / "spoilt"
    data = write_llava(root / "data").parent
    entry(root, "mine", data_path="data/dataset.json")
    (data / "0.png").write_bytes(b"no picture")  # of the samples `one` and `system`
    words = [word for word in SAME if not word.startswith(("global_batch_size", "trainer.max_steps"))]
    more = ("strategy.ranks=2", "global_batch_size=6", "trainer.max_steps=2", "check_s=0", "max_bad_samples=2")
    ended = typed(*words, *more, VLMFT_PATH=str(root), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert ended.code == 0, ended.err
    listed = [line["bad_sample"] for line in ended.lines if "bad_sample" in line]
    assert sorted(listed) == ["mine/one", "mine/system"]
    assert [line["bad_samples"] for line in ended.lines if "loss" in line] == [2, 2]


def test_both_ranks_see_text_only_steps(home: Path) -> None:
    """What the tests above rest on: in some step one rank has no picture while the other has."""
    from tests.support import compose, encoding
    from vlmft.data import LLaVADataset
    from vlmft.data.mixture import Mixture, MixturePart
    from vlmft.encoding.loading import EncodedGroup
    from vlmft.training.step_plan import StepPlan
    from vlmft.training.steps import StepDataset

    source = LLaVADataset(data_path=home / "data" / "dataset.json").open("mine")
    mixture = Mixture([MixturePart(source, 1, range(len(source)))], compose().seed)
    plan = StepPlan.derive(6, 2, 1, 6, 2)
    pictures = []
    for step in range(6):
        shares = [StepDataset(mixture, encoding()[0], plan, rank)[step] for rank in (0, 1)]
        assert all(isinstance(share, EncodedGroup) for share in shares)
        pictures.append(tuple(sum(len(s.media) for s in share.samples) for share in shares))  # type: ignore[union-attr]
    assert any(0 in pair and max(pair) > 0 for pair in pictures), pictures
    assert torch.tensor(pictures).max() == 2
