"""A table as a page shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bayes_sched.numbers import NONE, number


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table as a page shows it.

    Attributes
    ----------
    columns : tuple of str
    rows : tuple of tuple of str
        Formatted cells.
    is_text : tuple of bool
        Which columns hold words; the others are aligned as numbers.
    failed : tuple of bool
        Which rows to mark.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_text: tuple[bool, ...]
    failed: tuple[bool, ...]


def page_table(rows: list[dict[str, Any]], *, failed: list[bool] | None = None) -> PageTable:
    """Format rows: numbers with three digits, counts in full, words as they stand.

    Parameters
    ----------
    rows : list of dict
        The same keys, the column titles, in each.
    failed : list of bool, optional
        Rows to mark.
    """
    columns = tuple(rows[0]) if rows else ()
    return PageTable(
        columns,
        tuple(tuple(_cell(row[column]) for column in columns) for row in rows),
        tuple(isinstance(rows[0][column], str) and not _is_number(rows[0][column]) for column in columns),
        tuple(failed or [False] * len(rows)),
    )


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in {NONE, "-"}


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return number(value)


def mapping_page(mapping: dict[str, Any], titles: tuple[str, str]) -> PageTable:
    """Return a table of names and values."""
    return page_table([{titles[0]: str(key), titles[1]: value} for key, value in mapping.items()])
