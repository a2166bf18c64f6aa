"""docs/models.md says what the matrix holds."""

import re

from tests.models.families import FAMILIES, REFUSED
from tests.models.table import DOCS, rows, written
from tests.support import PROJECT


def test_the_table_is_what_holds() -> None:
    text = DOCS.read_text()
    assert written(text) == text, "python -m tests.models.table writes it anew"
    assert len(rows()) == len(FAMILIES) + len(REFUSED)


def test_every_refused_recipe_is_named_with_its_reason() -> None:
    for family in FAMILIES:
        assert set(re.findall(r"`(\w+)`", family.why_refused)) == set(family.refuses), family.name


def test_every_family_that_can_be_chosen_is_in_it() -> None:
    chosen = {path.stem for path in (PROJECT / "conf/model").glob("*.yaml")} - {"auto"}
    assert chosen == {name for family in FAMILIES for name in (family.name, f"tiny_{family.name}")}
