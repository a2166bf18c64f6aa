"""The device that a plan is for."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from vlmft.config.spec import Spec
from vlmft.training.peaks import PEAK_TFLOPS, peak_tflops

_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})")


def num_bytes(size: str) -> int:
    """Bytes of a size such as 24GB (24 x 10^9) or 24GiB (24 x 2^30).

    Raises:
        ValueError: it is no such size.
    """
    found = _SIZE.fullmatch(size)
    if found is None:
        raise ValueError(f"{size!r} is no size; write a number and a unit, such as 24GB or 23.6GiB")
    return round(float(found[1]) * _UNITS[found[2]])


def _checked(size: str) -> str:
    num_bytes(size)
    return size


def _as_text(word: object) -> object:
    """A number as it was typed: 4090."""
    return str(word) if type(word) in (int, float) else word


Size = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked)]


class Device(Spec):
    """What a plan is to fit, and how fast that computes."""

    memory: Size | None = Field(description="of one device: 24GB, 23.6GiB; null: of the GPU here, if any")
    reserved: Size = Field(description="of it, what is not for tensors: the CUDA context, and gaps between tensors")
    name: Annotated[str | None, BeforeValidator(_as_text)] = Field(
        description="an NVIDIA GPU by its name (H100, A100, 4090), for its peak in 16 bits"
    )
    tflops: float | None = Field(gt=0, description="TFLOP/s of matrices, in place of the peak that `name` stands for")
    utilisation: float = Field(gt=0, le=1, description="share of that which training reaches; hours follow from it")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and peak_tflops(name) is None:
            raise ValueError(
                f"the peak of {name!r} is not known; known are {', '.join(PEAK_TFLOPS)}; device.tflops= takes any"
            )
        return name
