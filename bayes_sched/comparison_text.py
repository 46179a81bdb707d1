"""The numbers of a comparison as plain text, no wider than a terminal."""

from __future__ import annotations

import textwrap

from bayes_sched.comparison import Comparison
from bayes_sched.comparison.words import certainty, ratio_text
from bayes_sched.numbers import NONE, number, percent, span
from bayes_sched.records import records
from bayes_sched.terminal import WIDTH, text_table

_LABEL_WIDTH = 13


def comparison_text(comparison: Comparison) -> str:
    """Return the paragraph and the tables."""
    paragraph = textwrap.fill(" ".join(comparison.sentences), WIDTH, break_on_hyphens=False)
    parts = [
        paragraph,
        _shares(comparison),
        _steps(comparison),
        _throughput(comparison),
        _parameters(comparison),
        textwrap.fill(comparison.rule, WIDTH, initial_indent="  ", subsequent_indent="  "),
    ]
    return "\n\n".join(filter(None, parts))


def _pair(gpu: str, other: str) -> str:
    return f"{_label(gpu)} / {_label(other)}"


def _label(label: str) -> str:
    """Shorten at the beginning: names of results differ at their ends."""
    return label if len(label) <= _LABEL_WIDTH else f"…{label[2 - _LABEL_WIDTH :]}"


def _shares(comparison: Comparison) -> str:
    words = ("faster", "slower", "equivalent", "undecided")
    rows = [
        [
            _pair(row["gpu"], row["other"]),
            row["of"],
            f"{row['num_steps']:,}",
            *(percent(row[word]) for word in words),
        ]
        for row in records(comparison.shares)
    ]
    return text_table(["verdicts", "of the", "steps", *words], rows, right={"steps", *words})


def _steps(comparison: Comparison) -> str:
    """Return a table a pair, headed by the names of the two."""
    titles = ["mean (ms)", "B", "S", "first", "second", "ratio", "P(faster)", "verdict"]
    parts = []
    for (gpu, other), group in comparison.steps.groupby(["gpu", "other"], sort=False):
        rows = [
            [
                row["step"],
                f"{row['batch_size']:,}",
                f"{row['total_tokens']:,}",
                number(row["gpu_ms"]),
                number(row["other_ms"]),
                ratio_text(row),
                _compact(certainty(row["p_faster"])),
                row["verdict"],
            ]
            for row in records(group)
        ]
        table = text_table(titles, rows, right={"B", "S", "first", "second"})
        parts.append(f"  {gpu} (first) / {other} (second)\n{table}")
    return "\n\n".join(parts)


def _throughput(comparison: Comparison) -> str:
    rows: list[list[str]] = []
    has_cost = bool(comparison.throughput["cost"].notna().any())
    for row in records(comparison.throughput):
        if not rows or row["case"] not in [cells[0] for cells in rows if cells]:
            rows += [[row["case"], *[""] * (4 if has_cost else 2)]]
        cells = [
            f"  {_label(row['gpu'])}",
            number(row["tokens_per_s"]),
            span(row["tokens_per_s_lower"], row["tokens_per_s_upper"]),
        ]
        if has_cost:
            cost_span = NONE if row["cost"] is None else span(row["cost_lower"], row["cost_upper"])
            cells += [number(row["cost"]), cost_span]
        rows.append(cells)
    interval = f"{percent(comparison.probability)} interval"
    titles = ["throughput", "tokens/s", interval]
    titles += ["cost/million", f"its {interval}"] if has_cost else []
    return text_table(titles, rows, right={"tokens/s", "cost/million"}) if rows else ""


def _parameters(comparison: Comparison) -> str:
    titles = ["parameter", "ratio of", "ratio", "verdict"]
    chosen = comparison.parameter_ratios[comparison.parameter_ratios["kind"] != "noise"]
    rows = [
        [
            row["name"],
            _pair(row["gpu"], row["other"]),
            f"{_short(row['ratio_median'])} ({_short(row['ratio_lower'])} to {_short(row['ratio_upper'])})",
            row["verdict"] if row["identified"] else "none: not identified",
        ]
        for row in records(chosen)
    ]
    return text_table(titles, rows, right=set())


def _compact(text: str) -> str:
    return text.replace("above ", "> ").replace("below ", "< ")


def _short(value: float) -> str:
    return f"{value:.3g}"
