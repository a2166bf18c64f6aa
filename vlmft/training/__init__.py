"""The trainers, and the choices that belong to a training run: optimiser, strategy, logger."""

from vlmft.training.grpo_spec import Grpo
from vlmft.training.optim import Adafactor, AdamW, AdamW8bit, Muon, OptimSpec, TransformersOptim
from vlmft.training.preference import Dpo
from vlmft.training.specs import Logger, Sft, Strategy, TrainerSpec

__all__ = [
    "Adafactor",
    "AdamW",
    "AdamW8bit",
    "Dpo",
    "Grpo",
    "Logger",
    "Muon",
    "OptimSpec",
    "Sft",
    "Strategy",
    "TrainerSpec",
    "TransformersOptim",
]
