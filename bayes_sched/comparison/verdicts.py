"""Verdicts: where the credible interval of a ratio lies, seen from the region of practical equivalence.

Ratios from 1 / (1 + rope) to 1 + rope count as equal. An interval entirely below this region makes the first
server faster (lower, cheaper), entirely above it slower, entirely inside it equivalent; else it is undecided.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.posterior.prediction import band_levels

COMPARISON_PROBABILITY = 0.95
"""Probability of every interval of a comparison, unless told otherwise: verdicts are decisions."""
DEFAULT_ROPE = 0.05
"""Ratios within 5 % of one count as equal, unless told otherwise: medians of the same steps in traces of one
server with different token budgets differ by up to so much."""

EQUIVALENT, UNDECIDED = "equivalent", "undecided"
LATENCY_WORDS = ("faster", "slower")
VALUE_WORDS = ("lower", "higher")
THROUGHPUT_WORDS = ("fewer tokens", "more tokens")
COST_WORDS = ("cheaper", "dearer")

MIN_LIKE = 10
"""A step counts as measured where every trace holds so many steps like it."""
ON_GRID, MEASURED, IN_TRACES = "covered steps", "measured steps", "steps of the traces"
"""What shares of verdicts are of."""


def check_rope(rope: float) -> float:
    """Return a share by which ratios may differ from one and count as equal, if it is one."""
    if not 0.0 <= rope < 1.0:
        raise InputError(f"rope = {rope:g}: give a share from 0 to below 1, such as 0.05 for 5%")
    return float(rope)


def rope_bounds(rope: float) -> tuple[float, float]:
    """Return the ends of the region of practical equivalence."""
    return 1.0 / (1.0 + rope), 1.0 + rope


def verdicts(
    lower: Floats, upper: Floats, *, rope: float, words: tuple[str, str] = LATENCY_WORDS
) -> NDArray[np.str_]:
    """Say of intervals, any dims, where they lie, in `words` for below and above; empty where NaN."""
    low, high = rope_bounds(rope)
    found = np.full(np.shape(lower), UNDECIDED, dtype="U16")
    found[(lower >= low) & (upper <= high)] = EQUIVALENT
    found[upper < low] = words[0]
    found[lower > high] = words[1]
    found[np.isnan(lower)] = ""
    return found


def rule(*, rope: float, probability: float) -> str:
    """Return the rule as a sentence."""
    low, high = rope_bounds(rope)
    return (
        f"A verdict is given by the {100 * probability:g}% credible interval of the ratio and the region of "
        f"practical equivalence from {low:.3f} to {high:.3f} (rope {100 * rope:g}%): entirely below, "
        "faster (or lower, cheaper); entirely above, slower; entirely inside, equivalent; else undecided."
    )


def ratio_row(ratio: Floats, *, rope: float, probability: float, words: tuple[str, str]) -> dict[str, Any]:
    """Return ``ratio_median``, ``ratio_lower``, ``ratio_upper`` and ``verdict`` of draws of a ratio."""
    lower, median, upper = (float(value) for value in np.quantile(ratio, band_levels(probability)))
    verdict = str(verdicts(np.array(lower), np.array(upper), rope=rope, words=words))
    return {"ratio_median": median, "ratio_lower": lower, "ratio_upper": upper, "verdict": verdict}


def share_table(table: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Return how often each verdict is given where all traces have data.

    `table` has one row a pair and step of the grid, `seen` one a pair and step of the traces, with its
    ``weight``. Up to three rows a pair: ``gpu``, ``other``, ``of``, ``num_steps`` (distinct ones), the
    shares of the verdicts, and ``ratio_smallest``, ``ratio_largest`` of the medians. ``of`` says of what: the
    covered steps of the grid; those of them like which every trace holds at least :data:`MIN_LIKE`; and the
    steps of the traces, as often as they occur.
    """
    rows = []
    covered = table[~table["extrapolation"]].assign(weight=1.0)
    chosen = {ON_GRID: covered, MEASURED: covered[covered["fewest_like"] >= MIN_LIKE], IN_TRACES: seen}
    for first, second in table[["gpu", "other"]].drop_duplicates().itertuples(index=False):
        for of, rows_of in chosen.items():
            group = rows_of[(rows_of["gpu"] == first) & (rows_of["other"] == second)]
            if group.empty:
                continue
            weights = group.groupby("verdict")["weight"].sum() / group["weight"].sum()
            words = (*LATENCY_WORDS, EQUIVALENT, UNDECIDED)
            rows.append(
                {
                    "gpu": first,
                    "other": second,
                    "of": of,
                    "num_steps": len(group),
                    **{word: float(weights.get(word, 0.0)) for word in words},
                    "ratio_smallest": float(group["ratio_median"].min()),
                    "ratio_largest": float(group["ratio_median"].max()),
                }
            )
    return pd.DataFrame(rows)


def data_factor(lower: float, median: float, upper: float, *, rope: float) -> float | None:
    """Estimate how many times the data would decide what is undecided.

    An interval of the logarithm narrows with the square root of the data; it must become narrower than the
    distance of the median from the nearest end of the region. None where the median lies so near to an end
    that a hundred times the data would not do.
    """
    half_width = 0.5 * math.log(upper / lower)
    distance = min(abs(math.log(median / bound)) for bound in rope_bounds(rope))
    if distance <= 0.1 * half_width:
        return None
    return max(1.0, (half_width / distance) ** 2)
