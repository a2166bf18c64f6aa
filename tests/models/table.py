"""The table of docs/models.md: what the matrix holds of each family. `python -m tests.models.table` writes it anew."""

from tests.models.families import FAMILIES, REFUSED, Family
from tests.models.matrix import SHIPPED
from tests.support import PROJECT

DOCS = PROJECT / "docs/models.md"
BEGIN, END = "<!-- families: written by python -m tests.models.table -->\n", "<!-- families: end -->\n"
HEAD = ("`model=`", "class in transformers", "sizes", "SFT and merge", "video", "packs", "refused, and why")


def rows() -> list[tuple[str, ...]]:
    """A row for each family, those that cannot be trained last."""
    trained = [
        (
            f"`{family.name}`",
            f"`{family.model_class}`",
            checkpoints(family.name),
            recipes(family),
            "yes" if family.video else "-",
            "yes" if family.unpacked is None else f"no: {family.unpacked}",
            family.why_refused or "-",
        )
        for family in FAMILIES
    ]
    return trained + [(name, f"`{of}`", "", "-", "-", "-", why) for name, (of, why) in REFUSED.items()]


def checkpoints(name: str) -> str:
    """What the first line of conf/model/<name>.yaml calls them."""
    first = (PROJECT / f"conf/model/{name}.yaml").read_text().splitlines()[0]
    return first.removeprefix("# ").partition(":")[0]


def recipes(family: Family) -> str:
    """How many of the shipped recipes the matrix takes it through, from the first step to the merged model."""
    taken = len(SHIPPED) - len(family.refuses)
    return f"all {taken} recipes" if not family.refuses else f"{taken} of {len(SHIPPED)} recipes"


def table() -> str:
    """The table as Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *rows()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def written(text: str) -> str:
    """The document with its table replaced by what holds now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text()))
