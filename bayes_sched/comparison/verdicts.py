"""Joint draws of several servers: independent posteriors, paired at random.

The fits of different traces share neither data nor parameters, so given both traces the posterior of the pair
is the product of the two. A draw from a product is a draw of each factor, chosen independently: to pair the
draws of one posterior with a random permutation of those of the other gives draws of the pair, whatever was
paired before. The order in which a sampler left them will not do: two fits with the same seed share their
random numbers, and their draws may follow each other from index to index. Posteriors of different lengths
are thinned to the shorter one, evenly over the chains, before they are permuted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.model.protocol import LatencyModel
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import Evaluator, band_levels
from bayes_sched.steps import Steps

MIN_LIKE = 10
"""A step counts as measured where every trace holds so many steps like it."""
ON_GRID, MEASURED, IN_TRACES = "covered steps", "measured steps", "steps of the traces"
"""What shares of verdicts are of."""


def share_table(table: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Return how often each verdict is given where all traces have data.

    Parameters
    ----------
    table : DataFrame
        Of :func:`pair_rows`, over the grid.
    seen : DataFrame
        Of :func:`seen_rows`.

    Returns
    -------
    DataFrame
        Up to three rows a pair: ``gpu``, ``other``, ``of``, ``num_steps`` (distinct ones), the shares
        ``faster``, ``slower``, ``equivalent``, ``undecided``, and ``ratio_smallest``, ``ratio_largest`` of
        the medians. ``of`` says of what: the covered steps of the grid; those of them like which every trace
        holds at least :data:`MIN_LIKE`; and the steps of the traces, as often as they occur.
    """
    rows = []
    covered = table[~table["extrapolation"]].assign(weight=1.0)
    chosen = {
        ON_GRID: covered,
        MEASURED: covered[covered["fewest_like"] >= MIN_LIKE],
        IN_TRACES: seen,
    }
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


def seen_rows(servers: Servers, cells: pd.DataFrame, *, rope: float, probability: float) -> pd.DataFrame:
    """Return the verdict at each (B, S) that some trace holds and all cover.

    Parameters
    ----------
    servers : Servers
    cells : DataFrame
        ``batch_size``, ``total_tokens``, ``weight``.
    rope, probability : float

    Returns
    -------
    DataFrame
        The columns of `cells`, ``gpu``, ``other``, ``ratio_median``, ``verdict``: one row a pair and cell.
    """
    if cells.empty:
        return pd.DataFrame(columns=[*cells.columns, "gpu", "other", "ratio_median", "verdict"])
    mean_ms = servers.mean_latency_ms(cells)
    tables = []
    for a, b in pairs_of(servers.labels):
        ratio = mean_ms.isel(gpu=a) / mean_ms.isel(gpu=b)
        lower, median, upper = ratio.quantile(band_levels(probability), dim="draw").to_numpy()
        tables.append(
            cells.assign(
                gpu=servers.labels[a],
                other=servers.labels[b],
                ratio_median=median,
                verdict=verdicts(lower, upper, rope=rope),
            )
        )
    return pd.concat(tables, ignore_index=True)


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


DEFAULT_PAIRED_DRAWS = 4000
"""Draws of each posterior that a comparison uses at most, unless told otherwise."""


def paired_posteriors(
    posteriors: Sequence[xr.Dataset], *, max_draws: int = DEFAULT_PAIRED_DRAWS, seed: int = 0
) -> tuple[xr.Dataset, ...]:
    """Return as many draws of each posterior, in random order.

    Parameters
    ----------
    posteriors : sequence of Dataset, dims (chain, draw)
        Of different lengths if need be.
    max_draws : int
    seed : int
        Of the order.

    Returns
    -------
    tuple of Dataset, dims (draw,)
        The draws of one index belong together.

    Raises
    ------
    InputError
        `max_draws` is below 2.
    """
    if max_draws < 2:
        raise InputError(f"max_draws = {max_draws}: give at least 2")
    sizes = [posterior.sizes["chain"] * posterior.sizes["draw"] for posterior in posteriors]
    num = min(max_draws, *sizes)
    paired = []
    for number, (posterior, size) in enumerate(zip(posteriors, sizes, strict=True)):
        chosen = ((np.arange(num) + 0.5) * size / num).astype(np.int64)
        order = np.random.default_rng([seed, number]).permutation(chosen)
        paired.append(
            xr.Dataset(
                {
                    name: ("draw", draws.transpose("chain", "draw").to_numpy().ravel()[order])
                    for name, draws in posterior.data_vars.items()
                },
                coords={"draw": np.arange(num)},
            )
        )
    return tuple(paired)


class Servers:
    """Several servers with joint draws of their parameters.

    Parameters
    ----------
    labels : sequence of str
    fits : sequence of FittedModel
    max_draws : int
    seed : int
    """

    def __init__(
        self, labels: Sequence[str], fits: Sequence[FittedModel], *, max_draws: int, seed: int
    ) -> None:
        self.labels = tuple(labels)
        self.fits = tuple(fits)
        self.models: tuple[LatencyModel, ...] = tuple(fit.model for fit in fits)
        names = [[p for p in fit.posterior.data_vars if fit.posterior[p].ndim == 2] for fit in fits]
        self.posteriors = paired_posteriors(
            [fit.posterior[kept] for fit, kept in zip(fits, names, strict=True)],
            max_draws=max_draws,
            seed=seed,
        )
        self._evaluators = tuple(
            Evaluator(model, posterior.expand_dims(chain=[0]), max_draws=None)
            for model, posterior in zip(self.models, self.posteriors, strict=True)
        )

    def mean_latency_ms(self, steps: Steps) -> xr.DataArray:
        """Return draws of the mean latency, ms, dims (gpu, draw, *steps)."""
        parts = [
            e.per_draw(steps, lambda mean, scale, nu, x: mean).isel(chain=0, drop=True)
            for e in self._evaluators
        ]
        return self._joined(parts).rename("mean_latency_ms").assign_attrs(units="ms")

    def scale_ms(self, steps: Steps) -> xr.DataArray:
        """Return draws of the noise scale, ms, dims (gpu, draw, *steps)."""
        parts = [
            e.per_draw(steps, lambda mean, scale, nu, x: scale).isel(chain=0, drop=True)
            for e in self._evaluators
        ]
        return self._joined(parts).rename("scale_ms").assign_attrs(units="ms")

    def nu(self) -> xr.DataArray:
        """Return draws of the degrees of freedom, dims (gpu, draw)."""
        return self._joined([posterior["nu"] for posterior in self.posteriors])

    def noise_quantile_ms(self, number: int, steps: Steps, q: float) -> xr.DataArray:
        """Return each draw's noise quantile of one server, ms, dims (draw, *steps)."""
        result = self._evaluators[number].quantile_draws(steps, np.array([q]))
        return result.isel(quantile=0, chain=0, drop=True)

    def server_latency_ms(self, number: int, steps: Steps) -> xr.DataArray:
        """Return draws of the mean latency of one server, ms, dims (draw, *steps)."""
        evaluator = self._evaluators[number]
        return evaluator.per_draw(steps, lambda mean, scale, nu, x: mean).isel(chain=0, drop=True)

    def in_regions(self, steps: Steps) -> xr.DataArray:
        """Return whether the trace of each server covers each step: bool, dims (gpu, *steps)."""
        return self._joined([fit.in_region(steps) for fit in self.fits]).rename("in_region")

    def _joined(self, parts: Sequence[xr.DataArray]) -> xr.DataArray:
        return xr.concat(parts, dim=pd.Index(self.labels, name="gpu"), join="exact")


def pairs_of(labels: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return every pair of servers, by position, in the order given."""
    return list(combinations(range(len(labels)), 2))


def pair_name(first: str, second: str) -> str:
    """Return the name of a pair, which is that of the ratio."""
    return f"{first} / {second}"
