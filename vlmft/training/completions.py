"""The completions of a step as a table: completions/step-00000001.parquet."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.errors import StorageError
from vlmft.scoring.rewards import OWN
from vlmft.training.ranks import rank

if TYPE_CHECKING:
    from vlmft.training.answered import Completion

_KEPT_OUT = "not shown: its system prompt comes from the environment"


def is_kept(step: int, every: int | None) -> bool:
    """Whether the completions of a step, counted from 0, are kept: of the first, and of each `every`-th."""
    return every is not None and (step == 0 or (step + 1) % every == 0)


def rows_of(
    step: int, completions: "Sequence[Completion]", collator: Collator, kept_out: Collection[str] = ()
) -> list[dict[str, Any]]:
    """A row for each completion; those of a prompt follow each other. `step` counts from 0, the column from 1.

    Args:
        kept_out: entries whose prompts no file may hold.
    """
    return [
        {
            "step": step + 1,
            "id": one.id,
            "prompt": _KEPT_OUT if one.id.partition("/")[0] in kept_out else prompt_text(one.encoded, collator),
            "completion": one.rollout.text,
            "solution": _writable(one.solution),
            "reward": one.reward,
            "advantage": one.advantage,
            **{OWN + name: score for name, score in one.scores.items()},
            "ended": one.rollout.ended,
            "completion_ids": one.rollout.ids.tolist(),
        }
        for one in completions
    ]


def prompt_text(encoded: Encoded, collator: Collator) -> str:
    """The prompt as the model gets it, special tokens included; a run of vision tokens stands there as one."""
    features = collator.family.feature_tokens(collator.processor)
    ids = encoded.input_ids[~encoded.supervised].tolist()
    return _writable(collator.processor.tokenizer.decode(list(_without_repeats(ids, features))))


def write(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rank 0 writes the rows of all ranks, which are of one step; called on all ranks alike.

    Raises:
        StorageError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    everywhere = gather_object(list(rows))
    if rank() != 0 or not everywhere:
        return
    path = folder / f"step-{everywhere[0]['step']:08d}.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(everywhere), path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _writable(text: str) -> str:
    """A row may hold half of a surrogate pair, which UTF-8 has no place for."""
    return text.encode(errors="replace").decode()


def _without_repeats(ids: Sequence[int], features: frozenset[int]) -> Iterator[int]:
    last = None
    for token in ids:
        if token != last or token not in features:
            yield token
        last = token
