"""What the writing process leaves for the checking one, in a folder that lives as long as the command.

A sample's tensors are one safetensors file: `input.<name>` is what the model was given, `answer` [T] the tokens that it
gave greedily, `values` and `tokens` [T, K] the K highest logits at each of them. T = tokens answered.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.merge import MergeConfig

if TYPE_CHECKING:
    from torch import Tensor

LIKELIEST = 64
"""How many logits of each answered token are compared."""

_INPUT = "input."


@dataclass(frozen=True)
class Asked:
    """A sample that both models answer."""

    id: str
    prompt: str
    """As the chat template renders it."""
    images: tuple[str, ...] | None
    """Paths; None where the processor alone, given them, would not see what the training did."""


@dataclass(frozen=True)
class Handover:
    """What was asked, and how to ask it again."""

    asked: tuple[Asked, ...]
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    device: str
    compute_dtype: str
    """The coarser of the base's dtype and the run's precision, by torch's name: what the answers were rounded to."""


class Exchange:
    """The folder between the two processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def request(self) -> MergeConfig:
        """What the command was told; `run` is the `final` folder and `out` the unfinished one."""
        return MergeConfig.model_validate_json((self.folder / "request.json").read_text(encoding="utf-8"))

    def put_handover(self, handover: Handover) -> None:
        """Write it."""
        (self.folder / "handover.json").write_text(json.dumps(asdict(handover)), encoding="utf-8")

    def handover(self) -> Handover:
        """Read it."""
        values: dict[str, Any] = json.loads((self.folder / "handover.json").read_text(encoding="utf-8"))
        asked = [Asked(**item | {"images": _tuple(item["images"])}) for item in values.pop("asked")]
        return Handover(asked=tuple(asked), **values)

    def put_answer(self, number: int, inputs: "dict[str, Tensor]", answer: "dict[str, Tensor]") -> None:
        """Write a sample's tensors."""
        from safetensors.torch import save_file

        named = {f"{_INPUT}{name}": tensor for name, tensor in inputs.items()} | answer
        save_file({name: t.detach().cpu().contiguous() for name, t in named.items()}, self._file(number))

    def answer(self, number: int) -> "tuple[dict[str, Tensor], dict[str, Tensor]]":
        """Read (inputs, answer) of a sample."""
        from safetensors.torch import load_file

        tensors = load_file(self._file(number))
        inputs = {name.removeprefix(_INPUT): t for name, t in tensors.items() if name.startswith(_INPUT)}
        return inputs, {name: t for name, t in tensors.items() if not name.startswith(_INPUT)}

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.safetensors"


def _tuple(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
