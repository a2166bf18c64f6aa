"""The trainers, and the choices that belong to a training run: optimiser, strategy, logger."""

from vlmft.training.classification_spec import (
    BalancedSampler,
    Classification,
    ClassLossSpec,
    CrossEntropy,
    EarlyStopping,
    Focal,
    NaturalSampler,
    SamplerSpec,
    WeightedSampler,
)
from vlmft.training.grpo_spec import Grpo
from vlmft.training.kto_spec import Kto
from vlmft.training.optim import Adafactor, AdamW, AdamW8bit, Muon, OptimSpec, TransformersOptim
from vlmft.training.preference import Dpo
from vlmft.training.rollouts_spec import OwnRollouts, RolloutsSpec, VllmRollouts
from vlmft.training.specs import Logger, Sft, Strategy, TrainerSpec

__all__ = [
    "Adafactor",
    "AdamW",
    "AdamW8bit",
    "BalancedSampler",
    "ClassLossSpec",
    "Classification",
    "CrossEntropy",
    "Dpo",
    "EarlyStopping",
    "Focal",
    "Grpo",
    "Kto",
    "Logger",
    "Muon",
    "NaturalSampler",
    "OptimSpec",
    "OwnRollouts",
    "RolloutsSpec",
    "SamplerSpec",
    "Sft",
    "Strategy",
    "TrainerSpec",
    "TransformersOptim",
    "VllmRollouts",
    "WeightedSampler",
]
