"""Captions from a larger model: each medium asked about, each answer checked and kept at once."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.annotation.chat import Answer, Chat, UnansweredError
from vlmft.annotation.journal import Journal, Row, open_journal
from vlmft.annotation.media import MediaFile
from vlmft.annotation.pictures import data_uris
from vlmft.annotation.specs import OpenAI
from vlmft.annotation.task import Task, keep_schema
from vlmft.data.placeholders import PLACEHOLDER, refuse_placeholder
from vlmft.data.sources.caption_schema import NO_CAPTION
from vlmft.data.sources.parsed import NAMES
from vlmft.errors import DataError, InterruptedRunError
from vlmft.screen import console

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

_LISTED = 5  # problems shown on the screen
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL)


def ask(spec: OpenAI, task: Task) -> None:
    """Ask about each medium that `task.out` does not name, and add what comes to it, a line an answer.

    Raises:
        ConfigError: the key, the schema or the server does not fit; what came before is kept.
        DataError: some media have no answer.
        InterruptedRunError: Ctrl-C; what came is kept.
    """
    key = spec.read_key()
    with open_journal(task.out) as journal:
        _check_rows(task, journal)
        keep_schema(task)
        problems_file(task.out).unlink(missing_ok=True)
        with open_journal(problems_file(task.out)) as problems:
            asking = _Asking(spec, task, journal, problems)
            if journal.cut:
                said = f"mended   {task.out}: its last line was cut short ({journal.cut} bytes), and is gone"
                console().print(said, markup=False)
            try:
                asyncio.run(asking.run(key))
            except KeyboardInterrupt:
                raise InterruptedRunError(
                    f"interrupted; {asking.annotated} new captions are kept in {task.out}, and the same command goes on"
                ) from None
            except ExceptionGroup as group:  # of equals: each ends the command
                raise group.exceptions[0] from None
            finally:
                console().print(asking.summary())
        journal.sort(lambda row: str(next((row[key] for key in NAMES if key in row), "")))
    DataError.raise_if(asking.shown_problems())


def problems_file(out: Path) -> Path:
    """Where the media are listed that got no answer, with the reason and the last answer."""
    return out.with_name(out.name + ".problems.jsonl")


def _check_rows(task: Task, journal: Journal) -> None:
    """Refuse a file whose rows are no such captions: what is added has to be of one kind with them."""
    problems = []
    for row, place in zip(journal.rows, journal.places, strict=True):
        caption = {name: value for name, value in row.items() if name not in NO_CAPTION}
        try:
            DataError.raise_if(task.schema.problems(caption) if task.schema else [])
            refuse_placeholder(json.dumps(caption, ensure_ascii=False), "the caption")
        except DataError as error:
            problems.append(f"{place}: {'; '.join(error.problems)}; mend or remove the line, or choose another out")
    if len(problems) > _LISTED:
        problems[_LISTED:] = [f"{task.out}: {len(problems) - _LISTED} more lines like these"]
    DataError.raise_if(problems)


class _NoCaptionError(Exception):
    """One medium is left without a caption; `answer` is the last that the model gave, if any."""

    def __init__(self, reason: str, answer: str | None = None) -> None:
        super().__init__(reason)
        self.answer = answer


class _Asking:
    """One start of the command."""

    def __init__(self, spec: OpenAI, task: Task, journal: Journal, problems: Journal) -> None:
        self.spec, self.task, self.journal, self.problems = spec, task, journal, problems
        self.missing = task.missing(journal.rows)
        self.annotated = 0
        self.said: list[str] = []
        self.in_a_row = 0  # media without an answer since the last that had one
        self.tokens = [0, 0]  # of prompts, of answers

    async def run(self, key: str | None) -> None:
        """Ask about what is missing, so many at a time."""
        from rich.progress import Progress

        screen = console()
        waiting = iter(self.missing)
        with Progress(console=screen, disable=not screen.is_terminal, transient=True) as progress:
            progress.add_task("asking", total=len(self.missing))
            async with Chat(self.spec, key) as chat, asyncio.TaskGroup() as group:
                for _ in range(self.spec.concurrency):
                    group.create_task(self._work(chat, waiting, progress))

    async def _work(self, chat: Chat, waiting: Iterator[MediaFile], progress: "Progress") -> None:
        while self.in_a_row < self.spec.give_up_after and (file := next(waiting, None)):
            try:
                caption = await self._caption(chat, file)
            except DataError as error:  # the file's fault, and no sign that the server is gone
                self._note(file, str(error), None)
            except _NoCaptionError as error:
                self._note(file, str(error), error.answer)
                self.in_a_row += 1
            else:
                self.journal.append([{file.kind: file.reference, **caption}])
                self.annotated += 1
                self.in_a_row = 0
            progress.advance(progress.task_ids[0])

    def _note(self, file: MediaFile, reason: str, answer: str | None) -> None:
        self.said.append(f"{file.reference}: {reason}")
        self.problems.append([{file.kind: file.reference, "problem": reason, "answer": answer}])

    async def _caption(self, chat: Chat, file: MediaFile) -> Row:
        """Ask until an answer is a caption, showing the model what was wrong with the one before."""
        spec = self.spec
        uris = await asyncio.to_thread(data_uris, file, spec.max_side, spec.num_frames, spec.decoder)
        messages = [{"role": "user", "content": [*_pictures(uris), {"type": "text", "text": self._question(file)}]}]
        problem, last = "", None
        for _ in range(spec.answers):
            try:
                answer = await chat.ask(messages, self._response_format())
            except UnansweredError as error:
                raise _NoCaptionError(str(error), last) from None
            self.tokens[0] += answer.prompt_tokens
            self.tokens[1] += answer.completion_tokens
            try:
                return self._read(answer)
            except DataError as error:
                problem, last = "; ".join(error.problems), answer.text
            messages = [
                messages[0],
                {"role": "assistant", "content": answer.text},
                {"role": "user", "content": f"That cannot be used: {problem}. Answer once more, in full."},
            ]
        times = f" ({spec.answers} answers)" if spec.answers > 1 else ""
        raise _NoCaptionError(f"{problem}{times}", last)

    def _question(self, file: MediaFile) -> str:
        frames = "The pictures are frames of one video, in order.\n\n" if file.kind == "video" else ""
        if self.task.schema is None:
            return f"{frames}{self.spec.prompt.strip()}"
        fields = (
            f"Answer with one JSON object and nothing else. Its fields, in this order:\n{self.task.schema.fields()}"
        )
        return f"{frames}{self.spec.prompt.strip()}\n\n{fields}"

    def _response_format(self) -> dict[str, Any] | None:
        if self.task.schema is None or self.spec.response_format == "none":
            return None
        if self.spec.response_format == "json_object":
            return {"type": "json_object"}
        return {"type": "json_schema", "json_schema": {"name": "caption", "schema": json.loads(self.task.schema.text)}}

    def _read(self, answer: Answer) -> Row:
        """The caption that an answer is.

        Raises:
            DataError: it is none, and why.
        """
        if answer.was_cut:
            raise DataError("it was cut at the most tokens that it may have (annotator.options.max_tokens)")
        if PLACEHOLDER in answer.text:
            raise DataError(f"it holds {PLACEHOLDER}, the mark of an answer that is missing")
        if self.task.schema is None:
            caption: Any = {"caption": answer.text.strip()}
        else:
            fenced = _FENCED.match(answer.text.strip())
            try:
                caption = json.loads(fenced[1] if fenced else answer.text, parse_constant=_no_number)
            except (ValueError, RecursionError) as error:
                raise DataError(f"it is no JSON: {error}") from None
            if not isinstance(caption, dict):
                raise DataError("it is JSON, but no object")
            caption = {name: value for name, value in caption.items() if name not in NO_CAPTION}
            DataError.raise_if(self.task.schema.problems(caption))
            caption = json.loads(self.task.schema.answer(caption))
        try:
            json.dumps(caption, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError("it holds half a character, which no file can hold") from None
        return caption

    def summary(self) -> "Table":
        """What came of it."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(f"captions by {self.spec.model}"), title_justify="left", caption_justify="left")
        for column in ("there before", "annotated", "without an answer", "not asked"):
            table.add_column(column, justify="right")
        before, failed = len(self.task.files) - len(self.missing), len(self.said)
        table.add_row(str(before), str(self.annotated), str(failed), str(self.not_asked))
        caption = [f"captions  {self.task.out}", f"paths     start from {self.task.base}"]
        caption += ["tokens    {:,} of prompts, {:,} of answers".format(*self.tokens)] if any(self.tokens) else []
        caption += [f"problems  {self.problems.path}"] if self.said else []
        table.caption = Text("\n".join(caption))
        return table

    @property
    def not_asked(self) -> int:
        """Media that were left when the command gave up, or was stopped."""
        return len(self.missing) - self.annotated - len(self.said)

    def shown_problems(self) -> list[str]:
        """The first problems for the screen; the file has them all."""
        shown = self.said[:_LISTED]
        if len(self.said) > _LISTED:
            shown.append(f"{len(self.said) - _LISTED} more media have no answer; {self.problems.path} lists them")
        if self.not_asked:
            shown.append(
                f"{self.not_asked} media were not asked about, as {self.in_a_row} in a row had no answer "
                f"(annotator.give_up_after={self.spec.give_up_after}); the same command goes on"
            )
        return shown


def _pictures(uris: list[str]) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
