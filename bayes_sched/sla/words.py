"""Shares as a person reads them, where the rare ones matter."""

from __future__ import annotations

from bayes_sched.format import NONE, number

_NEAR = 0.001
_LEAST = 1e-6


def chance(share: float | None) -> str:
    """Write a probability as a percentage; near 0 and near 1 it keeps the digits that matter."""
    if share is None:
        return NONE
    if share <= _LEAST:
        return f"under {number(100.0 * _LEAST, 1)}%"
    if share < _NEAR:
        return f"{number(100.0 * share, 1)}%"
    if share > 1.0 - _NEAR:
        return f"over {100.0 * (1.0 - _NEAR):g}%"
    return f"{100.0 * share:.1f}%"


def sureness(confidence: float | None) -> str:
    """Write a confidence, which as a share of some thousand draws has no finer digits."""
    return (
        f"under {100.0 * _NEAR:g}%" if confidence is not None and confidence < _NEAR else chance(confidence)
    )


def chances(lower: float | None, upper: float | None) -> str:
    """Write an interval of probabilities; one number where both ends read the same."""
    ends = (chance(lower), chance(upper))
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
