"""How far the equation itself is off: no interval of a posterior contains that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bayes_sched.comparison.members import Member
from bayes_sched.comparison.shared_grid import cell_table
from bayes_sched.fitted import FittedModel
from bayes_sched.numbers import percent

MIN_STEPS = 20
"""A median of at least so many observed steps is compared with the equation."""
_SHARE = 0.9


def misfit_of(fit: FittedModel) -> float | None:
    """Return by how much the equation misses the observed medians: nine in ten (B, S) by less.

    Parameters
    ----------
    fit : FittedModel

    Returns
    -------
    float or None
        A share of the latency; None where no (B, S) was seen :data:`MIN_STEPS` times.
    """
    cells = cell_table(fit).assign(median_ms=fit.cells["median_ms"].to_numpy())
    often = cells[cells["count"] >= MIN_STEPS]
    if often.empty:
        return None
    predicted = fit.quantile(often[["batch_size", "total_tokens"]], 0.5).to_numpy()
    return float(np.quantile(np.abs(often["median_ms"].to_numpy() / predicted - 1.0), _SHARE))


def misfit_warnings(members: Sequence[Member], *, rope: float) -> list[str]:
    """Return a sentence for each server whose equation is off by more than counts as equal."""
    found = []
    for member in members:
        misfit = misfit_of(member.fit)
        if misfit is not None and misfit > rope:
            found.append(
                f"{member.label}: the equation misses one in ten of the observed medians by more than "
                f"{percent(misfit, 1)}, and no interval here contains that: take ratios that are as near to "
                "the region of practical equivalence as undecided"
            )
    return found
