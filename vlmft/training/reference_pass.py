"""The reference's log-probabilities of all pairs that a run will meet, computed before it trains and kept in a file."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from vlmft.data.mixture import Mixture, SampleRef
from vlmft.encoding.batching import BatchingSpec
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.loading import EncodedGroup, Watch, encode_group, load
from vlmft.errors import StorageError, VlmftError
from vlmft.training.pairs import PairReader
from vlmft.training.ranks import rank, world_size
from vlmft.training.reference import judging
from vlmft.training.step_plan import StepPlan

Known = dict[str, tuple[float, float]]
"""By sample id: the log-probabilities, in nats, of the chosen and the rejected answer."""

_PARTS = 20
_LEAST_PART = 512
"""Pairs after which the file is written: often enough to be stopped, seldom enough as it is written anew each time."""

_DECIDING = ("model.", "recipe.", "precision", "dataset.", "data.", "adapter.", "trainer.ld_alpha")


def facts_of(fingerprint: Mapping[str, Any]) -> str:
    """A hash of those parts of a run's fingerprint that the reference's log-probabilities depend on."""
    deciding = {key: value for key, value in fingerprint.items() if key.startswith(_DECIDING)}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def read_known(path: Path, facts: str) -> Known:
    """What an earlier life of the run has kept in `path`; nothing where it was computed of something else.

    Raises:
        StorageError: the file is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    try:
        head, *rows = map(json.loads, lines)
        if head["facts"] != facts:
            return {}
        return {row["id"]: (row["chosen"], row["rejected"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged ({error}); remove it, and it is computed again") from None


def write_known(path: Path, facts: str, known: Known) -> None:
    """Write what `read_known` reads, the whole file or nothing. Raises `StorageError` where that fails."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps({"facts": facts}) + "\n")
            for sample_id, (chosen, rejected) in known.items():
                row = {"id": sample_id, "chosen": chosen, "rejected": rejected}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


class ReferencePass:
    """Reads every pair of the run's steps once with the model as it stands, shared out over the ranks.

    A pair that cannot be encoded is left out: training meets it, too, and counts it there.

    Args:
        num_workers: loader processes that encode meanwhile.
        ld_alpha: as in `answer_log_probs`.
        between_groups: called before each group; may raise to stop.
        on_progress: takes how many of how many pairs are kept.
    """

    def __init__(
        self,
        mixture: Mixture,
        plan: StepPlan,
        encoder: Encoder,
        reader: PairReader,
        batching: BatchingSpec,
        num_workers: int,
        ld_alpha: float | None,
        between_groups: Callable[[], None],
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.mixture = mixture
        self.plan = plan
        self.encoder = encoder
        self.reader = reader
        self.batching = batching
        self.num_workers = num_workers
        self.ld_alpha = ld_alpha
        self.between_groups = between_groups
        self.on_progress = on_progress

    def complete(self, model: Any, path: Path, facts: str) -> Known:
        """Everything that the run needs; what `path` does not hold yet is computed and added to it, part by part.

        A run that is stopped on the way goes on from the last part.

        Raises:
            StorageError: the file is damaged, or cannot be written.
        """
        known = read_known(path, facts)
        missing = [ref for ref in self._met() if self.mixture.sample_id(ref) not in known]
        size = max(_LEAST_PART, math.ceil(len(missing) / _PARTS))
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            known |= self._compute(model, part[rank() :: world_size()])
            if rank() == 0:
                write_known(path, facts, known)
            self.on_progress(start + len(part), len(missing))
        return known

    def _met(self) -> Iterator[SampleRef]:
        """Each row that the run's steps visit, once."""
        seen: set[tuple[int, int]] = set()
        for position in range(self.plan.num_steps * self.plan.global_batch_size):
            ref = self.mixture.at(position)
            if (ref.part, ref.row) not in seen:
                seen.add((ref.part, ref.row))
                yield ref

    def _compute(self, model: Any, refs: Sequence[SampleRef]) -> Known:
        """What all ranks find, each of its own `refs`."""
        size = max(1, self.plan.global_batch_size // world_size())
        groups = _Pairs(self, [refs[i : i + size] for i in range(0, len(refs), size)])
        found: Known = {}
        with judging(model), torch.no_grad():
            for group in load(groups, self.num_workers):
                self.between_groups()
                found |= self._read(model, group.samples)
        if world_size() == 1:
            return found
        shares: list[Any] = [None] * world_size()
        torch.distributed.all_gather_object(shares, found)
        return {sample_id: value for share in shares for sample_id, value in share.items()}

    def _read(self, model: Any, pairs: list[Encoded]) -> Known:
        found: Known = {}
        kinds = self.reader.collator.kinds(pairs)
        lengths = [pair.num_tokens if self.batching.packs else pair.num_places for pair in pairs]
        for cut in self.batching.micro_batches(lengths, kinds=kinds) if pairs else []:
            read = self.reader.answers(model, [pairs[i] for i in cut], self.ld_alpha)
            both = torch.stack(read, dim=1).tolist()
            found |= {pairs[i].id: (chosen, rejected) for i, (chosen, rejected) in zip(cut, both, strict=True)}
        return found


class _Pairs:
    """Maps a group's number to its encoded pairs."""

    def __init__(self, owner: ReferencePass, groups: Sequence[Sequence[SampleRef]]) -> None:
        self.encoder = owner.encoder
        self.mixture = owner.mixture
        self.groups = groups
        self.watch = Watch()

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> EncodedGroup | VlmftError:
        return encode_group(
            self.encoder,
            number,
            self.groups[number],
            encode=lambda ref: self.encoder.encode(self.mixture.read(ref)),
            sample_id=self.mixture.sample_id,
            watch=self.watch,
        )
