"""Pictures in folders that are named by what they show."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vlmft.data.sources.classification import problem_with
from vlmft.data.sources.parsed import MEDIUM, Parsed, Parser, Reference, Turn
from vlmft.data.spec import DatasetSpec
from vlmft.errors import DataError
from vlmft.types import Classes, Labels, Solution

if TYPE_CHECKING:
    from vlmft.data.sources.rows import RowSource

Task = Literal["qa", "solution", "classification"]

CLASSES = "{classes}"


class ImageFolderDataset(DatasetSpec):
    """Pictures in a folder a class: `train/wildfire/*.jpg`, `train/nowildfire/*.jpg`.

    A sample's id is its path below `data_path`; the order is that of the names. Hidden files are left out; any other
    file that is no picture is an error. `answers` says what a folder's name means, in the order of the classes.
    """

    data_path: Annotated[Path, Field(description="The folder that holds a folder for each class.")]
    eval_data_path: Annotated[Path | None, Field(description="Such a folder with the held-out pictures.")] = None
    task: Annotated[
        Task,
        Field(
            description="qa: the answer is learned; solution: generated answers are checked against it (GRPO); "
            "classification: the class."
        ),
    ] = "qa"
    question: Annotated[
        str, Field(min_length=1, description=f"What is asked; {CLASSES} stands for the answers, by commas.")
    ] = f"Which of these does the image show: {CLASSES}?"
    answers: Annotated[
        dict[str, Annotated[str, Field(pattern=r"\S")]] | None,
        Field(description="Folder name: answer. Default: the names of data_path's folders."),
    ] = None
    ignore: Annotated[
        tuple[str, ...], Field(description="Names of files that are left out, with * and ?: ['*.txt'].")
    ] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in order: as `answers` names them, or the folders by name."""
        return tuple(dict.fromkeys(self._meanings().values()))

    @property
    def classes(self) -> Classes | None:
        """See `DatasetSpec.classes`; the folders are found on the disk where `answers` does not name them."""
        return Classes(self.class_names) if self.task == "classification" else None

    def open(self, name: str) -> "RowSource":
        """Open the training pictures. Raises `DataError` where the folders cannot be used."""
        return self._open(name, "data_path", self.data_path)

    def open_eval(self, name: str) -> "RowSource | None":
        """Open the pictures of `eval_data_path`; None where the entry has none."""
        return self._open(name, "eval_data_path", self.eval_data_path) if self.eval_data_path else None

    def _open(self, name: str, key: str, path: Path) -> "RowSource":
        from vlmft.data.sources.picture_files import list_pictures
        from vlmft.data.sources.rows import RowSource

        folder = self.located(path)
        if not folder.is_dir():
            raise DataError(f"{name}: {key} {folder} is not a folder; give the folder that holds a folder a class")
        try:
            answers = self._meanings()
            if problem := problem_with(tuple(answers)):
                raise DataError(f"{key} {folder}: {problem}")
            table = list_pictures(folder.resolve(), tuple(answers), self.ignore)
        except DataError as error:
            raise DataError(*(f"{name}: {problem}" for problem in error.problems)) from error
        return RowSource(name, table, self._parser(answers), table.path, self.rules, self.system_prompt)

    def _meanings(self) -> dict[str, str]:
        from vlmft.data.sources.picture_files import class_folders

        return self.answers or {name: name for name in class_folders(self.located(self.data_path))}

    def _parser(self, answers: dict[str, str]) -> Parser:
        question = self.question.replace(CLASSES, ", ".join(dict.fromkeys(answers.values())))
        return partial(parse_picture, answers=answers, question=question, task=self.task)


def parse_picture(row: Any, answers: dict[str, str], question: str, task: Task = "qa") -> Parsed:
    """Read a row `{"image": path or bytes, "label": folder}`: ask `question` of the picture.

    Args:
        answers: what each folder's name means.
        task: what becomes of the answer; see `ImageFolderDataset`.
    """
    answer, picture = answers[row["label"]], Reference("image", row["image"])
    asked = Turn("user", (MEDIUM, question))
    if task == "qa":
        return Parsed([asked, Turn("assistant", (answer,))], [picture])
    return Parsed([asked], [picture], Solution(answer) if task == "solution" else Labels((answer,)))
