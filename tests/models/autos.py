"""What the tests of `model=auto` share: it, on the folders of the tiny families."""

from functools import cache
from pathlib import Path
from typing import Any

from tests.models.families import FAMILIES, Family, asked, picture
from tests.support import compose
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoder
from vlmft.models import Auto
from vlmft.types import Message, Sample

NAMES = {family.name: family for family in FAMILIES}


def config_of(family: Family, *choices: str) -> Any:
    """A run with `model=auto` on a family's tiny folder."""
    return compose("model=auto", f"model.path={family.spec.folder()}", "precision=fp32", *choices)


@cache
def auto(name: str) -> tuple[Auto, Any]:
    """The spec for a family's tiny folder, and its processor, shared: copy it to change it."""
    spec = config_of(NAMES[name]).model
    assert isinstance(spec, Auto)
    return spec, spec.load_processor()


def parts(name: str, processor: Any = None) -> tuple[Auto, Encoder, Collator]:
    spec, own = auto(name)
    processor = processor or own
    return spec, Encoder(spec, processor), Collator(spec, processor)


def samples(folder: Path) -> list[Sample]:
    turns = (
        Message("system", ("Be brief.",)),
        Message("user", ("Hi, who are you?",)),
        Message("assistant", ("a black shape",)),
        Message("user", (picture(folder, 84, 56, 3), "And here?")),
        Message("assistant", ("no",)),
    )
    return [
        asked(picture(folder, 300, 100), "What colour is the shape?"),
        asked(picture(folder, 56, 56, 1), "Like", picture(folder, 90, 200, 2), "?", answer="yes, both"),
        asked("Are you?", answer="yes"),
        Sample("mine/turns", turns),
    ]
