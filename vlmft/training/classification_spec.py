"""The choices of trainer=classification: loss, sampler, and when to stop early. The head's are in `models.heads`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from vlmft.config.spec import Spec
from vlmft.errors import ConfigError
from vlmft.models.heads import HeadSpec
from vlmft.training.specs import TrainerSpec
from vlmft.types import Labels, Target

if TYPE_CHECKING:
    from torch import Tensor

Beta = Annotated[
    float | None,
    Field(
        gt=0, lt=1, description="of class-balanced weights (1 - beta) / (1 - beta^n), n samples of a class; null: none"
    ),
]


class ClassLossSpec(Spec, abstract=True):
    """What a sample's logits cost."""

    beta: Beta

    def check(self, classes: tuple[str, ...], counts: Mapping[str, int], multi: bool) -> None:
        """Raise `ConfigError` where the loss does not fit the data's classes and how many samples each has."""
        self.class_weights(counts)

    def class_weights(self, counts: Mapping[str, int]) -> list[float] | None:
        """A weight for each class, in the order of `counts`, their mean 1; None: all weigh alike.

        Raises:
            ConfigError: a class without samples, whose weight would have no end.
        """
        if self.beta is None:
            return None
        return class_balanced_weights(counts, self.beta)

    def per_sample(self, logits: "Tensor", targets: "Tensor", weights: "Tensor | None", multi: bool) -> "Tensor":
        """The loss of each sample, [B] in float32; see `class_loss` for shapes."""
        raise NotImplementedError


def class_balanced_weights(counts: Mapping[str, int], beta: float) -> list[float]:
    """(1 - beta) / (1 - beta^n) of each class with its n samples, scaled to a mean of 1.

    Source: Y. Cui et al., "Class-Balanced Loss Based on Effective Number of Samples" (2019), arXiv:1901.05555,
    equation 2 and section 4.

    Raises:
        ConfigError: a class has no sample; its weight would have no end.
    """
    if empty := [name for name, n in counts.items() if not n]:
        raise ConfigError(
            f"trainer.loss.beta: {', '.join(empty)} {'has' if len(empty) == 1 else 'have'} no training sample, so "
            "there is no class-balanced weight; add samples, take the class out of labels, or set beta to null"
        )
    raw = [(1 - beta) / (1 - beta**n) for n in counts.values()]
    return [weight * len(raw) / sum(raw) for weight in raw]


class CrossEntropy(ClassLossSpec):
    """Cross entropy, of the classes or, where a sample may have several, of each class's yes or no."""

    label_smoothing: float = Field(ge=0, lt=1, description="share of a target that is spread over all classes")

    def per_sample(self, logits: "Tensor", targets: "Tensor", weights: "Tensor | None", multi: bool) -> "Tensor":
        """See `ClassLossSpec`."""
        from vlmft.training.class_loss import binary_cross_entropy, cross_entropy

        compute = binary_cross_entropy if multi else cross_entropy
        return compute(logits, targets, weights, self.label_smoothing)


class Focal(ClassLossSpec):
    """Focal loss: (1 - p)^gamma times the cross entropy, where p is the probability of what is right."""

    gamma: float = Field(ge=0, description="how much less a right answer counts; 0 is the cross entropy")
    alpha: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        description="a weight for each class, in their order; of several labels: alpha for yes, 1 - alpha for no"
    )

    @model_validator(mode="after")
    def _one_weighting(self) -> Self:
        if self.alpha is not None and self.beta is not None:
            raise ValueError("alpha and beta both weigh the classes; set one of them to null")
        return self

    def check(self, classes: tuple[str, ...], counts: Mapping[str, int], multi: bool) -> None:
        """See `ClassLossSpec`."""
        super().check(classes, counts, multi)
        if self.alpha is not None and len(self.alpha) != len(classes):
            raise ConfigError(
                f"trainer.loss.alpha: {len(self.alpha)} weights for {len(classes)} classes ({', '.join(classes)}); "
                "give one for each, in this order"
            )
        if self.alpha is not None and multi and max(self.alpha) > 1:
            raise ConfigError(
                f"trainer.loss.alpha: {max(self.alpha)} is above 1; of several labels, alpha weighs a class's yes and "
                "1 - alpha its no"
            )

    def per_sample(self, logits: "Tensor", targets: "Tensor", weights: "Tensor | None", multi: bool) -> "Tensor":
        """See `ClassLossSpec`."""
        from vlmft.training.class_loss import binary_focal, focal

        alpha = None if self.alpha is None else logits.new_tensor(self.alpha).float()
        if multi:
            return binary_focal(logits, targets, self.gamma, alpha, weights)
        return focal(logits, targets, self.gamma, weights if alpha is None else alpha)


class SamplerSpec(Spec, abstract=True):
    """How often each class comes. Your own: a subclass, in a package that your root declares."""

    def shares(self, counts: Mapping[str, int]) -> Mapping[str, float] | None:
        """Each class's share of the training stream, relative to the others'; None: every sample once a pass.

        Args:
            counts: training samples of each class; of several labels, a sample counts for each of its own.

        Raises:
            ConfigError: the sampler does not fit these classes.
        """
        raise NotImplementedError


class NaturalSampler(SamplerSpec):
    """Every sample once a pass, whatever its class."""

    def shares(self, counts: Mapping[str, int]) -> None:
        """See `SamplerSpec`."""
        return None


class BalancedSampler(SamplerSpec):
    """Every class comes equally often."""

    def shares(self, counts: Mapping[str, int]) -> Mapping[str, float]:
        """See `SamplerSpec`."""
        return dict.fromkeys(counts, 1.0)


class WeightedSampler(SamplerSpec):
    """Every class has a share of its own."""

    # null where a file leaves it open: the command line may not add keys to an empty mapping there.
    weights: Annotated[
        Mapping[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]],
        BeforeValidator(lambda given: {} if given is None else given),
    ] = Field(description="relative shares by class, for every class of the data")

    def shares(self, counts: Mapping[str, int]) -> Mapping[str, float]:
        """See `SamplerSpec`."""
        lacking, unknown = [c for c in counts if c not in self.weights], [c for c in self.weights if c not in counts]
        if lacking or unknown:
            found = [f"no weight for {', '.join(lacking)}"] if lacking else []
            found += [f"weights for {', '.join(unknown)}, which are no classes of the data"] if unknown else []
            raise ConfigError(f"trainer.sampler.weights: {'; '.join(found)}; the classes are {', '.join(counts)}")
        return {name: self.weights[name] for name in counts}


class EarlyStopping(Spec):
    """When a run ends before its last step."""

    patience: int | None = Field(
        ge=1, description="evaluations in a row without a better evaluation.best_by, after which the run ends"
    )
    threshold: float = Field(ge=0, description="by how much a score has to beat the best one to count as better")

    @model_validator(mode="after")
    def _of_a_patience(self) -> Self:
        if self.patience is None and self.threshold:
            raise ValueError(f"threshold={self.threshold:g} needs patience: the evaluations that are waited for better")
        return self


class Classification(TrainerSpec):
    """Classification: a head reads each sample's class, or its classes, from the model's hidden states."""

    learns: ClassVar[type[Target] | None] = Labels
    packs: ClassVar[bool] = True
    shares_by_cost: ClassVar[bool] = True

    head: HeadSpec
    loss: ClassLossSpec
    sampler: SamplerSpec
    threshold: float = Field(gt=0, lt=1, description="of several labels: the least probability of a predicted class")
    early_stopping: EarlyStopping

    def targets_of(self, numbers: "list[tuple[int, ...]]", num_classes: int, multi: bool) -> Any:
        """What the loss takes of samples whose classes have these numbers: int64 [B], or float32 [B, C]."""
        import torch

        if not multi:
            return torch.tensor([number for (number,) in numbers])
        targets = torch.zeros(len(numbers), num_classes)
        for row, own in enumerate(numbers):
            targets[row, list(own)] = 1.0
        return targets
