import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import compose, literally
from vlmft.errors import ConfigError
from vlmft.training.arguments import training_arguments, uses_cpu


def arguments(folder: Path, *words: str) -> Any:
    config = compose(*words)
    return training_arguments(
        folder, config.trainer, config.optim, config.strategy, config.precision, config.seed, num_steps=200
    )


def test_choices_reach_transformers(tmp_path: Path) -> None:
    args = arguments(
        tmp_path,
        "optim.lr=2e-4",
        "optim.warmup=0.1",
        "optim.max_grad_norm=0.3",
        "optim.schedule=cosine_with_min_lr",
        "optim.schedule_options={min_lr_rate: 0.1}",
        "precision=bf16",
        "seed=7",
        "trainer.log_every=5",
    )
    assert (args.learning_rate, args.warmup_steps, args.max_grad_norm) == (2e-4, 20, 0.3)
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr_rate": 0.1})
    assert (args.bf16, args.fp16, args.seed, args.logging_steps, args.max_steps) == (True, False, 7, 5, 200)
    assert (args.gradient_accumulation_steps, args.save_strategy, args.report_to) == (1, "no", [])
    assert args.ddp_find_unused_parameters is True  # on one rank too: a step of text alone would end the run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("precision=fp16", "strategy.device=cpu"),
            "precision: fp16 needs a GPU (its loss scaling has no CPU form); use bf16 or fp32",
        ),
        (("optim.schedule=cosin",), "optim.schedule: there is no 'cosin'"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{literally(message)}"):
        arguments(tmp_path, *words)


def test_the_known_schedules_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"known: .*\bcosine\b.*\bconstant_with_warmup\b"):
        arguments(tmp_path, "optim.schedule=triangle")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=literally("strategy.device: cuda was asked for, torch finds no CUDA device")):
        uses_cpu(compose("strategy.device=cuda").strategy)
    assert uses_cpu(compose("strategy.device=cpu").strategy)
    assert uses_cpu(compose().strategy)


def test_8_bit_adamw_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise ImportError("No module named 'bitsandbytes'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    expected = "optim=adamw_8bit needs bitsandbytes (No module named 'bitsandbytes'): pip install 'vlmft[quant]'"
    with pytest.raises(ConfigError, match=literally(expected)):
        compose("optim=adamw_8bit").optim.build([])
