"""Preference pairs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmft.errors import ConfigError
from vlmft.evaluation import Generate
from vlmft.evaluation.measures import OF_PAIRS
from vlmft.tasks.base import Kit, Task, places
from vlmft.tasks.reference import kept_on
from vlmft.training import Dpo
from vlmft.training.preference import SORTING

if TYPE_CHECKING:
    from vlmft.evaluation.judge import Judge
    from vlmft.training.dpo import Reference
    from vlmft.training.objective import Objective
    from vlmft.training.pack_proof import Reading
    from vlmft.training.pairs import PairReader
    from vlmft.types import Sample

REFERENCE = "reference.jsonl"
"""In the run folder: what the reference said of every pair, where it was computed before training."""


class DpoTask(Task):
    """The chosen answer becomes likelier than the rejected one; held-out pairs are judged the same way."""

    @property
    def trainer(self) -> Dpo:
        """The trainer's own choices."""
        assert isinstance(self.config.trainer, Dpo)
        return self.config.trainer

    def check(self) -> None:
        """See `Task.check`."""
        super().check()
        ConfigError.raise_if(self._contradictions())

    def _contradictions(self) -> list[str]:
        config, problems = self.config, []
        if self.trainer.reference == "adapters_off":
            problems += [f"trainer.reference=adapters_off: {why}; use copy or precomputed" for why in kept_on(config)]
        augmented = [name for name, entry in config.dataset.items() if entry.augment is not None]
        if self.trainer.reference == "precomputed" and augmented:
            problems.append(
                f"trainer.reference=precomputed: {', '.join(augmented)} changes its pictures at random (augment), so "
                "that the reference would have seen others; use copy or adapters_off, or leave augment out"
            )
        ranks = config.strategy.ranks
        if isinstance(ranks, int):
            problems += self._sorted_on(ranks)
        return problems

    def _sorted_on(self, ranks: int) -> list[str]:
        sorting = sorted(self.trainer.losses.keys() & SORTING)
        if not sorting or ranks == 1:
            return []
        return [
            f"trainer.loss: {', '.join(sorting)} sorts all pairs of a step, and {ranks} ranks share it; use one rank"
        ]

    def score_names(self) -> Sequence[str]:
        """Accuracy and margin of the model's preference."""
        return list(OF_PAIRS)

    def judge_of(self, kit: Kit, evaluation: Generate, samples: "Sequence[Sample]") -> "Judge":
        """How likely the model finds the two answers of each pair."""
        from vlmft.evaluation.preference import PairJudge
        from vlmft.training.pairs import PairReader

        return PairJudge(
            evaluation,
            kit.encoder,
            kit.collator,
            samples,
            PairReader(kit.collator).answers,
            num_workers=self.config.trainer.num_workers,
            between_batches=kit.stop.obey,
            **places(),
        )

    def reading(self) -> "Reading":
        """Both answers of each pair."""
        from vlmft.training.pairs import BOTH_ANSWERS

        return BOTH_ANSWERS

    def objective(self, model: Any, kit: Kit) -> "Objective[Any]":
        """The losses of the pairs, against the reference."""
        from vlmft.training.dpo import PreferenceObjective
        from vlmft.training.pairs import PairReader

        ConfigError.raise_if(self._sorted_on(kit.plan.world_size))
        reader = PairReader(kit.collator)
        if apart := reader.apart_because(model):
            kit.console.print(f"pairs    pictures and videos are seen twice, once for each answer: {apart}")
        return PreferenceObjective(reader, self.trainer, self._reference(model, kit, reader))

    def _reference(self, model: Any, kit: Kit, reader: "PairReader") -> "Reference":
        from vlmft.training.dpo import Live, Precomputed, Uniform
        from vlmft.training.reference import StartValues, originals

        match self.trainer.reference:
            case "none":
                return Uniform()
            case "adapters_off":
                return Live(model, lambda: originals(model), reader, self.trainer.ld_alpha)
            case "copy":
                return Live(model, StartValues(model).put_in, reader, self.trainer.ld_alpha)
            case "precomputed":
                return Precomputed(self._precompute(model, kit, reader))

    def _precompute(self, model: Any, kit: Kit, reader: "PairReader") -> dict[str, tuple[float, float]]:
        from vlmft.training.progress import counting
        from vlmft.training.reference_pass import ReferencePass, facts_of

        path = kit.folder.path / REFERENCE
        with counting("reference", kit.console) as progress:
            return ReferencePass(
                kit.data.mixture,
                kit.plan,
                kit.encoder,
                reader,
                self.config.batching,
                self.config.trainer.num_workers,
                self.trainer.ld_alpha,
                kit.stop.obey,
                progress,
            ).complete(model, path, facts_of(kit.folder.read_fingerprint()))
