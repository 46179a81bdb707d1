"""Settings of a scheduler on a grid of requests and tokens: the limits they keep, and their throughput."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.fitted import FittedModel
from bayes_sched.region import TOLERANCE

_EXTRAPOLATION_FACTOR = 4.0
_EXACT_REQUESTS, _EXACT_TOKENS = 32, 64  # every number up to there
_NUM_REQUESTS, _NUM_TOKENS = 12, 64  # and so many beyond

type Floats = NDArray[np.float64]


def axes(fit: FittedModel, *, extrapolate: bool) -> tuple[Floats, Floats]:
    """Return the numbers of requests and of tokens to try."""
    factor = _EXTRAPOLATION_FACTOR if extrapolate else 1.0
    last_b, last_s = np.floor(factor * np.exp(fit.region.corners.max(axis=0) + TOLERANCE))
    b = _axis(last_b, _EXACT_REQUESTS, _NUM_REQUESTS)
    return b, np.union1d(b, _axis(last_s, _EXACT_TOKENS, _NUM_TOKENS))


def _axis(last: float, exact: int, num: int) -> Floats:
    few = np.arange(1.0, min(exact, last) + 1.0)
    return few if last <= exact else np.union1d(few, np.rint(np.geomspace(exact, last, num)))


def bounds_of(late: Floats, usable: NDArray[np.bool_], confidence: float) -> Floats:
    """Return the least limit that all steps up to each keep, dims (draw, b, s) -> (b, s); NaN: not usable."""
    worst = np.where(usable, late, -np.inf)
    np.maximum.accumulate(worst, axis=1, out=worst)
    np.maximum.accumulate(worst, axis=2, out=worst)
    bound: Floats = np.quantile(worst[:, usable], confidence, axis=0, method="inverted_cdf")
    found = np.full(usable.shape, np.nan)
    found[usable] = bound
    return found


def frontier_of(
    case: str, b: Floats, s: Floats, mean: Floats, bound: Floats, *, probability: float
) -> pd.DataFrame:
    """Return the settings that have more throughput than all which keep a smaller limit."""
    rows, columns = np.nonzero(~np.isnan(bound))
    rate = 1000.0 * s[columns] / np.median(mean[:, rows, columns], axis=0)
    order = np.lexsort((-rate, bound[rows, columns]))
    rows, columns, rate = rows[order], columns[order], rate[order]
    best_so_far = np.maximum.accumulate(np.concatenate([[0.0], rate[:-1]])) if rate.size else rate
    kept = rate > best_so_far
    rows, columns = rows[kept], columns[kept]
    tail = 0.5 * (1.0 - probability)
    lower, median, upper = np.quantile(mean[:, rows, columns], [tail, 0.5, 1.0 - tail], axis=0)
    tokens = s[columns]
    return pd.DataFrame(
        {
            "case": case,
            "limit_ms": bound[rows, columns],
            "batch_size": b[rows].astype(int),
            "total_tokens": tokens.astype(int),
            "latency_ms": median,
            "latency_ms_lower": lower,
            "latency_ms_upper": upper,
            "tokens_per_s": 1000.0 * tokens / median,
            "tokens_per_s_lower": 1000.0 * tokens / upper,
            "tokens_per_s_upper": 1000.0 * tokens / lower,
        }
    )


def settings_of(b: Floats, s: Floats, mean: Floats, bound: Floats, slo_ms: float) -> pd.DataFrame:
    """Return for each number of requests the largest token budget that keeps the limit."""
    typical = np.median(mean, axis=0)
    rows: list[dict[str, Any]] = []
    for row, requests in enumerate(b):
        seen = np.flatnonzero(~np.isnan(bound[row]))
        if not seen.size:
            continue
        kept = seen[bound[row, seen] <= slo_ms]
        found: dict[str, Any] = {"batch_size": int(requests), "total_tokens": None, "limited_by": "slo"}
        if kept.size:
            latency, decode = typical[row, kept[-1]], typical[row, np.searchsorted(s, requests)]
            found |= {
                "total_tokens": int(s[kept[-1]]),
                "limited_by": "data" if kept[-1] == seen[-1] else "slo",
                "latency_ms": latency,
                "tokens_per_s": 1000.0 * s[kept[-1]] / latency,
                "decode_tokens_per_s": 1000.0 * requests / decode,
            }
        rows.append(found)
    columns = [
        "batch_size",
        "total_tokens",
        "limited_by",
        "latency_ms",
        "tokens_per_s",
        "decode_tokens_per_s",
    ]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype({"total_tokens": "Int64"})
