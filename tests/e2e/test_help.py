"""What is answered without a run, and how fast."""

import resource
import subprocess
import sys

import yaml

from tests.e2e.conftest import Typed, command, environment

HEAVY = ("torch", "torchvision", "transformers", "accelerate", "PIL", "peft", "trl", "datasets", "numpy", "scipy")
ALLOWED_S = 0.6


def seconds(*words: str) -> float:
    """Processor time, the least of three: other work on this machine can only add to it."""
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, check=True, capture_output=True, env=environment())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(took)


def test_help_names_every_choice(typed: Typed) -> None:
    ended = typed("--help")
    assert (ended.code, ended.err) == (0, "")
    for said in (
        "python -m vlmft.train dataset=A+B*2+C@0.25",
        "recipe: custom, dora_llm, fft, fft_llm, fft_vt, ",
        "dataset: demo_captions, demo_classification, demo_dpo, demo_grpo, demo_kto, demo_video, digits, shapes",
        "metric: choice, correctness, exact_match, field_accuracy, format, iou, json, length, math",
        "global_batch_size: 16",
        "VLMFT_PATH=",
    ):
        assert said in ended.out
    assert list(ended.folder.iterdir()) == []


def test_cfg_job_shows_the_config_and_makes_no_folder(typed: Typed) -> None:
    ended = typed("recipe=lora_llm", "dataset=shapes*2", "optim.lr=3e-4", "--cfg", "job", "--resolve")
    assert (ended.code, ended.err) == (0, "")
    shown = yaml.safe_load(ended.out)
    assert shown["dataset"]["shapes"]["factor"] == 2
    assert shown["recipe"]["llm"]["rank"] == 16
    assert float(shown["optim"]["lr"]) == 3e-4
    assert shown["global_batch_size"] == 16
    assert list(ended.folder.iterdir()) == []


def test_cfg_job_loads_nothing_heavy() -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
        "sys.argv[1:] = ['--cfg', 'job']\n"
        "from vlmft.train import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    (loaded,) = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("LOADED")]
    assert "hydra" in loaded and "vlmft.config.app" in loaded
    assert set(HEAVY) & set(loaded) == set()


def test_cfg_job_costs_little_more_than_hydra() -> None:
    hydra = seconds(sys.executable, "-c", "import hydra")
    assert seconds(*command("--cfg", "job")) - hydra < ALLOWED_S
