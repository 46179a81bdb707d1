"""What one replay comes to: times of its requests, the queue, how busy the servers were, and overload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayes_sched.planning.replay import Replay

KEYS = ("ttft", "tpot", "e2e")
NAMES = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end-to-end time"}
LEVELS = np.concatenate([np.arange(0.01, 1.0, 0.01), [0.995, 0.999]])
"""Levels at which the distribution over requests is kept."""
GROWTH = 0.05
"""A queue that grows by this share of the arrivals, over the second half of them, does not end."""

_LEAST_GROWTH = 5  # requests: fewer are the play of chance

type Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Measures:
    """One draw's outcome, all replicas together; times in ms.

    Attributes
    ----------
    quantiles : Mapping of str to ndarray, dims (level,)
        Of the times over requests, by `KEYS`; NaN where no request has such a time.
    within : Mapping of str to float
        Share of the requests within each limit.
    all_within : float
        Share within all of them.
    queue_mean, queue_p95, queue_max : float
        Requests that wait for their first step, at one server, over time from the first counted to the last
        arrival.
    in_system : float
        Mean number of requests at one server, waiting or running.
    utilisation : float
        Share of that time in which a server runs a step.
    growth : float
        Growth of the queues over the second half of the arrivals, as a share of these arrivals.
    is_overloaded : bool
    preemptions : float
        Per request.
    """

    quantiles: Mapping[str, Floats]
    within: Mapping[str, float]
    all_within: float
    queue_mean: float
    queue_p95: float
    queue_max: float
    in_system: float
    utilisation: float
    growth: float
    is_overloaded: bool
    preemptions: float


def measures(
    replays: Sequence[Replay], limits_ms: Mapping[str, float | None], *, warmup_ms: float = 0.0
) -> Measures:
    """Measure one draw.

    Parameters
    ----------
    replays : sequence of Replay
        One a server.
    limits_ms : Mapping of str to (float or None)
        By `KEYS`.
    warmup_ms : float
        Requests that come earlier are not counted.
    """
    counted = [part.arrival_ms >= warmup_ms for part in replays]
    times = {
        key: np.concatenate([getattr(r, f"{key}_ms")[c] for r, c in zip(replays, counted, strict=True)])
        for key in KEYS
    }
    is_within = {
        key: (times[key] <= limit) | np.isnan(times[key])
        for key, limit in limits_ms.items()
        if limit is not None
    }
    num = len(times["ttft"])
    last_ms = max(float(r.arrival_ms[-1]) for r in replays)
    end_ms = last_ms if last_ms > warmup_ms else max(float(r.finish_ms.max()) for r in replays)
    lengths, spans, in_system, utilisation = _over_time(replays, warmup_ms, end_ms)
    growth, is_overloaded = _growth(replays, last_ms)
    order = np.argsort(lengths, kind="stable")
    below = np.cumsum(spans[order]) / spans.sum()
    return Measures(
        quantiles={key: _quantiles(values) for key, values in times.items()},
        within={key: float(kept.mean()) for key, kept in is_within.items()},
        all_within=float(np.logical_and.reduce([*is_within.values(), np.ones(num, dtype=bool)]).mean()),
        queue_mean=float(lengths @ spans / spans.sum()),
        queue_p95=float(lengths[order][np.searchsorted(below, 0.95)]),
        queue_max=float(lengths.max()),
        in_system=in_system,
        utilisation=utilisation,
        growth=growth,
        is_overloaded=is_overloaded,
        preemptions=sum(int(r.preemptions.sum()) for r in replays) / sum(len(r.arrival_ms) for r in replays),
    )


def _quantiles(values: Floats) -> Floats:
    known = values[~np.isnan(values)]
    return np.quantile(known, LEVELS) if known.size else np.full(LEVELS.size, np.nan)


def _over_time(
    replays: Sequence[Replay], start_ms: float, end_ms: float
) -> tuple[Floats, Floats, float, float]:
    """Return queue lengths with the time each lasted, the mean number at a server, and the busy share."""
    lengths, spans, present, busy = [], [], 0.0, 0.0
    for r in replays:
        length, span = counts_over_time(r.arrival_ms, r.start_ms, start_ms, end_ms)
        lengths.append(length)
        spans.append(span)
        inside, span = counts_over_time(r.arrival_ms, r.finish_ms, start_ms, end_ms)
        present += float(inside @ span / span.sum())
        # Whoever is there is served: a server rests only while it has no request at all.
        busy += float(span[inside > 0].sum() / span.sum())
    return np.concatenate(lengths), np.concatenate(spans), present / len(replays), busy / len(replays)


def counts_over_time(
    begin_ms: Floats, end_ms: Floats, window_start_ms: float, window_end_ms: float
) -> tuple[Floats, Floats]:
    """Return how many of some intervals are open, piece by piece of a window, and how long each piece lasts.

    Parameters
    ----------
    begin_ms, end_ms : ndarray, dims (interval,)
    window_start_ms, window_end_ms : float

    Returns
    -------
    tuple of ndarray, dims (piece,)
    """
    at = np.concatenate([begin_ms, end_ms])
    change = np.concatenate([np.ones(begin_ms.size), -np.ones(end_ms.size)])
    order = np.argsort(at, kind="stable")
    edges = np.clip(
        np.concatenate([[window_start_ms], at[order], [window_end_ms]]), window_start_ms, window_end_ms
    )
    return np.concatenate([[0.0], np.cumsum(change[order])]), np.diff(edges)


def _growth(replays: Sequence[Replay], last_ms: float) -> tuple[float, bool]:
    """Return how much the queues grew over the second half of the time, and whether that is overload."""

    def waiting(at_ms: float) -> int:
        return sum(int(((r.arrival_ms <= at_ms) & (r.start_ms > at_ms)).sum()) for r in replays)

    middle = 0.5 * last_ms
    arrivals = sum(int((r.arrival_ms > middle).sum()) for r in replays)
    if not arrivals:
        return 0.0, False
    grown = waiting(last_ms) - waiting(middle)
    return grown / arrivals, grown >= max(_LEAST_GROWTH, GROWTH * arrivals)
