"""quarantine.jsonl of a run folder: the samples that training has left out, each once, in the order they were met."""

import json
from pathlib import Path

from vlmft.data.problems import place_in
from vlmft.errors import StorageError
from vlmft.run_folder import MetricsWriter

QUARANTINE = "quarantine.jsonl"


class Quarantine:
    """Appends `{"id", "place", "reason", "step"}` for each sample that is left out; there is no file before the first.

    Args:
        step: the step that the run goes on from; what later steps had left out is met again, and its lines are cut.

    Raises:
        StorageError: the file cannot be read or written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self._writer: MetricsWriter | None = None
        self._known = self._cut(step)

    def add(self, step: int, sample_id: str, reason: str) -> None:
        """List a sample, unless it is listed already."""
        if sample_id in self._known:
            return
        self._known.add(sample_id)
        self._writer = self._writer or MetricsWriter(self.path)
        place = place_in(reason, sample_id)
        self._writer.append({"id": sample_id, "place": place, "reason": reason, "step": step})

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _cut(self, step: int) -> set[str]:
        try:
            if not self.path.exists():
                return set()
            lines = self.path.read_bytes().splitlines(keepends=True)
            found = [(line, json.loads(line)) for line in lines if line.endswith(b"\n")]
            kept = [(line, values["id"]) for line, values in found if values["step"] <= step]
            if kept:
                beside = self.path.with_suffix(".partial")
                beside.write_bytes(b"".join(line for line, _ in kept))
                beside.replace(self.path)
            else:
                self.path.unlink()
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{self.path} is damaged ({error!r}); remove it, or choose another run.dir") from error
        return {sample_id for _, sample_id in kept}
