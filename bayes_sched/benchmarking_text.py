"""What a benchmark measured, as plain text."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bayes_sched.terminal import text_table

_FITS: dict[str, tuple[str, str]] = {
    "trace": ("trace", "{}"),
    "seed": ("seed", "{}"),
    "rows": ("rows", "{:,}"),
    "compile_s": ("compile s", "{:.1f}"),
    "pilot_s": ("pilot s", "{:.1f}"),
    "sampling_s": ("sample s", "{:.1f}"),
    "total_s": ("total s", "{:.1f}"),
    "peak_memory_mb": ("peak MB", "{:,.0f}"),
    "divergences": ("divergent", "{:,}"),
    "worst_r_hat": ("worst R-hat", "{:.4f}"),
    "min_ess_bulk": ("bulk ESS", "{:,.0f}"),
    "min_ess_tail": ("tail ESS", "{:,.0f}"),
    "leapfrogs_per_draw": ("leapfrogs/draw", "{:.1f}"),
    "effective_per_1000_gradients": ("ESS/1,000 gradients", "{:.1f}"),
    "modes": ("modes", "{}"),
    "parts": ("parts", "{}"),
    "probability_a_1_above_tau_S": ("P(a_1 > tau_S)", "{:.3f}"),
    "gate_passed": ("gate", "{}"),
}
"""Key of a row, title of its column, and how it is written."""


def sampling_text(result: dict[str, Any], found: pd.DataFrame) -> str:
    """Return the ways to sample one trace, side by side.

    Parameters
    ----------
    result : dict
        ``trace``, ``rows``, ``rows_of``, ``direct_max_depth`` and the ``ratios`` of
        :func:`bayes_sched.benchmarking.ratios_to_best`.
    found : DataFrame
        One row of :meth:`bayes_sched.benchmarking.Measured.to_dict` a method.
    """
    ours = found[found["method"] == "ours"].iloc[0]
    per_gradient = ours["effective_per_1000_gradients"] / found["effective_per_1000_gradients"]
    per_second = ours["effective_per_second"] / found["effective_per_second"]
    table = {
        "method": found["method"].tolist(),
        "gate": ["passed" if passed else "failed" for passed in found["gate_passed"]],
        "divergent": [f"{n:,}" for n in found["divergences"]],
        "worst R-hat": [f"{x:.3f}" for x in found["worst_r_hat"]],
        "min bulk ESS": [f"{x:,.0f}" for x in found["min_ess_bulk"]],
        "ESS/1,000 gradients": [f"{x:.3g}" for x in found["effective_per_1000_gradients"]],
        "with warm-up*": [f"{x:.3g}" for x in found["effective_per_1000_gradients_all"]],
        "ESS/s**": [f"{x:.3g}" for x in found["effective_per_second"]],
        "at max depth": [f"{x:.0%}" for x in found["share_at_max_depth"]],
        "ours/this per gradient": [f"{x:,.1f}" for x in per_gradient],
        "per second": [f"{x:,.1f}" for x in per_second],
    }
    best = result["ratios"]
    return (
        f"{result['trace']}: {result['rows']:,} of {result['rows_of']:,} cleaned steps\n"
        f"{_table(table)}\n"
        "ours over the best direct one: effective draws a gradient "
        f"x {best['effective_per_1000_gradients']:,.1f}, a second x {best['effective_per_second']:,.1f}\n"
        f"The direct formulation's trajectories are cut at depth {result['direct_max_depth']} "
        f"({2 ** result['direct_max_depth'] - 1:,} leapfrog steps): --max-depth. The ESS of chains that fail "
        "the gate is not to be trusted.\n"
        "*  gradients of the warm-up and, of ours, all evaluations of the pilot run counted as well\n"
        "** wall time of warm-up, draws and, of ours, the pilot run; without compiling\n"
    )


def fits_text(rows: list[dict[str, Any]]) -> str:
    """Return whole fits as a table, and how far those of the same trace agree.

    Parameters
    ----------
    rows : list of dict
        :func:`bayes_sched.benchmarking.fit_account` of each, with ``trace``, ``seed``, ``total_s`` and
        ``peak_memory_mb``.
    """
    shown = [row | {"gate_passed": "passed" if row["gate_passed"] else "failed"} for row in rows]
    table = {title: [form.format(row[key]) for row in shown] for key, (title, form) in _FITS.items()}
    table["trace"] = [name.removesuffix(".gz").removesuffix(".jsonl") for name in table["trace"]]
    spread = []
    for trace in dict.fromkeys(row["trace"] for row in rows):
        values = [row["probability_a_1_above_tau_S"] for row in rows if row["trace"] == trace]
        if len(values) > 1:
            spread.append(
                f"{trace}: P(a_1 > tau_S) from {min(values):.3f} to {max(values):.3f} over the seeds"
            )
    note = (
        "total: wall time of the whole command from its start; the stages are wall time too. ESS: smallest "
        "of all parameters and coordinates; gradients: leapfrog steps after warm-up."
    )
    return "\n".join([_table(table), *spread, note])


def _table(columns: dict[str, list[str]]) -> str:
    """Align columns, the first to the left."""
    titles = list(columns)
    return text_table(titles, list(zip(*columns.values(), strict=True)), right=set(titles[1:]))
