"""A document as plain text, no wider than a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from bayes_sched.format import NONE, number, percent, records
from bayes_sched.reports.document import Details, Document, Figure, Item, Section, Table, Text

if TYPE_CHECKING:
    from bayes_sched.reports.fit import Summary
    from bayes_sched.trace.cleaning import Cleaned
    from bayes_sched.trace.reader import BadLines

WIDTH = 100
"""Columns that every line fits into, as long as the names and units of a model are of common length."""

_ARE_MANY_DIGITS = "×"
_LINK = re.compile(r"\[([^\]]+)\]\([\w./-]+\)")


def terminal(document: Document) -> str:
    """Return what a terminal shows: no titles, figures or details."""
    return "\n\n".join(_blocks((*document.head, *document.sections)))


def _blocks(items: Sequence[Item]) -> list[str]:
    blocks: list[str] = []
    for item in items:
        if isinstance(item, Section):
            blocks += _blocks(item.items)
        elif isinstance(item, Details | Figure) or item.on == "page":
            continue
        elif isinstance(item, Table):
            texts = item.texts("terminal")
            blocks.append(aligned(texts.titles, texts.rows, texts.is_text))
        else:
            blocks.append(_text(item))
    return blocks


def _text(item: Text) -> str:
    shown = _LINK.sub(r"\1", item.text)
    for mark in ("**", "`"):
        shown = shown.replace(mark, "")
    lines = [textwrap.fill(shown, WIDTH, break_on_hyphens=False)] if shown else []
    return "\n".join([*lines, *map(_point, item.points)])


def _point(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]], is_text: Sequence[bool]) -> str:
    """Return an aligned table: words to the left, numbers to the right; an empty row is an empty line."""
    widths = [max(map(len, column)) for column in zip(titles, *filter(None, rows), strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(cells, widths, is_text, strict=False)
        ]
        return f"  {'  '.join(padded)}".rstrip()

    return "\n".join(map(line, [titles, ["-" * width for width in widths], *rows]))


def paragraph_text(summary: Summary) -> str:
    """Return the plain-language paragraph."""
    return textwrap.fill(" ".join(summary.sentences), WIDTH, break_on_hyphens=False)


def bad_lines_text(bad_lines: BadLines) -> str:
    """Return how many lines could not be used, by reason, and the first few; empty if all could."""
    if not bad_lines.num_bad:
        return ""
    head = f"{bad_lines.num_bad:,} of {bad_lines.num_lines:,} lines could not be used; the first:"
    rows = [[f"{count:,}", reason] for reason, count in bad_lines.counts.items()]
    counts = text_table(["lines", "reason"], rows, right={"lines"})
    return "\n".join([head, *(f"  {cut(str(line), WIDTH - 2)}" for line in bad_lines.first), "", counts])


def cleaning_text(cleaned: Cleaned) -> str:
    """Return what each cleaning rule removed; empty if nothing was."""
    if cleaned.num_before == cleaned.num_after:
        return ""
    head = f"{cleaned.num_after:,} of {cleaned.num_before:,} steps are left after cleaning:"
    rows = [
        [str(row["rule"]), f"{row['removed']:,}", percent(float(row["share"] or 0.0), 2)]
        for row in records(cleaned.table)
    ]
    table = text_table(["rule", "steps removed", "share"], rows, right={"steps removed", "share"})
    return f"{head}\n\n{table}"


def parameter_text(parameters: pd.DataFrame, *, probability: float) -> str:
    """Return the parameters, the noise parameters and the identified combinations as one table.

    Parameters
    ----------
    parameters : DataFrame
        :meth:`bayes_sched.fitted.FittedModel.parameter_table`.
    probability : float
        Of the credible interval.
    """
    interval = f"{100 * probability:g}% interval"
    title = ["name", "median", interval, "unit", "contraction", "ESS", "R-hat"]
    rows: list[list[str]] = []
    kind = "parameter"
    for row in records(parameters):
        if row["kind"] != kind:
            rows.append([])
            kind = str(row["kind"])
        rows.append(
            [
                str(row["name"]),
                _number(row["median"]),
                f"{_number(row['lower'])} to {_number(row['upper'])}",
                cut("" if row["unit"] == "1" else str(row["unit"]), 22),
                _fixed(row["contraction"], 2),
                _count(_least(row["ess_bulk"], row["ess_tail"])),
                _fixed(row["r_hat"], 3),
            ]
        )
    return text_table(title, rows, right={"median", interval, "contraction", "ESS", "R-hat"})


def text_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: set[str]) -> str:
    """Return an aligned table.

    Parameters
    ----------
    titles : sequence of str
    rows : sequence of sequence of str
        Cells; an empty row is an empty line.
    right : set of str
        Titles of the columns that are aligned to the right.
    """
    return aligned(titles, rows, [title not in right for title in titles])


def _number(value: float | None) -> str:
    """Write three digits; a power of ten in the short way that lines up."""
    text = number(value)
    return f"{value:.2e}" if value is not None and _ARE_MANY_DIGITS in text else text


def _fixed(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def _least(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return min(known) if len(known) == len(values) else None


def cut(text: str, width: int) -> str:
    """Shorten a text at its end."""
    return text if len(text) <= width else f"{text[: width - 1]}…"
