"""The device that a plan is for."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from vlmft.config.spec import Spec

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


Size = Annotated[str, AfterValidator(_checked)]


class Device(Spec):
    """What a plan is to fit."""

    memory: Size | None = Field(description="of one device: 24GB, 23.6GiB; null: of the GPU here, if any")
    reserved: Size = Field(description="of it, what is not for tensors: the CUDA context, and gaps between tensors")
