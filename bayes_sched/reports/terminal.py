"""A document as plain text, no wider than a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import partial

from bayes_sched.reports.document import Details, Document, Figure, Item, Section, Table, Text

WIDTH = 100
"""Columns that every line fits into, as long as the names and units of a model are of common length."""

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
    fill = partial(textwrap.fill, width=WIDTH, break_on_hyphens=False)
    lines = [fill(shown)] if shown else []
    points = [fill(point, initial_indent="  - ", subsequent_indent="    ") for point in item.points]
    return "\n".join(lines + points)


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
