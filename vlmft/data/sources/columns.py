"""Tables with named columns, some of which a user calls by other names than the row's format does."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlmft.config.hints import did_you_mean
from vlmft.errors import DataError


def check_columns(columns: Mapping[str, str], found: Sequence[str], where: str) -> None:
    """Raise `DataError` where `columns` (ours: theirs) cannot be applied to a table that has the columns `found`."""
    for ours, theirs in columns.items():
        if theirs not in found:
            hint = did_you_mean(theirs, found) or f"; it has {', '.join(found)}"
            raise DataError(f"{where}: has no column {theirs!r}, which columns.{ours} names{hint}")
        if ours in found and ours not in columns.values():
            raise DataError(
                f"{where}: has both {ours!r} and {theirs!r}, which columns.{ours} would give the same name; "
                f"rename the other, too: {{{ours}: {theirs}, other: {ours}}}"
            )
    if len(set(columns.values())) < len(columns):
        raise DataError(f"{where}: columns names one column twice: {dict(columns)}")


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with our names for its columns."""
    ours = {theirs: own for own, theirs in columns.items()}
    return {ours.get(key, key): value for key, value in row.items()}
