"""The mixture grammar: `A+B`, `A*3` or `A@3` repeats, `A@0.25` takes a quarter; mixtures stand where entries do."""

import math
import re
from collections.abc import Collection, Mapping

from vlmft.config.hints import did_you_mean
from vlmft.errors import ConfigError

MixtureValue = str | list[str]
"""What `mixtures.yaml` gives a name: an expression in this grammar, or a list of them."""

NAME = re.compile(r"[A-Za-z0-9_-]+")
NONE = "none"
"""The option that chooses nothing; it stands alone."""

_TERM = re.compile(r"(?P<name>[^*@]*)(?:(?P<mark>[*@])(?P<number>.*))?", re.DOTALL)
_DECIMAL = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]-?[0-9]+)?")
_WHOLE = re.compile(r"[0-9]+")
_MAX_DEPTH = 50  # far beyond any use, and far below Python's recursion limit


def expand(
    expression: str, entries: Collection[str], mixtures: Mapping[str, MixtureValue] | None = None, kind: str = "dataset"
) -> dict[str, float]:
    """Return each entry that `expression` reaches with its factor, in the order written.

    Factors multiply along the way: with `mix: A@0.5`, `mix*3` gives A the factor 1.5. `kind` is the word
    for an entry in messages.

    Raises:
        ConfigError: every empty term, bad factor, unknown name, cycle and entry reached twice, with the chain
            of mixtures that leads there.
    """
    expansion = _Expansion(entries, mixtures or {}, kind)
    expansion.add(expression, (), 1.0)
    ConfigError.raise_if(expansion.problems)
    return expansion.factors


class _Expansion:
    def __init__(self, entries: Collection[str], mixtures: Mapping[str, MixtureValue], kind: str) -> None:
        self.entries, self.mixtures, self.kind = entries, mixtures, kind
        self.factors: dict[str, float] = {}
        self.problems: list[str] = []
        self.reached: dict[str, str] = {}  # name -> the chain that reached it first

    def add(self, value: MixtureValue, chain: tuple[str, ...], factor: float) -> None:
        expressions = [value] if isinstance(value, str) else value
        if not expressions:
            self.problems.append(f"{_arrows(chain)}: is an empty mixture")
        for expression in expressions:
            terms = expression.split("+")
            for place, term in enumerate(terms, start=1):
                if term.strip():
                    self._add_term(term.strip(), chain, factor)
                else:
                    self.problems.append(f"{_arrows(chain, repr(expression))}: term {place} of {len(terms)} is empty")

    def _add_term(self, term: str, chain: tuple[str, ...], factor: float) -> None:
        match = _TERM.fullmatch(term)
        assert match is not None  # the pattern takes any text
        name = match["name"].strip()
        here = (*chain, name)
        if not NAME.fullmatch(name):
            self.problems.append(f"{_arrows(chain, repr(term))}: a name has only letters, digits, '_' and '-'")
        elif name in chain:
            self.problems.append(f"{_arrows(here)}: a mixture cannot contain itself")
        elif name not in self.entries and name not in self.mixtures:
            self.problems.append(f"{_arrows(here)}: {self._unknown(name)}")
        elif name in self.reached:
            self.problems.append(f"{_arrows(here)}: {name} is there twice; first reached as {self.reached[name]}")
        else:
            self.reached[name] = _arrows(here)
            self._add_known(name, here, factor, match["mark"], match["number"])

    def _add_known(self, name: str, here: tuple[str, ...], factor: float, mark: str | None, number: str | None) -> None:
        try:
            factor *= _factor(mark, (number or "").strip())
        except ValueError as error:
            self.problems.append(f"{_arrows(here)}: {error}")
            return
        if not 0 < factor < math.inf:
            self.problems.append(
                f"{_arrows(here)}: the factors multiply to {factor}, which is no finite number above 0"
            )
        elif name in self.entries:
            self.factors[name] = factor
        elif len(here) > _MAX_DEPTH:
            self.problems.append(f"{_arrows(here[:3])} -> ...: mixtures are nested more than {_MAX_DEPTH} deep")
        else:
            self.add(self.mixtures[name], here, factor)

    def _unknown(self, name: str) -> str:
        if name == NONE:
            return f"{NONE} chooses nothing and must stand alone"
        known = {*self.entries, *self.mixtures, NONE}
        return f"unknown {self.kind}" + (did_you_mean(name, known) or f"; known: {', '.join(sorted(known))}")


def _factor(mark: str | None, number: str) -> float:
    if mark is None:
        return 1.0
    if mark == "*":
        # Bounded in length, as Python refuses to read whole numbers of thousands of digits.
        if not _WHOLE.fullmatch(number) or len(number) > 15 or int(number) < 1:
            raise ValueError(
                f"the number after * should be whole and at least 1 (a part is written @0.25); found {number!r}"
            )
        return float(number)
    value = float(number) if _DECIMAL.fullmatch(number) else math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"the number after @ should be finite and above 0; found {number!r}")
    return value


def _arrows(chain: tuple[str, ...], *more: str) -> str:
    return " -> ".join((*chain, *more))
