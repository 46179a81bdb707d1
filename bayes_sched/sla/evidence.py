"""What the steps of a trace say of a promise, and of a refusal: how many there were, and how many late."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import beta, binom

from bayes_sched.arrays import Floats
from bayes_sched.format import chance
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.region import ALIKE
from bayes_sched.sla.risk import Objective
from bayes_sched.steps import SIZES

NEAR = 0.8
"""Steps from this share of a number up to it are near it; requests are alike by that factor either way."""
SIGNIFICANCE = 0.01
"""What was promised or refused is contradicted where as many late steps, or as few, were less probable."""
FEW = 20
"""Fewer steps of the trace than that say little: what is said there rests on the equation."""

_QUANTILES = ((0.05, "q05_ms"), (0.5, "median_ms"), (0.95, "q95_ms"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The steps of the trace near a number, or where a promise up to it is broken most clearly."""

    number: int  # requests of a decode-only batch, or tokens of a step: the steps are those near it
    num_steps: int
    num_late: int  # of them took longer than the limit; at least so many where the fit keeps no steps
    late_upper: float  # at most so large is the share of late steps, with the confidence asked for
    is_sure: bool  # whether that is no more than is allowed: the trace alone would promise it
    is_contradicted: bool  # whether more of them are late than a promise can explain

    @property
    def late_share(self) -> float | None:
        """Share of the steps that were late; None where there are none."""
        return self.num_late / self.num_steps if self.num_steps else None

    @property
    def count_text(self) -> str:
        """How many were late of how many, and how many that leaves possible."""
        most = f", {chance(self.late_upper)} at most" if self.late_upper < 1.0 else ""
        return f"{self.num_late:,} of its {self.num_steps:,} steps near that were late{most}"

    @property
    def text(self) -> str:
        """What a person has to know of it; empty where the trace bears the promise out."""
        if self.is_contradicted:
            return (
                f"The trace CONTRADICTS this: of its {self.num_steps:,} steps near {self.number:,} "
                f"{self.num_late:,} took longer, so the model does not describe them."
            )
        if self.num_steps < FEW:
            count = f"{self.num_steps:,} step{'' if self.num_steps == 1 else 's'}"
            return f"The trace holds {count} near it: this rests on the equation."
        return ""

    def refutes(self, breach: float) -> bool:
        """Return whether fewer are late than can be where each is with this probability."""
        p_value = float(binom.cdf(self.num_late, self.num_steps, breach)) if self.num_steps else 1.0
        return not self.is_contradicted and self.late_upper < 1.0 and p_value < SIGNIFICANCE


@dataclass(frozen=True, eq=False)
class Observed:
    """The steps of a trace, held against a limit; `requests` is of a line, None for decode-only steps."""

    objective: Objective
    cells: pd.DataFrame
    """Combinations of ``batch_size`` and ``total_tokens``: ``count`` of the steps, and ``late`` ones."""
    is_exact: bool  # whether the late ones were counted, and are not only so many at least

    @classmethod
    def of(cls, fit: FittedModel, objective: Objective) -> Observed:
        """Count the steps that a fit keeps of its trace; of an older file's by the quantiles of each cell."""
        steps = fit.observed
        if not steps.empty:
            late = steps.assign(late=steps["latency_ms"] > objective.limit_ms).groupby([*SIZES])["late"]
            return cls(objective, late.agg(count="size", late="sum").reset_index(), True)
        cells = fit.cells.to_dataframe()
        counts, fewest = cells["count"].to_numpy(float), np.zeros(len(cells))
        for level, column in _QUANTILES:
            # The cell's quantile is late, and so is what lies above it: so many steps, or more.
            at_least = np.maximum(np.floor((1.0 - level) * (counts - 1.0)) + 1.0, 1.0)
            fewest = np.maximum(fewest, np.where(cells[column] > objective.limit_ms, at_least, 0.0))
        return cls(objective, cells[[*SIZES, "count"]].assign(late=fewest), False)

    def near(self, requests: int | None, number: int) -> Evidence:
        """Return the evidence of a promise of all steps of a line up to a number."""
        seen, counts, late = self._on(requests)
        ends = np.append(seen[seen < number], number)
        counted, num_late = (_within(seen, values, ends) for values in (counts, late))
        p_values = self._p_value(counted, num_late)
        worst = int(np.argmin(p_values))
        if p_values[-1] < SIGNIFICANCE or p_values[worst] >= SIGNIFICANCE / _num_windows(ends):
            worst = len(ends) - 1
        return self._evidence(ends[worst], counted[worst], num_late[worst])

    def largest(self, requests: int | None, first: int = 1) -> Evidence | None:
        """Return the largest number from `first` on that the trace does not contradict, None where none is.

        Numbers count that at least `FEW` steps are near; the first of them that is contradicted ends it.
        """
        seen, counts, late = self._on(requests)
        counted, num_late = (_within(seen, values, seen) for values in (counts, late))
        tells = (counted >= FEW) & (seen >= first)
        is_kept = self._p_value(counted[tells], num_late[tells]) >= SIGNIFICANCE / _num_windows(seen)
        num_kept = int(np.argmin(np.append(is_kept, False)))
        if not num_kept:
            return None
        last = np.flatnonzero(tells)[num_kept - 1]
        return self._evidence(seen[last], counted[last], num_late[last])

    def bears_out(self, requests: int | None, number: int, *, above: int) -> bool:
        """Return whether the trace alone would promise all steps of a line from `above` up to a number.

        As what a trace covers, each half octave is one kind of step, and needs enough steps of its own.
        """
        seen, *values = self._on(requests)
        num = max(1, math.ceil(math.log(number / max(above, 1)) / math.log(ALIKE)))
        ends = number / ALIKE ** np.arange(num)
        counted, num_late = (_within(seen, of, ends, 1.0 / ALIKE) for of in values)
        return all(self._evidence(*window).is_sure for window in zip(ends, counted, num_late, strict=True))

    @property
    def num_needed(self) -> int:
        """So many steps, none of them late, the trace would need to promise something alone."""
        return math.ceil(math.log(1.0 - self.objective.confidence) / math.log(self.objective.quantile))

    def _on(self, requests: int | None) -> tuple[Floats, Floats, Floats]:
        """Return the numbers of steps like those of a line, rising, with their count and the late ones."""
        b, s = self.cells["batch_size"], self.cells["total_tokens"]
        is_on = b == s if requests is None else b.between(NEAR * requests, requests / NEAR) & (s >= requests)
        rows = self.cells[is_on].groupby("total_tokens")[["count", "late"]].sum()
        return rows.index.to_numpy(float), rows["count"].to_numpy(float), rows["late"].to_numpy(float)

    def _p_value(self, counted: Floats | float, num_late: Floats | float) -> Floats:
        """Return how probably as many are late where the objective is just kept."""
        return np.asarray(binom.sf(np.asarray(num_late) - 1.0, counted, 1.0 - self.objective.quantile))

    def _evidence(self, number: float, counted: float, num_late: float) -> Evidence:
        is_known = self.is_exact and num_late < counted
        upper = (
            float(beta.ppf(self.objective.confidence, num_late + 1, counted - num_late)) if is_known else 1.0
        )
        return Evidence(
            number=int(number),
            num_steps=int(counted),
            num_late=int(num_late),
            late_upper=upper,
            is_sure=upper <= 1.0 - self.objective.quantile,
            is_contradicted=bool(self._p_value(counted, num_late) < SIGNIFICANCE),
        )


def _num_windows(ends: Floats) -> float:
    """Return how many windows that have nothing in common lie side by side: so many chances of a freak."""
    return 1.0 + math.log(max(ends.max() / ends.min(), 1.0)) / -math.log(NEAR) if len(ends) else 1.0


def _within(seen: Floats, values: Floats, ends: Floats, near: float = NEAR) -> Floats:
    """Return the sums of the values of the numbers near each end, up to it."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    found: Floats = (
        total[np.searchsorted(seen, ends, side="right")] - total[np.searchsorted(seen, near * ends)]
    )
    return found
