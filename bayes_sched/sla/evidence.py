"""What the trace itself says of a promise.

A posterior is sure of its parameters, not of its equation. Where the equation misses a kind of step (real
latency is a staircase in S), the model's share of late steps is wrong however narrow the posterior. So a
promise is held against the steps of the trace near it, which the fit keeps as a summary of each (B, S).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from bayes_sched.fitted import FittedModel
from bayes_sched.sla.line import Line
from bayes_sched.sla.objective import Objective
from bayes_sched.sla.words import chance

NEAR = 0.8
"""Steps from this share of a number up to it are near it; requests are alike by that factor either way."""
SIGNIFICANCE = 0.01
"""A promise is contradicted where so many late steps would come with at most this probability."""

FEW = 20
"""Fewer steps of the trace than that say little: a promise there rests on the equation."""

_QUANTILES = ((0.05, "q05_ms"), (0.5, "median_ms"), (0.95, "q95_ms"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The steps of the trace near a promise.

    Attributes
    ----------
    num_steps : int
        How many there are.
    late_share : float or None
        Share of them that took longer than the limit, at least; None where there are none.
    is_contradicted : bool
        Whether more of them are late than the promise can explain.
    """

    num_steps: int
    late_share: float | None
    is_contradicted: bool

    @property
    def text(self) -> str:
        """What a person has to know of it; empty where the trace bears the promise out."""
        if self.is_contradicted and self.late_share is not None:
            return (
                f"The trace CONTRADICTS this: of its {self.num_steps:,} steps near it at least "
                f"{chance(self.late_share)} took longer, so the model does not describe them."
            )
        if self.num_steps < FEW:
            count = f"{self.num_steps:,} step{'' if self.num_steps == 1 else 's'}"
            return f"The trace holds {count} near it: this rests on the equation."
        return ""


def evidence(fit: FittedModel, line: Line, number: int, objective: Objective) -> Evidence:
    """Hold a promise against the trace.

    Parameters
    ----------
    fit : FittedModel
    line : Line
    number : int
        Requests of decode-only steps, or tokens.
    objective : Objective
    """
    cells = fit.cells.to_dataframe()
    requests, tokens = cells["batch_size"], cells["total_tokens"]
    if line.requests is None:
        is_near = (requests == tokens) & tokens.between(NEAR * number, number)
    else:
        is_like = requests.between(NEAR * line.requests, line.requests / NEAR)
        is_near = is_like & tokens.between(max(NEAR * number, line.requests), number)
    near = cells[is_near]
    num_steps = int(near["count"].sum())
    if not num_steps:
        return Evidence(num_steps=0, late_share=None, is_contradicted=False)
    counts = near["count"].to_numpy(float)
    late = np.zeros(len(near))
    for level, column in _QUANTILES:
        # The cell's quantile is late, and so is what lies above it: so many steps, or more.
        at_least = np.maximum(np.floor((1.0 - level) * (counts - 1.0)) + 1.0, 1.0)
        late = np.maximum(late, np.where(near[column] > objective.limit_ms, at_least, 0.0))
    num_late = int(late.sum())
    p_value = float(special.bdtrc(num_late - 1, num_steps, 1.0 - objective.quantile)) if num_late else 1.0
    return Evidence(
        num_steps=num_steps,
        late_share=num_late / num_steps,
        is_contradicted=p_value < SIGNIFICANCE,
    )
