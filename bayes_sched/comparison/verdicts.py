"""When a difference counts: a region of practical equivalence (ROPE), and what an interval says of it.

The rule is that of Kruschke (2018), Advances in Methods and Practices in Psychological Science 1: the
credible interval of a ratio lies entirely outside the region (*faster*, *slower*), entirely inside
(*equivalent*), or neither (*undecided*). The interval has equal tails and the region is symmetric for
logarithms, from 1 / (1 + rope) to 1 + rope, so that to swap the two servers swaps the verdict.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bayes_sched.errors import InputError

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

type Floats = NDArray[np.float64]


def check_rope(rope: float) -> float:
    """Return a share by which ratios may differ from one and count as equal.

    Raises
    ------
    InputError
        It is not between 0 and 1.
    """
    if not 0.0 <= rope < 1.0:
        msg = f"rope = {rope:g}: give a share from 0 to below 1, such as 0.05 for 5%"
        raise InputError(msg)
    return float(rope)


def rope_bounds(rope: float) -> tuple[float, float]:
    """Return the ends of the region of practical equivalence."""
    return 1.0 / (1.0 + rope), 1.0 + rope


def verdicts(
    lower: Floats, upper: Floats, *, rope: float, words: tuple[str, str] = LATENCY_WORDS
) -> NDArray[np.str_]:
    """Say of each ratio's interval where it lies.

    Parameters
    ----------
    lower, upper : ndarray, any dims
        Ends of the credible interval; NaN where there is none.
    rope : float
    words : tuple of str
        For a ratio below and for one above the region.

    Returns
    -------
    ndarray of str, the same dims
        One of `words`, ``equivalent``, ``undecided``; empty where there is no interval.
    """
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
        f"practical equivalence from {low:.3f} to {high:.3f} (--rope {100 * rope:g}%): entirely below, "
        "faster (or lower, cheaper); entirely above, slower; entirely inside, equivalent; else undecided."
    )


def data_factor(lower: float, median: float, upper: float, *, rope: float) -> float | None:
    """Estimate how many times the data would decide what is undecided.

    An interval of the logarithm narrows with the square root of the data; it must become narrower than the
    distance of the median from the nearest end of the region.

    Returns
    -------
    float or None
        None where the median lies so near to an end that a hundred times the data would not do.
    """
    half_width = 0.5 * math.log(upper / lower)
    distance = min(abs(math.log(median / bound)) for bound in rope_bounds(rope))
    if distance <= 0.1 * half_width:
        return None
    return max(1.0, (half_width / distance) ** 2)
