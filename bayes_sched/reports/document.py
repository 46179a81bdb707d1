"""A result as a document: what is shown on a terminal and on a page, and what JSON and CSV files hold.

`report` turns a result into a `Document`; one module of this package a kind of result registers how. It only
says what the result holds, and computes nothing. Texts are Markdown in one line: ``*emphasis*``,
``**strong**``, ```code``` and ``[words](file)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import singledispatch
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from bayes_sched.files import VERSION
from bayes_sched.format import NONE, number, records
from bayes_sched.reports import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

type Medium = Literal["page", "terminal"]
"""Where an item is shown; Markdown is a page."""
type Item = Text | Table | Figure | Section | Details


_WORDS = 40  # a cell as long as that is no number, even if it begins with a digit


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph, with a list below it if need be."""

    text: str
    kind: Literal["plain", "lead", "soft", "code", "good", "bad", "warning", "error"] = "plain"
    """``good`` and ``bad`` are verdicts, ``warning`` and ``error`` boxes, ``code`` a command as it is
    typed."""
    points: tuple[str, ...] = ()  # the list
    on: Medium | None = None  # the only medium to show it


def cell(value: Any) -> str:
    """Write a value: numbers with three digits, counts in full, words as they stand."""
    if value is None:
        return NONE
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return number(value)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table as people read it."""

    source: str | tuple[str, ...]  # the columns of the frame that it is made from
    title: str  # on a page; empty: not shown there
    format: Callable[..., str] = cell  # from their values, None where one is missing, to text
    short: str | None = None  # its title on a terminal, by default that of the page; empty: not shown there

    def title_on(self, medium: Medium) -> str:
        """Return the title, empty where the column is not shown."""
        return self.title if medium == "page" or self.short is None else self.short

    def cells(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Write the cells of some rows."""
        names = (self.source,) if isinstance(self.source, str) else self.source
        return [self.format(*(row[name] for name in names)) for row in rows]


def titled(on: Medium | None = None, /, **titles: str) -> tuple[Column, ...]:
    """Return columns as they stand, titles by source; only on a medium if it is given."""
    if on == "terminal":
        return tuple(Column(source, "", short=title) for source, title in titles.items())
    short = "" if on == "page" else None
    return tuple(Column(source, title, short=short) for source, title in titles.items())


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows of a frame."""

    frame: pd.DataFrame
    columns: tuple[Column, ...] = ()  # by default those of the frame, under their own names
    failed: Sequence[bool] = ()  # rows to mark
    on: Medium | None = None  # the only medium to show it
    max_rows: int | None = None
    """On a terminal: of more, every second, third, ... is shown, the last one included."""
    blocks: Sequence[int] = ()  # on a terminal: numbers of rows between which a line stays empty

    def texts(self, medium: Medium) -> TableTexts:
        """Return the table as it is shown."""
        rows = records(self.frame)
        failed = list(self.failed) or [False] * len(rows)
        if medium == "terminal" and self.max_rows is not None:
            every = -(-len(rows) // self.max_rows) or 1
            kept = [i for i in range(len(rows)) if (len(rows) - 1 - i) % every == 0]
            rows, failed = [rows[i] for i in kept], [failed[i] for i in kept]
        columns = self.columns or tuple(Column(str(name), str(name)) for name in self.frame.columns)
        shown = [column for column in columns if column.title_on(medium)]
        texts = [column.cells(rows) for column in shown]
        cells: list[tuple[str, ...]] = list(zip(*texts, strict=True))
        if medium == "terminal":
            for end in reversed(list(accumulate(self.blocks))[:-1]):
                cells.insert(end, ())
        return TableTexts(
            titles=tuple(column.title_on(medium) for column in shown),
            rows=tuple(cells),
            is_text=tuple(bool(column) and not _is_number(column[0]) for column in texts),
            failed=tuple(failed),
        )


@dataclass(frozen=True, slots=True)
class TableTexts:
    """A table in words: titles, rows of cells, which columns hold words, which rows to mark."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_text: tuple[bool, ...]
    failed: tuple[bool, ...]


def _is_number(text: str) -> bool:
    return len(text) < _WORDS and (text[:1].isdigit() or text[:1] in {NONE, "-"})


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A figure of a page: its file's name, title and caption, and how it is drawn."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Drawing]


def figure(plot: str, title: str, caption: str, *of: Any, name: str = "") -> Figure:
    """Return a figure of results: `plot`, ``room.function`` of `plots`, is loaded only when it is drawn."""
    room, function = plot.split(".")

    def draw() -> Drawing:
        drawn: Drawing = getattr(getattr(plots, room), function)(*of)
        return drawn

    return Figure(name or function, title, caption, draw)


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """Items under a title, which a terminal does not show."""

    title: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Details:
    """Items of a page that open when they are asked for."""

    title: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Document:
    """A result as it is told."""

    title: str
    name: str  # title of the window
    subtitle: str = ""  # of what and by what; see `made`
    head: tuple[Text, ...] = ()  # the verdict in one sentence, and what nobody may overlook
    sections: tuple[Item, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)  # plain values, what the JSON file holds
    json_name: str = "summary.json"  # its name
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """What the CSV files hold, by name, in full precision."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures in the order of the page."""
        return tuple(_figures(self.sections))


def _figures(items: Sequence[Item]) -> list[Figure]:
    found: list[Figure] = []
    for item in items:
        if isinstance(item, Figure):
            found.append(item)
        elif isinstance(item, Section | Details):
            found += _figures(item.items)
    return found


@singledispatch
def report(result: Any, *, command: str = "") -> Document:
    """Return a result as a document.

    Parameters
    ----------
    result : object
        What a function of this package found: a fit's summary, a comparison, an SLA, a plan, ...
    command : str
        What it was made by, to be shown on the page.

    Raises
    ------
    TypeError
        There is no report of such results.
    """
    msg = f"there is no report of a {type(result).__name__}"
    raise TypeError(msg)


def made(*subjects: str, at: str = "", version: str = VERSION) -> str:
    """Return a subtitle: of what, when (ISO 8601, by default now) and by which version."""
    return " · ".join(
        [
            *filter(None, subjects),
            f"made {date(at or datetime.now(UTC).isoformat())} by bayes-sched {version}",
        ]
    )


def labelled(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return GPU and LLM of some labels as subjects of a subtitle."""
    return tuple(f"{name.upper()} {labels[name]}" for name in ("gpu", "llm") if labels.get(name))


def date(iso: str) -> str:
    """Write an ISO 8601 time as a person reads it; what is none stays as it is."""
    try:
        return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return iso


def beware(warnings: Sequence[str], *, title: str = "Beware") -> tuple[Text, ...]:
    """Return a box with warnings, nothing where there are none."""
    return (Text(f"**{title}**", "warning", tuple(warnings), on="page"),) if warnings else ()


def unconverged(problems: Sequence[str]) -> tuple[Text, ...]:
    """Return the verdict on a fit that has not converged, and why."""
    alarm = "**Do not act on these numbers.** The convergence gate found:"
    return Text("NOT CONVERGED", "bad", on="page"), Text(alarm, "error", tuple(problems), on="page")


def how_made(
    command: str, *items: Item, files: Sequence[str] = (), frames: Sequence[str] = (), end: str = ""
) -> Section:
    """Return the last section: the command, more items, the files (and ``tables/NAME.csv``), what follows."""
    links = [f"[{name}]({name})" for name in files]
    links += [f"[{name.replace('_', ' ')}](tables/{name}.csv)" for name in frames]
    same = f"The same numbers: {', '.join(links)}{' (CSV)' if frames else ''}."
    told = (Text(command, "code", on="page"),) if command else ()
    return Section("How it was made", (*told, *items, Text(f"{same} {end}".rstrip(), "soft", on="page")))
