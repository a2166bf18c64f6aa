"""Classification."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.errors import ConfigError
from vlmft.evaluation import Generate
from vlmft.tasks.base import Kit, Task, places
from vlmft.training import Classification
from vlmft.types import Classes

if TYPE_CHECKING:
    from torch import Tensor

    from vlmft.data.run_data import RunData
    from vlmft.evaluation.judge import Judge
    from vlmft.recipes.table import ComponentRow
    from vlmft.training.objective import Objective
    from vlmft.training.pack_proof import Reading
    from vlmft.types import Sample

HEAD = "head"


class ClassificationTask(Task):
    """A head on the backbone's hidden states learns the classes, which are those of all entries alike."""

    @property
    def trainer(self) -> Classification:
        """What was chosen."""
        assert isinstance(self.config.trainer, Classification)
        return self.config.trainer

    @cached_property
    def classes(self) -> Classes:
        """The data's classes. Raises `ConfigError` where entries differ in them, or have none."""
        from vlmft.data.by_class import classes_of

        return classes_of(self.config.dataset | self.config.eval_dataset)

    def check(self) -> None:
        """See `Task.check`."""
        from vlmft.evaluation.class_metrics import require_sklearn

        require_sklearn()
        super().check()
        _ = self.classes
        evaluation = self.config.evaluation
        if self.trainer.early_stopping.patience is None:
            return
        if not isinstance(evaluation, Generate) or evaluation.best_by is None:
            raise ConfigError(
                "trainer.early_stopping.patience: counts evaluations by their score; say after which steps the model "
                "is judged, and by what: evaluation.every_steps=50 evaluation.best_by=f1_macro"
            )

    def prepare(self, data: "RunData") -> "RunData":
        """Read all labels, count them, and draw the stream as the sampler says."""
        from vlmft.data.by_class import by_class, count_classes, read_labels

        parts = read_labels(data.mixture, self.classes, self.config.max_bad_samples)
        self.counts = count_classes(parts, self.classes)
        self.num_labelled = sum(len(part.numbers) for part in parts)
        present = [name for name, count in self.counts.items() if count]
        if len(present) < 2 and not self.classes.multi:
            raise ConfigError(
                f"dataset: all {self.num_labelled} training samples are of one class ({', '.join(present)}); there is "
                "nothing to tell apart: add samples of the others"
            )
        self.trainer.loss.check(self.classes.names, self.counts, self.classes.multi)
        shares = self.trainer.sampler.shares(self.counts)
        if shares is None:
            return data
        if self.config.mixing_temperature is not None:
            raise ConfigError(
                "mixing_temperature: evens out the entries' shares of the stream, and trainer.sampler the classes'; "
                "leave one of them out"
            )
        return replace(data, mixture=by_class(parts, self.counts, shares, self.config.seed))

    def score_names(self) -> Sequence[str]:
        """The figures of `class_metrics`; `metric` is not asked for."""
        from vlmft.evaluation.class_metrics import FIGURES

        return FIGURES

    def judge_of(self, kit: Kit, evaluation: Generate, samples: "Sequence[Sample]") -> "Judge":
        """Predicted classes against true ones."""
        from vlmft.evaluation.classes import ClassJudge

        return ClassJudge(
            evaluation,
            kit.encoder,
            kit.collator,
            samples,
            classes=self.classes,
            frequencies=[count / self.num_labelled for count in self.counts.values()],
            threshold=self.trainer.threshold,
            num_workers=self.trainer.num_workers,
            between_batches=kit.stop.obey,
            **places(),
        )

    def finish_model(self, model: Any, kit: Kit) -> Any:
        """The model with a new head; that of `model.adapter`, where it has one."""
        from vlmft.models.classifier import Classifier, Head, hidden_size_of
        from vlmft.recipes.dtypes import torch_dtype
        from vlmft.recipes.heads import load_earlier_head

        spec = self.trainer.head
        head = Head(spec, hidden_size_of(model), len(self.classes.names))
        if self.config.model.adapter is not None:
            load_earlier_head(self.config.model.adapter, head, spec, self.classes)
        head.to(next(model.parameters()).device)
        return Classifier(model, head, spec.pooling, torch_dtype(self.config.precision))

    def probe_loss(self, model: Any, kit: Kit) -> "Tensor":
        """What the head sees of every modality; the head itself always has a gradient."""
        from vlmft.encoding.probe import probe_sample

        inputs, _ = kit.collator.on_device([probe_sample(kit.encoder)], model)
        pooled: Tensor = model.pooled(**inputs)
        return pooled.sum()

    def objective(self, model: Any, kit: Kit) -> "Objective[Any]":
        """The chosen loss."""
        from vlmft.training.classification import ClassificationObjective

        evaluation = self.config.evaluation
        return ClassificationObjective(
            kit.collator,
            self.trainer,
            self.classes,
            weights=self.trainer.loss.class_weights(self.counts),
            best_by=evaluation.best_by if isinstance(evaluation, Generate) else None,
        )

    def reading(self) -> "Reading":
        """What the head sees."""
        from vlmft.training.classification import POOLED

        return POOLED

    def groups(self, model: Any) -> list[dict[str, Any]]:
        """The recipe's, and behind them the head's, which decays as any other weight does."""
        optim = self.config.optim
        found = super().groups(model.model)
        for decays in (True, False):
            named = [(name, p) for name, p in model.head.named_parameters(prefix=HEAD) if (p.ndim > 1) == decays]
            found.append(
                {
                    "params": [parameter for _, parameter in named],
                    "names": [name for name, _ in named],
                    "component": HEAD,
                    "lr": self.trainer.head.rate(optim.lr),
                    "weight_decay": optim.weight_decay if decays else 0.0,
                    "is_matrix": False,
                }
            )
        return found

    def rows(self, model: Any) -> "list[ComponentRow]":
        """The recipe's, and the head's."""
        from vlmft.recipes.table import ComponentRow

        spec, optim = self.trainer.head, self.config.optim
        number = sum(parameter.numel() for parameter in model.head.parameters())
        policy = f"mlp {spec.widths[0]}" if spec.widths else "linear"
        row = ComponentRow(
            component=HEAD,
            policy=f"{policy}, {len(self.classes.names)} classes",
            parameters=number,
            trainable=number,
            precision="float32",
            lr=(spec.rate(optim.lr),) * 2,
            memory_bytes=8 * number + optim.state_bytes(number),
            copies_bytes=0,
        )
        return [*super().rows(model.model), row]

    def backbone(self, model: Any) -> Any:
        """The model without its head."""
        return model.model

    def save(self, folder: Path, model: Any) -> dict[str, Any]:
        """Write the head; vlmft.json says what it is."""
        from vlmft.models.classifier import hidden_size_of
        from vlmft.recipes.heads import HeadRecord, save_head
        from vlmft.recipes.saved import CLASSIFIER

        save_head(folder, model.head)
        record = HeadRecord(self.trainer.head, self.classes, hidden_size_of(model.model), self.trainer.threshold)
        return {CLASSIFIER: record.to_json()}
