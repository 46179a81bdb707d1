"""What latencies mean: equivalent numbers of requests, throughput within a limit, and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.comparison.members import Servers
from bayes_sched.comparison.verdicts import COST_WORDS, THROUGHPUT_WORDS, ratio_row
from bayes_sched.posterior.prediction import band_levels
from bayes_sched.steps import log_grid, steps_arrays

DEFAULT_SLO_QUANTILE = 0.95
"""Share of the steps that stay within a latency limit, unless told otherwise."""

TOKENS, COST = "tokens per second", "cost per million tokens"
DECODES, ANY_STEP = "decode-only steps", "any step"
BY_LIMIT, BY_TRACE, BY_NOTHING = "the latency limit", "what the trace covers", "the step itself"
_NONE_FITS = "no covered step is within the limit"

_AXES = ("batch_size", "total_tokens")
_NUM_AXIS = 16  # points of the grid of candidates, along each axis
_MAX_DECODES = 512
_REACH = 4.0  # the search for equivalents ends at so many times the most requests seen on any server
_NUM_POINTS = 300

THROUGHPUT_COLUMNS = [
    *("case", "gpu", "batch_size", "total_tokens", "set_by", "tokens_per_s", "tokens_per_s_lower"),
    *("tokens_per_s_upper", "price_per_hour", "cost", "cost_lower", "cost_upper"),
]
COST_COLUMNS = [
    *("case", "quantity", "gpu", "other", "ratio_median", "ratio_lower", "ratio_upper", "p_better", "verdict")
]
EQUIVALENT_COLUMNS = ["gpu", "batch_size", "other", "median", "lower", "upper", "limit", "extrapolation"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Rate:
    """How many tokens a second one server processes in one case; 0 where a draw has no step within the limit.

    The step is given, or has the medians of the best one's sizes, NaN where there is none; `set_by` says what
    keeps the throughput from being more.
    """

    gpu: str
    case: str
    tokens_per_s: Floats
    batch_size: float
    total_tokens: float
    set_by: str


def rates_of(
    servers: Servers, typical: pd.DataFrame, *, slo_ms: float | None, slo_quantile: float
) -> list[Rate]:
    """Return the throughput of each server, case by case: at typical steps, and within a limit.

    A share `slo_quantile` of the steps must stay within `slo_ms`.
    """
    found: list[Rate] = []
    if len(typical):
        steps = steps_arrays(typical["batch_size"], typical["total_tokens"])
        found += _at_steps(servers.mean_latency_ms(steps), typical)
    if slo_ms is not None:
        found += [
            rate
            for case in (DECODES, ANY_STEP)
            for label in servers.labels
            if (rate := _limited(servers, label, case, slo_ms, slo_quantile)) is not None
        ]
    return found


def _at_steps(mean_ms: xr.DataArray, typical: pd.DataFrame) -> list[Rate]:
    """Return the throughput at given steps, one after the other; dims (gpu, draw, step)."""
    return [
        Rate(
            gpu=str(label),
            case=f"{row['step']}: B = {row['batch_size']:,}, S = {row['total_tokens']:,}",
            tokens_per_s=1000.0 * row["total_tokens"] / mean_ms.isel(step=i).sel(gpu=label).to_numpy(),
            batch_size=row["batch_size"],
            total_tokens=row["total_tokens"],
            set_by=BY_NOTHING,
        )
        for i, row in enumerate(typical.to_dict("records"))
        for label in mean_ms["gpu"].to_numpy()
    ]


def _limited(servers: Servers, label: str, case: str, slo_ms: float, slo_quantile: float) -> Rate | None:
    """Return the most tokens a second that a server does within the limit, at steps that its trace covers."""
    steps = _candidates(servers, label, case)
    if not steps.sizes["step"]:
        return None
    mean_ms, quantile_ms = (
        values.transpose("draw", "step").to_numpy()
        for values in (
            servers.server_latency_ms(label, steps),
            servers.noise_quantile_ms(label, steps, slo_quantile),
        )
    )
    is_within = quantile_ms <= slo_ms
    unlimited = 1000.0 * steps["total_tokens"].to_numpy() / mean_ms
    rate = np.where(is_within, unlimited, 0.0)
    best = rate.argmax(axis=1)
    is_any = is_within.any(axis=1)
    is_free = best == unlimited.argmax(axis=1)
    if is_any.mean() < 0.5:
        set_by, b, s = _NONE_FITS, np.nan, np.nan
    else:
        set_by = BY_TRACE if is_free[is_any].mean() > 0.5 else BY_LIMIT
        b, s = (float(np.median(steps[name].to_numpy()[best[is_any]])) for name in _AXES)
    return Rate(
        gpu=label,
        case=f"{case} within {slo_ms:g} ms",
        tokens_per_s=rate[np.arange(len(rate)), best],
        batch_size=b,
        total_tokens=s,
        set_by=set_by,
    )


def _candidates(servers: Servers, label: str, case: str) -> xr.Dataset:
    """Return the steps that a server's trace covers: decode-only ones, or a grid of all."""
    fit = servers.fits[label]
    largest_b, largest_s = (float(fit.cells[name].max()) for name in _AXES)
    if case == DECODES:
        b = s = np.arange(1.0, largest_b + 1.0)
        if len(b) > _MAX_DECODES:
            b = s = log_grid(1.0, largest_b, _MAX_DECODES)
    else:
        b_axis = log_grid(1.0, largest_b, _NUM_AXIS)
        s_axis = np.union1d(log_grid(1.0, largest_s, _NUM_AXIS), b_axis)
        b, s = (axis.ravel() for axis in np.meshgrid(b_axis, s_axis))
    is_possible = s >= b
    steps = steps_arrays(b[is_possible], s[is_possible])
    steps = steps.isel(step=np.flatnonzero(fit.in_region(steps).to_numpy()))
    return steps.assign_coords(step=np.arange(steps.sizes["step"]))


def throughput_table(
    rates: Sequence[Rate], prices: Mapping[str, float | None], *, probability: float
) -> pd.DataFrame:
    """Return throughput and cost of each server and case, with `THROUGHPUT_COLUMNS`.

    Costs are of a million tokens, in the currency of the price; NaN without a price, and without an end where
    the throughput may be 0.
    """
    rows = []
    for rate in rates:
        lower, median, upper = (float(x) for x in np.quantile(rate.tokens_per_s, band_levels(probability)))
        price = prices[rate.gpu]
        costs = [
            np.nan if price is None or not value else 1e6 * price / (3600.0 * value)
            for value in (median, upper, lower)
        ]
        step = (rate.case, rate.gpu, rate.batch_size, rate.total_tokens, rate.set_by)
        rows.append((*step, median, lower, upper, np.nan if price is None else price, *costs))
    return pd.DataFrame(rows, columns=THROUGHPUT_COLUMNS)


def cost_table(
    rates: Sequence[Rate], prices: Mapping[str, float | None], *, rope: float, probability: float
) -> pd.DataFrame:
    """Compare throughput, and cost where both prices are given, of each pair of servers, with `COST_COLUMNS`.

    Ratios are of the first over the second; ``p_better``, that the first has the higher throughput, or the
    lower cost.
    """
    rows = []
    for case in dict.fromkeys(rate.case for rate in rates):
        of_case = {rate.gpu: rate.tokens_per_s for rate in rates if rate.case == case}
        for first, second in combinations(prices, 2):
            pair = [of_case[label] for label in (first, second) if label in of_case]
            if len(pair) < 2 or not all(tokens.all() for tokens in pair):
                continue  # no ratio where a draw has no step within the limit
            ratio = pair[0] / pair[1]
            what = [(TOKENS, ratio, ratio > 1.0, THROUGHPUT_WORDS)]
            price, other_price = prices[first], prices[second]
            if price is not None and other_price is not None:
                cost = price / other_price / ratio
                what.append((COST, cost, cost < 1.0, COST_WORDS))
            for quantity, draws, is_better, words in what:
                rows.append(
                    {
                        "case": case,
                        "quantity": quantity,
                        "gpu": first,
                        "other": second,
                        **ratio_row(draws, rope=rope, probability=probability, words=words),
                        "p_better": float(is_better.mean()),
                    }
                )
    return pd.DataFrame(rows, columns=COST_COLUMNS)


def equivalent_table(servers: Servers, *, probability: float) -> pd.DataFrame:
    """Return for decode-only steps of one server the equally long ones of every other.

    The number N on the other server is the largest whose mean latency is at most that of n requests
    (``batch_size``) on the first; between whole numbers it is interpolated. 0 means that not even one request
    is served so fast. ``median``, ``lower``, ``upper`` are N, NaN where it is more than ``limit``, at which
    the search ends; ``extrapolation``: n or the median N lies outside of what its trace covers.
    """
    largest = {label: float(fit.cells["batch_size"].max()) for label, fit in servers.fits.items()}
    high = _REACH * max(largest.values())
    powers = 2.0 ** np.arange(0, np.floor(np.log2(high)) + 1)
    points = np.unique(np.concatenate([np.arange(1.0, 33.0), log_grid(1.0, high, _NUM_POINTS), powers]))
    steps = steps_arrays(points, points)
    latency_ms = {
        label: servers.server_latency_ms(label, steps).transpose("draw", "step").to_numpy()
        for label in servers.labels
    }
    seen = {label: fit.in_region(steps).to_numpy() for label, fit in servers.fits.items()}
    rows = []
    for label in servers.labels:
        for k in range(int(np.log2(max(32.0, largest[label]))) + 1):
            at = int(np.searchsorted(points, 2**k))
            for other in (one for one in servers.labels if one != label):
                found = largest_within(points, latency_ms[other], latency_ms[label][:, at])
                lower, median, upper = np.quantile(found, band_levels(probability), method="inverted_cdf")
                nearest = int(np.argmin(np.abs(points - (median if np.isfinite(median) else points[-1]))))
                is_seen = seen[label][at] and seen[other][nearest]
                rows.append((label, 2**k, other, median, lower, upper, float(points[-1]), not is_seen))
    table = pd.DataFrame(rows, columns=EQUIVALENT_COLUMNS)
    return table.replace({"median": {np.inf: np.nan}, "lower": {np.inf: np.nan}, "upper": {np.inf: np.nan}})


def largest_within(points: Floats, latency_ms: Floats, limit_ms: Floats) -> Floats:
    """Return the largest number of requests whose latency is within a limit, dims (draw,).

    `points`, dims (point,), increase; `latency_ms` has dims (draw, point), `limit_ms` (draw,). Interpolated
    linearly; 0 where no point is within the limit, inf where the last one is.
    """
    is_within = latency_ms <= limit_ms[:, None]
    last = len(points) - 1 - np.argmax(is_within[:, ::-1], axis=1)
    following = np.minimum(last + 1, len(points) - 1)
    draw = np.arange(len(limit_ms))
    rise = latency_ms[draw, following] - latency_ms[draw, last]
    share = (limit_ms - latency_ms[draw, last]) / np.where(rise > 0.0, rise, 1.0)
    between = points[last] + share * (points[following] - points[last])
    result: Floats = np.where(is_within[:, -1], np.inf, np.where(is_within.any(axis=1), between, 0.0))
    return result
