"""The shapes again, in the formats of other trainers: pairs, rated answers, prompts with solutions, classes."""

from typing import Annotated

from pydantic import Field

from vlmft.data.demo.generated import Generated, as_written, written_once
from vlmft.data.sources.classification import ClassificationDataset
from vlmft.data.sources.preference import PreferenceDataset
from vlmft.data.sources.prompts import PromptDataset
from vlmft.data.sources.unpaired import UnpairedDataset
from vlmft.types import Classes

GENERATOR = 1
"""Raise it whenever the same parameters give other files: cached ones are then made anew."""


class ShapeTask(Generated, abstract=True):
    """One coloured shape a picture, asked about by its colour; the right answers are balanced."""

    train_samples: Annotated[int, Field(ge=1, description="Training samples.")]
    eval_samples: Annotated[int, Field(ge=1, description="Held-out samples.")]
    image_size: Annotated[int, Field(ge=28, le=1024, description="Width and height of a picture, in pixels.")]
    seed: Annotated[int, Field(description="Draws the pictures; another seed is another dataset.")]

    @property
    def _parameters(self) -> tuple[int, ...]:
        return (self.train_samples, self.eval_samples, self.image_size, self.seed)


class DemoDpo(ShapeTask):
    """The shape's colour as the chosen answer, another colour as the rejected one: prompt, chosen, rejected."""

    def files(self) -> PreferenceDataset:
        """See `Generated.files`."""
        from vlmft.data.demo.tasks_files import write_pairs

        return as_written(self, PreferenceDataset, written_once("dpo", GENERATOR, self._parameters, write_pairs))


class DemoKto(ShapeTask):
    """The shape's colour as a good answer, or another colour as a bad one: prompt, completion, label."""

    def files(self) -> UnpairedDataset:
        """See `Generated.files`."""
        from vlmft.data.demo.tasks_files import write_rated

        return as_written(self, UnpairedDataset, written_once("kto", GENERATOR, self._parameters, write_rated))


class DemoGrpo(ShapeTask):
    """Conversations whose last turn is the solution, with its thought: <think>...</think> <answer>red</answer>."""

    def files(self) -> PromptDataset:
        """See `Generated.files`."""
        from vlmft.data.demo.tasks_files import write_solutions

        return as_written(self, PromptDataset, written_once("grpo", GENERATOR, self._parameters, write_solutions))


class DemoClassification(ShapeTask):
    """The shape's colour as its class: image, prompt, label."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The colours, in order."""
        from vlmft.data.demo.shapes_files import COLOURS

        return tuple(COLOURS)

    @property
    def classes(self) -> Classes:
        """See `DatasetSpec.classes`."""
        return Classes(self.class_names)

    def files(self) -> ClassificationDataset:
        """See `Generated.files`."""
        from vlmft.data.demo.tasks_files import write_labels

        folder = written_once("classification", GENERATOR, self._parameters, write_labels)
        return as_written(self, ClassificationDataset, folder, labels=self.class_names)
