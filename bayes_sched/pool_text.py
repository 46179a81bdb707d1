"""The numbers of a pool as plain text, no wider than a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from bayes_sched.numbers import number, percent, span
from bayes_sched.records import records
from bayes_sched.report.pool_words import SPOKEN, factor_text
from bayes_sched.terminal import WIDTH, cut, text_table

if TYPE_CHECKING:
    from bayes_sched.report.pool_summary import PoolSummary

_NAME_WIDTH = 30


def pool_text(found: PoolSummary) -> str:
    """Return the paragraph and the tables.

    Parameters
    ----------
    found : PoolSummary
    """
    paragraph = textwrap.fill(" ".join(found.sentences), WIDTH, break_on_hyphens=False)
    gate = textwrap.fill(
        f"{found.population.convergence.text} {_work(found)}",
        WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
    )
    return "\n\n".join([paragraph, _spread(found), _members(found), _changes(found), gate])


def _spread(found: PoolSummary) -> str:
    share = percent(found.probability)
    titles = ["factor", "unit", "from server to server", "from trace to trace", f"unseen server, {share}"]
    rows = [
        [
            row["coordinate"],
            "" if row["unit"] == "1" else row["unit"],
            factor_text(row, "between"),
            factor_text(row, "within"),
            span(row["unseen_lower"], row["unseen_upper"]),
        ]
        for row in records(found.spread)
    ]
    return text_table(titles, rows, right=set())


def _members(found: PoolSummary) -> str:
    titles = ["trace", "server", "steps", "effective draws"]
    rows = [
        [
            _end(row["trace"]),
            cut(row["server"], _NAME_WIDTH),
            f"{row['steps']:,}",
            f"{row['effective_draws']:,.0f}",
        ]
        for row in records(found.members)
    ]
    return text_table(titles, rows, right={"steps", "effective draws"})


def _changes(found: PoolSummary) -> str:
    """Return the intervals alone and pooled of what is in every model: sums and latency per request."""
    titles = ["", "trace", "alone", "pooled", "width"]
    rows: list[list[str]] = []
    chosen = found.changes[found.changes["coordinate"].isin(SPOKEN)]
    for name, group in chosen.groupby("coordinate", sort=False):
        rows += [[]] if rows else []
        rows += [
            [
                str(name) if number_of == 0 else "",
                _end(row["trace"]),
                span(row["alone_lower"], row["alone_upper"], 4),
                span(row["pooled_lower"], row["pooled_upper"], 4),
                f"{row['width_ratio']:.2f}",
            ]
            for number_of, row in enumerate(records(group))
        ]
    return text_table(titles, rows, right={"width"})


def _work(found: PoolSummary) -> str:
    gate = found.gate
    parts = [f"{gate['num_gradients']:,} gradients"]
    if gate["ess_per_1000_gradients"] is not None:
        parts.append(f"{number(gate['ess_per_1000_gradients'])} effective draws per 1,000 of them")
    if found.seconds is not None:
        parts.append(f"{found.seconds:.0f} s")
    return f"Population: {', '.join(parts)}."


def _end(name: str) -> str:
    """Shorten at the beginning: names of traces differ at their ends."""
    return name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"
