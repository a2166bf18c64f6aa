"""Optimisers. Each builds itself from the groups that the recipe makes."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vlmft.config.spec import Spec
from vlmft.errors import ConfigError

if TYPE_CHECKING:
    import torch

Groups = list[dict[str, Any]]


class OptimSpec(Spec, abstract=True):
    """An optimiser with its schedule."""

    lr: float = Field(gt=0, description="peak learning rate; a component's own is this times its lr_factor")
    weight_decay: float = Field(ge=0, description="on matrices; biases, norms and other vectors take none")
    max_grad_norm: float = Field(gt=0, description="gradients are scaled down to this norm")
    schedule: str = Field(description="a name of transformers' schedulers: cosine, linear, constant_with_warmup, ...")
    # null in conf/, since the command line may not add keys to an empty mapping there.
    schedule_options: Annotated[Mapping[str, Any], BeforeValidator(lambda given: {} if given is None else given)] = (
        Field(description="further arguments of that schedule, such as min_lr_rate")
    )
    warmup: float = Field(ge=0, lt=1, description="share of the steps in which the rate rises to its peak")

    def build(self, groups: Groups) -> "torch.optim.Optimizer":
        """The optimiser over `groups` (each with its own `lr` and `weight_decay`)."""
        raise NotImplementedError

    def state_bytes(self, parameters: int) -> int:
        """Memory of the optimiser's state for this many trained parameters, in bytes."""
        raise NotImplementedError


class AdamW(OptimSpec):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), fused where torch has the kernel."""

    betas: tuple[float, float] = Field(description="decay of the two moments")
    eps: float = Field(gt=0, description="added to the root of the second moment")

    def build(self, groups: Groups) -> "torch.optim.Optimizer":
        """See `OptimSpec`."""
        import torch

        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=True)

    def state_bytes(self, parameters: int) -> int:
        """See `OptimSpec`: two float32 moments."""
        return 8 * parameters


class AdamW8bit(OptimSpec):
    """AdamW with both moments in 8 bits, by blocks (Dettmers et al. 2022, arXiv:2110.02861). Needs bitsandbytes."""

    betas: tuple[float, float] = Field(description="decay of the two moments")
    eps: float = Field(gt=0, description="added to the root of the second moment")

    def build(self, groups: Groups) -> "torch.optim.Optimizer":
        """See `OptimSpec`.

        Raises:
            ConfigError: bitsandbytes is not installed.
        """
        try:
            from bitsandbytes.optim import AdamW8bit as Implementation
        except ImportError as error:
            raise ConfigError(f"optim=adamw_8bit needs bitsandbytes ({error}): pip install 'vlmft[quant]'") from None
        return Implementation(groups, betas=self.betas, eps=self.eps)

    def state_bytes(self, parameters: int) -> int:
        """See `OptimSpec`: two 8-bit moments. Tensors under 4,096 values keep float32 and are not counted apart."""
        return 2 * parameters


class Adafactor(OptimSpec):
    """Adafactor with factored second moments and no first (Shazeer & Stern 2018, arXiv:1804.04235), at a given rate."""

    def build(self, groups: Groups) -> "torch.optim.Optimizer":
        """See `OptimSpec`."""
        from transformers.optimization import Adafactor as Implementation

        return Implementation(groups, scale_parameter=False, relative_step=False, warmup_init=False)

    def state_bytes(self, parameters: int) -> int:
        """See `OptimSpec`: a row and a column a matrix, nothing beside the weights."""
        return 0


class Muon(OptimSpec):
    """Muon for the matrices of hidden layers (Jordan et al. 2024), AdamW for all else: embeddings, vectors, kernels.

    With its updates scaled to AdamW's size (`match_rms_adamw`, arXiv:2502.16982) both train at the same rates.
    """

    momentum: float = Field(ge=0, lt=1, description="of the matrices' gradients")
    nesterov: bool = Field(description="look one step ahead with the momentum")
    ns_steps: int = Field(ge=1, description="iterations that make an update's matrix orthogonal")
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = Field(
        description="match_rms_adamw: updates as large as AdamW's, so that its rates hold; original: larger"
    )
    betas: tuple[float, float] = Field(description="AdamW's two moments, for all else")
    eps: float = Field(gt=0, description="AdamW's, for all else")

    def build(self, groups: Groups) -> "torch.optim.Optimizer":
        """See `OptimSpec`."""
        import torch

        from vlmft.training.joined import JoinedOptimizer

        matrices = [group for group in groups if group["is_matrix"]]
        rest = [group for group in groups if not group["is_matrix"]]
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices,
                momentum=self.momentum,
                nesterov=self.nesterov,
                ns_steps=self.ns_steps,
                adjust_lr_fn=self.adjust_lr_fn,
            )
            parts.append(muon)
        if rest:
            parts.append(torch.optim.AdamW(rest, betas=self.betas, eps=self.eps, fused=True))
        return JoinedOptimizer(parts)

    def state_bytes(self, parameters: int) -> int:
        """See `OptimSpec`: one float32 momentum. What AdamW takes, with its two, is not counted apart."""
        return 4 * parameters


class TransformersOptim(OptimSpec):
    """Any optimiser that transformers' Trainer knows by name, with its own defaults."""

    name: str = Field(min_length=1, description="a name of transformers' OptimizerNames: adamw_torch, lion_32bit, ...")
    arguments: Annotated[Mapping[str, Any], BeforeValidator(lambda given: {} if given is None else given)] = Field(
        description="further arguments of that optimiser, such as betas"
    )

    def build(self, groups: Groups) -> "torch.optim.Optimizer":
        """See `OptimSpec`.

        Raises:
            ConfigError: the name is unknown, its package is missing, or it does not work on groups of its own.
        """
        from transformers import Trainer, TrainingArguments
        from transformers.training_args import OptimizerNames

        known = [name.value for name in OptimizerNames]
        if self.name not in known:
            raise ConfigError(f"optim.name: there is no {self.name!r}; known: {', '.join(known)}")
        # Its defaults without its making, which would reset the process group that the run is in.
        defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
        arguments: Any = SimpleNamespace(**(defaults | {"optim": self.name}))
        try:
            kind, found = Trainer.get_optimizer_cls_and_kwargs(arguments)
            made: torch.optim.Optimizer = kind(groups, **(found | dict(self.arguments)))
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"optim.name: {self.name} cannot be used here: {error}") from None
        return made

    def state_bytes(self, parameters: int) -> int:
        """See `OptimSpec`: taken to be as much as AdamW's."""
        return 8 * parameters
