r"""The largest number of a line up to which every step keeps a limit.

Latency need not grow with the requests: the factor :math:`1 - e^{-k_B B}` makes small batches slow. So the
search does not look at single steps but at the *running maximum* along the line, for each posterior draw: the
largest quantile of any step so far. It grows by construction, and with it the answer means what a cap has to
mean: that all steps up to it keep the limit at once. Numbers are tried in sections, so that a range of n
takes about log n / log 32 rounds; between two tried numbers no step is taken to be slower than the slower of
the two, which holds for every latency that is convex along the line (at fixed B the saturation equation is).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.fitted import FittedModel
from bayes_sched.sla.line import Ints, Line, steps_on
from bayes_sched.sla.objective import Floats, Objective

_SECTIONS = 32

type Evaluate = Callable[[xr.Dataset], Floats]
"""Steps (dim step) to latencies, ms, dims (draw, step)."""
type IsKept = Callable[[Floats], NDArray[np.bool_]]
"""Latencies, ms, dims (draw, ...), to whether they will do, dims (...)."""


def largest_kept(
    lines: list[Line], spans: list[tuple[int, int]], *, evaluate: Evaluate, is_kept: IsKept
) -> tuple[int | None, ...]:
    """Return for each line the largest number up to which all steps keep the limit.

    Parameters
    ----------
    lines : list of Line
    spans : list of tuple of int
        First and last number to search of each line.
    evaluate : callable
    is_kept : callable
        What is kept at some latencies must be kept at smaller ones.

    Returns
    -------
    tuple of int or None
        None where the first step of a line does not keep the limit.
    """
    low, high = (np.array(ends, dtype=np.int64) for ends in zip(*spans, strict=True))
    first, best = low.copy(), low - 1
    carried: Floats | None = None
    while (active := np.flatnonzero(low <= high)).size:
        numbers = _sections(low[active], high[active])
        values = evaluate(steps_on([lines[i] for i in active], numbers))
        values = values.reshape(values.shape[0], *numbers.shape)
        if carried is None:
            carried = np.full((values.shape[0], len(lines)), -np.inf)
        running = np.maximum.accumulate(np.maximum(values, carried[:, active, None]), axis=2)
        kept = is_kept(running)
        for place, i in enumerate(active):
            count = int(kept[place].sum())  # a running maximum is kept up to somewhere and not beyond
            if count:
                best[i] = numbers[place, count - 1]
                carried[:, i] = running[:, place, count - 1]
            following = numbers[place, count] if count < numbers.shape[1] else high[i] + 1
            low[i], high[i] = best[i] + 1, following - 1
    return tuple(int(b) if b >= f else None for b, f in zip(best, first, strict=True))


def _sections(low: Ints, high: Ints) -> Ints:
    """Return whole numbers from `low` to `high`, evenly spread, dims (line, number); few of them repeat."""
    shares = np.linspace(0.0, 1.0, _SECTIONS + 1)
    return np.rint(low[:, None] + (high - low)[:, None] * shares).astype(np.int64)


def promised(
    fit: FittedModel,
    lines: list[Line],
    spans: list[tuple[int, int]],
    objective: Objective,
    *,
    max_draws: int | None,
) -> tuple[int | None, ...]:
    """Return for each line the largest number that may be promised."""

    def evaluate(steps: xr.Dataset) -> Floats:
        return quantile_draws(fit, steps, objective.quantile, max_draws=max_draws)

    def is_kept(running: Floats) -> NDArray[np.bool_]:
        return objective.is_confident(objective.confidence_of(running))

    return largest_kept(lines, spans, evaluate=evaluate, is_kept=is_kept)


def point_allowed(
    fit: FittedModel,
    lines: list[Line],
    spans: list[tuple[int, int]],
    objective: Objective,
    *,
    max_draws: int | None,
) -> tuple[int | None, ...]:
    """Return for each line the largest number that a single fitted curve allows.

    The curve is the posterior median of the mean latency: the best that a point estimate can be. (Means or
    medians of single parameters do worse, as data identify their combinations only.)
    """

    def evaluate(steps: xr.Dataset) -> Floats:
        mean = fit.mean_latency(steps, max_draws=max_draws)
        return np.median(_flat(mean), axis=0, keepdims=True)

    return largest_kept(
        lines, spans, evaluate=evaluate, is_kept=lambda running: running[0] <= objective.limit_ms
    )


def quantile_draws(fit: FittedModel, steps: xr.Dataset, quantile: float, *, max_draws: int | None) -> Floats:
    """Return the noise quantile of each draw, ms, dims (draw, step), the chains after one another."""
    return _flat(fit.quantile_draws(steps, quantile, max_draws=max_draws))


def joint_confidence(
    fit: FittedModel, line: Line, numbers: Ints, objective: Objective, *, max_draws: int | None
) -> float:
    """Return the confidence that the steps at some numbers of a line keep the limit, all at once."""
    steps = steps_on([line], numbers[None, :])
    values = quantile_draws(fit, steps, objective.quantile, max_draws=max_draws)
    return float(objective.confidence_of(values.max(axis=1)))


def tried_numbers(low: int, high: int) -> Ints:
    """Return whole numbers from `low` to `high`, all of them where they are few."""
    few = 4 * _SECTIONS
    return np.unique(np.rint(np.linspace(low, high, min(high - low + 1, few))).astype(np.int64))


def _flat(draws: xr.DataArray) -> Floats:
    values: Floats = draws.transpose("chain", "draw", "step").to_numpy()
    return values.reshape(-1, values.shape[-1])
