"""How many decoding requests one server serves in the time that another takes for so many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.comparison.members import Member
from bayes_sched.comparison.verdicts import COST_WORDS, THROUGHPUT_WORDS, Servers, pairs_of, verdicts
from bayes_sched.format import number
from bayes_sched.posterior.prediction import band_levels
from bayes_sched.steps import steps_arrays

DEFAULT_SLO_QUANTILE = 0.95
"""Share of the steps that stay within a latency limit, unless told otherwise."""

TOKENS, COST = "tokens per second", "cost per million tokens"
DECODES, ANY_STEP = "decode-only steps", "any step"
BY_LIMIT, BY_TRACE, BY_NOTHING = "the latency limit", "what the trace covers", "the step itself"
_NONE_FITS = "no covered step is within the limit"
_AXES = ("batch_size", "total_tokens")
_NUM_REQUESTS, _NUM_TOKENS = 16, 16
_SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Rate:
    """How many tokens a second one server processes in one case.

    Attributes
    ----------
    gpu, case : str
    tokens_per_s : ndarray, dims (draw,)
        0 where a draw has no step within the limit.
    batch_size, total_tokens : float
        Of the step, or the medians of the best one's; NaN where there is none.
    set_by : str
        What keeps it from being more.
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
    """Return the throughput of each server, case by case.

    Parameters
    ----------
    servers : Servers
    typical : DataFrame
        Steps that every server's trace covers: ``step``, ``batch_size``, ``total_tokens``.
    slo_ms : float or None
        Limit that a share `slo_quantile` of the steps must stay within, ms.
    slo_quantile : float
    """
    found: list[Rate] = []
    if len(typical):
        steps = steps_arrays(typical["batch_size"], typical["total_tokens"])
        found += _at_steps(servers.mean_latency_ms(steps), typical)
    if slo_ms is not None:
        found += [
            rate
            for case in (DECODES, ANY_STEP)
            for i in range(len(servers.labels))
            if (rate := _limited(servers, i, case, slo_ms, slo_quantile)) is not None
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


def _limited(servers: Servers, number: int, case: str, slo_ms: float, slo_quantile: float) -> Rate | None:
    """Return the most tokens a second that a server does within the limit, at steps that its trace covers."""
    steps = _candidates(servers, number, case)
    if not steps.sizes["step"]:
        return None
    mean_ms = _by_draw(servers.server_latency_ms(number, steps))
    quantile_ms = _by_draw(servers.noise_quantile_ms(number, steps, slo_quantile))
    is_within = quantile_ms <= slo_ms
    rate = np.where(is_within, 1000.0 * steps["total_tokens"].to_numpy() / mean_ms, 0.0)
    best = rate.argmax(axis=1)
    is_any = is_within.any(axis=1)
    is_free = best == (1000.0 * steps["total_tokens"].to_numpy() / mean_ms).argmax(axis=1)
    if is_any.mean() < 0.5:
        set_by, b, s = _NONE_FITS, np.nan, np.nan
    else:
        set_by = BY_TRACE if is_free[is_any].mean() > 0.5 else BY_LIMIT
        b, s = (float(np.median(steps[name].to_numpy()[best[is_any]])) for name in _AXES)
    return Rate(
        gpu=servers.labels[number],
        case=f"{case} within {slo_ms:g} ms",
        tokens_per_s=rate[np.arange(len(rate)), best],
        batch_size=b,
        total_tokens=s,
        set_by=set_by,
    )


def _by_draw(values: xr.DataArray) -> Floats:
    result: Floats = values.transpose("draw", "step").to_numpy()
    return result


def _candidates(servers: Servers, number: int, case: str) -> xr.Dataset:
    """Return the steps that a server's trace covers: decode-only ones, or a grid of all."""
    fit = servers.fits[number]
    largest_b, largest_s = (float(fit.cells[name].max()) for name in _AXES)
    if case == DECODES:
        b = s = np.arange(1.0, largest_b + 1.0)
        if len(b) > 512:
            b = s = np.unique(np.rint(np.geomspace(1.0, largest_b, 512)))
    else:
        b_axis = np.unique(np.rint(np.geomspace(1.0, largest_b, _NUM_REQUESTS)))
        s_axis = np.union1d(np.unique(np.rint(np.geomspace(1.0, largest_s, _NUM_TOKENS))), b_axis)
        b, s = (axis.ravel() for axis in np.meshgrid(b_axis, s_axis))
    is_possible = s >= b
    steps = steps_arrays(b[is_possible], s[is_possible])
    steps = steps.isel(step=np.flatnonzero(fit.in_region(steps).to_numpy()))
    return steps.assign_coords(step=np.arange(steps.sizes["step"]))


def throughput_table(rates: Sequence[Rate], members: Sequence[Member], *, probability: float) -> pd.DataFrame:
    """Return throughput and cost of each server and case.

    Returns
    -------
    DataFrame
        ``case``, ``gpu``, ``batch_size``, ``total_tokens``, ``set_by``, ``tokens_per_s``,
        ``tokens_per_s_lower``, ``tokens_per_s_upper``, ``price_per_hour``, ``cost``, ``cost_lower``,
        ``cost_upper``: of a million tokens, in the currency of the price; NaN without a price, and without an
        end where the throughput may be 0.
    """
    prices = {member.label: member.price_per_hour for member in members}
    levels = band_levels(probability)
    rows = []
    for rate in rates:
        lower, median, upper = (float(value) for value in np.quantile(rate.tokens_per_s, levels))
        price = prices[rate.gpu]
        cost_lower, cost, cost_upper = (
            np.nan if price is None or not value else _cost(price, value) for value in (upper, median, lower)
        )
        rows.append(
            {
                "case": rate.case,
                "gpu": rate.gpu,
                "batch_size": rate.batch_size,
                "total_tokens": rate.total_tokens,
                "set_by": rate.set_by,
                "tokens_per_s": median,
                "tokens_per_s_lower": lower,
                "tokens_per_s_upper": upper,
                "price_per_hour": np.nan if price is None else price,
                "cost": cost,
                "cost_lower": cost_lower,
                "cost_upper": cost_upper,
            }
        )
    return pd.DataFrame(rows, columns=THROUGHPUT_COLUMNS)


THROUGHPUT_COLUMNS = [
    *("case", "gpu", "batch_size", "total_tokens", "set_by", "tokens_per_s", "tokens_per_s_lower"),
    *("tokens_per_s_upper", "price_per_hour", "cost", "cost_lower", "cost_upper"),
]


def _cost(price_per_hour: float, tokens_per_s: float) -> float:
    return 1e6 * price_per_hour / (_SECONDS_AN_HOUR * tokens_per_s)


def money_table(
    rates: Sequence[Rate], members: Sequence[Member], *, rope: float, probability: float
) -> pd.DataFrame:
    """Compare throughput, and cost where both prices are given, of each pair of servers.

    Returns
    -------
    DataFrame
        ``case``, ``quantity`` (``tokens per second`` or ``cost per million tokens``), ``gpu``, ``other``,
        ``ratio_median``, ``ratio_lower``, ``ratio_upper`` of the first over the second, ``p_better`` (that
        the first has the higher throughput, or the lower cost), ``verdict``.
    """
    prices = [member.price_per_hour for member in members]
    labels = tuple(member.label for member in members)
    rows = []
    for case in dict.fromkeys(rate.case for rate in rates):
        of_case = {rate.gpu: rate.tokens_per_s for rate in rates if rate.case == case}
        for a, b in pairs_of(labels):
            if not {labels[a], labels[b]} <= set(of_case):
                continue
            tokens_a, tokens_b = of_case[labels[a]], of_case[labels[b]]
            if not (tokens_a.all() and tokens_b.all()):
                continue  # no ratio where a draw has no step within the limit
            ratio = tokens_a / tokens_b
            what = [(TOKENS, ratio, ratio > 1.0, THROUGHPUT_WORDS)]
            price_a, price_b = prices[a], prices[b]
            if price_a is not None and price_b is not None:
                cost = price_a / price_b / ratio
                what.append((COST, cost, cost < 1.0, COST_WORDS))
            for quantity, draws, is_better, words in what:
                lower, median, upper = np.quantile(draws, band_levels(probability))
                rows.append(
                    {
                        "case": case,
                        "quantity": quantity,
                        "gpu": labels[a],
                        "other": labels[b],
                        "ratio_median": float(median),
                        "ratio_lower": float(lower),
                        "ratio_upper": float(upper),
                        "p_better": float(is_better.mean()),
                        "verdict": str(verdicts(np.array(lower), np.array(upper), rope=rope, words=words)),
                    }
                )
    return pd.DataFrame(rows, columns=MONEY_COLUMNS)


MONEY_COLUMNS = [
    *("case", "quantity", "gpu", "other", "ratio_median", "ratio_lower", "ratio_upper", "p_better", "verdict")
]


_REACH = 4.0
"""The search ends at this many times the most requests seen on any server."""
_NUM_POINTS = 300

COLUMNS = ["gpu", "batch_size", "other", "median", "lower", "upper", "limit", "extrapolation"]


def equivalent_table(servers: Servers, *, probability: float) -> pd.DataFrame:
    """Return for decode-only steps of one server the equally long ones of every other.

    The number N on the other server is the largest whose mean latency is at most that of n requests on the
    first; between whole numbers it is interpolated. 0 means that not even one request is served so fast.

    Parameters
    ----------
    servers : Servers
    probability : float
        Of the credible interval, equal tails.

    Returns
    -------
    DataFrame
        ``gpu``, ``batch_size`` (n), ``other``, ``median``, ``lower``, ``upper`` (N; NaN where it is more than
        ``limit``, at which the search ends), ``extrapolation`` (n or the median N lies outside of what its
        trace covers).
    """
    largest = max(float(fit.cells["batch_size"].max()) for fit in servers.fits)
    points = np.unique(np.concatenate([np.arange(1.0, 33.0), _spread(1.0, _REACH * largest)]))
    latency_ms = [
        servers.server_latency_ms(i, steps_arrays(points, points)).transpose("draw", "step").to_numpy()
        for i in range(len(servers.labels))
    ]
    seen = [fit.in_region(steps_arrays(points, points)).to_numpy() for fit in servers.fits]
    rows = []
    for first, label in enumerate(servers.labels):
        for n in _asked(servers, first):
            at = int(np.searchsorted(points, n))
            for second, other in enumerate(servers.labels):
                if second == first:
                    continue
                found = largest_within(points, latency_ms[second], latency_ms[first][:, at])
                lower, median, upper = np.quantile(found, band_levels(probability), method="inverted_cdf")
                is_seen = seen[first][at] and seen[second][_nearest(points, median)]
                rows.append((label, n, other, median, lower, upper, float(points[-1]), not is_seen))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.replace({"median": {np.inf: np.nan}, "lower": {np.inf: np.nan}, "upper": {np.inf: np.nan}})


def largest_within(points: Floats, latency_ms: Floats, limit_ms: Floats) -> Floats:
    """Return the largest number of requests whose latency is within a limit.

    Parameters
    ----------
    points : ndarray, dims (point,)
        Requests, increasing.
    latency_ms : ndarray, dims (draw, point)
    limit_ms : ndarray, dims (draw,)

    Returns
    -------
    ndarray, dims (draw,)
        Interpolated linearly; 0 where no point is within the limit, inf where the last one is.
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


def equivalent_sentence(row: Mapping[str, Any]) -> str:
    """Return a row of the table in words."""
    limit = row["limit"]

    def shown(value: float | None) -> str:
        if value is None:
            return f"more than {limit:,.0f}"
        return "less than 1" if value == 0 else number(value)

    cost = "costs" if row["batch_size"] == 1 else "cost"
    decodes = "decode" if row["batch_size"] == 1 else "decodes"
    note = "; an extrapolation" if row["extrapolation"] else ""
    return (
        f"{row['batch_size']:,} {decodes} on {row['gpu']} {cost} what {shown(row['median'])} on "
        f"{row['other']} do ({shown(row['lower'])} to {shown(row['upper'])}{note})"
    )


def _asked(servers: Servers, first: int) -> list[int]:
    """Return the powers of two up to 32, and further as far as the trace of a server goes."""
    largest = max(32.0, float(servers.fits[first].cells["batch_size"].max()))
    return [2**k for k in range(int(np.log2(largest)) + 1)]


def _spread(low: float, high: float) -> Floats:
    powers = 2.0 ** np.arange(0, np.floor(np.log2(high)) + 1)
    points: Floats = np.union1d(np.rint(np.geomspace(low, high, _NUM_POINTS)), powers)
    return points


def _nearest(points: Floats, value: float) -> int:
    return int(np.argmin(np.abs(points - (value if np.isfinite(value) else points[-1]))))
