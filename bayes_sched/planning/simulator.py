"""A workload replayed over posterior draws: how requests fare, and how confident one may be of that."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayes_sched.arrays import Floats
from bayes_sched.checks.local import LocalCheck
from bayes_sched.planning.replay import Replay, SchedulerSettings, StepTimes, replay
from bayes_sched.planning.workload import AnyWorkload, PoissonWorkload, Workload
from bayes_sched.posterior.prediction import band_levels
from bayes_sched.region import Region
from bayes_sched.sla.request import NAMES
from bayes_sched.sla.risk import ROUNDING, Objective

KEYS = tuple(NAMES)
LEVELS = np.concatenate([np.arange(0.01, 1.0, 0.01), [0.995, 0.999]])
"""Levels at which the distribution over requests is kept."""
WARMUP = 0.1
"""Share of generated requests that is not counted: they meet a server that has just begun."""
FEWEST_DRAWS = 40
"""Draws that are replayed even where the confidence asked for is out of reach."""
GROWTH = 0.05
"""A queue that grows by this share of the arrivals, over the second half of them, does not end."""

_LEAST_GROWTH = 5  # requests: fewer are the play of chance
_SHOWN_LEVELS = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
_LOAD = ("queue_mean", "queue_p95", "queue_max", "in_system", "utilisation", "preemptions", "growth")

type Objectives = Mapping[str, Objective | None]
"""What is asked of the requests, by `KEYS`."""
type Interval = Mapping[str, float | None]
"""``median``, ``lower`` and ``upper`` over posterior draws; None where no draw has a value."""
type ShowShare = Callable[[float], None]
"""Called with the share of the work that is done."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Measures:
    """One draw's outcome; queues and utilisation are of one server, from the first request that counts on."""

    quantiles: Mapping[str, Floats]
    """Of the times over requests, ms, by `KEYS`, dims (level,); NaN where no request has such a time."""
    within: Mapping[str, float]  # share of the requests within each limit
    all_within: float
    queue_mean: float  # requests that wait for their first step
    queue_p95: float
    queue_max: float
    in_system: float  # mean number of requests, waiting or running
    utilisation: float  # share of the time in which a step runs
    growth: float  # of the queues over the second half of the arrivals, as a share of these
    is_overloaded: bool
    preemptions: float  # per request

    def will_do(self, objectives: Objectives) -> bool:
        """Return whether enough requests keep every limit and no queue grows without end."""
        return not self.is_overloaded and all(self.keeps(key, of) for key, of in objectives.items() if of)

    def keeps(self, key: str, objective: Objective) -> bool:
        """Return whether the share of requests that is asked for keeps a limit."""
        return self.within[key] >= objective.quantile - ROUNDING


def measure(replays: Sequence[Replay], objectives: Objectives, *, warmup_ms: float = 0.0) -> Measures:
    """Measure one draw, a replay a server; requests that come before `warmup_ms` are not counted."""
    counted = [r.arrival_ms >= warmup_ms for r in replays]
    times = {
        key: np.concatenate([getattr(r, f"{key}_ms")[c] for r, c in zip(replays, counted, strict=True)])
        for key in KEYS
    }
    limits = {key: of.limit_ms for key, of in objectives.items() if of is not None}
    is_within = {key: (times[key] <= ms) | np.isnan(times[key]) for key, ms in limits.items()}
    everybody = np.ones(len(times["ttft"]), dtype=bool)
    last_ms = max(float(r.arrival_ms[-1]) for r in replays)
    end_ms = last_ms if last_ms > warmup_ms else max(float(r.finish_ms.max()) for r in replays)
    growth, is_overloaded = _growth(replays, last_ms)
    return Measures(
        quantiles={key: request_quantiles(values) for key, values in times.items()},
        within={key: float(kept.mean()) for key, kept in is_within.items()},
        all_within=float(np.logical_and.reduce([*is_within.values(), everybody]).mean()),
        **_over_time(replays, warmup_ms, end_ms),
        growth=growth,
        is_overloaded=is_overloaded,
        preemptions=sum(int(r.preemptions.sum()) for r in replays) / sum(len(r.arrival_ms) for r in replays),
    )


def request_quantiles(values: Floats) -> Floats:
    """Return the quantiles of a time over requests, dims (level,); NaN where none has such a time."""
    known = values[~np.isnan(values)]
    return np.quantile(known, LEVELS) if known.size else np.full(LEVELS.size, np.nan)


def _over_time(replays: Sequence[Replay], start_ms: float, end_ms: float) -> dict[str, float]:
    """Return what the queues, and who is there, were over time."""
    queues, present, busy = [], 0.0, 0.0
    for r in replays:
        queues.append(counts_over_time(r.arrival_ms, r.start_ms, start_ms, end_ms))
        inside, span = counts_over_time(r.arrival_ms, r.finish_ms, start_ms, end_ms)
        present += float(inside @ span / span.sum())
        # Whoever is there is served: a server rests only while it has no request at all.
        busy += float(span[inside > 0].sum() / span.sum())
    lengths, spans = (np.concatenate(pieces) for pieces in zip(*queues, strict=True))
    order = np.argsort(lengths, kind="stable")
    below = np.cumsum(spans[order]) / spans.sum()
    return {
        "queue_mean": float(lengths @ spans / spans.sum()),
        "queue_p95": float(lengths[order][np.searchsorted(below, 0.95)]),
        "queue_max": float(lengths.max()),
        "in_system": present / len(replays),
        "utilisation": busy / len(replays),
    }


def counts_over_time(
    begin_ms: Floats, end_ms: Floats, window_start_ms: float, window_end_ms: float
) -> tuple[Floats, Floats]:
    """Return how many intervals are open, piece by piece of a window, and how long each piece lasts."""
    at = np.concatenate([begin_ms, end_ms])
    change = np.concatenate([np.ones(begin_ms.size), -np.ones(end_ms.size)])
    order = np.argsort(at, kind="stable")
    edges = np.concatenate([[window_start_ms], at[order], [window_end_ms]])
    spans = np.diff(np.clip(edges, window_start_ms, window_end_ms))
    return np.concatenate([[0.0], np.cumsum(change[order])]), spans


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


@dataclass(frozen=True, eq=False, kw_only=True)
class ServerSimulation:
    """What some servers did with a workload, one replay a posterior draw."""

    replicas: int  # servers, all of the same draw; requests are dealt to them in turn (round-robin)
    draws: tuple[Measures, ...]
    asked: tuple[str, ...]  # the times with a limit
    confidence: float
    """Share of the draws in which all limits are kept, at once, and no queue grows without end."""
    p_overloaded: float  # share of the draws in which more comes than is served
    all_within: Interval  # share of the requests that keep all limits
    times: Mapping[str, Mapping[str, Any]]
    """By `KEYS` the intervals ``p50_ms``, ``p95_ms`` and ``p99_ms``; of those with a limit ``limit_ms``,
    ``quantile``, ``within`` (interval) and ``confidence`` too."""
    load: Mapping[str, Interval]  # intervals of queues, utilisation, preemptions and growth, as in `Measures`
    extrapolated: float  # share of the simulated time in steps outside of what the trace covers
    beyond: float  # share in steps of more requests, or more tokens, than any of the trace
    contradicted: float  # share in steps of which the trace contradicts the fit
    num_steps: int  # scheduler steps simulated
    seconds: float  # that they took to simulate

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        first = ("replicas", "confidence", "p_overloaded", "all_within", "times")
        return {
            **{name: getattr(self, name) for name in first},
            **self.load,
            "extrapolated": self.extrapolated,
            "beyond": self.beyond,
            "contradicted": self.contradicted,
            "num_draws": len(self.draws),
            "num_steps": self.num_steps,
            "seconds": round(self.seconds, 3),
            "steps_per_second": round(self.num_steps / max(self.seconds, 1e-9)),
        }


def simulate(
    workload: AnyWorkload,
    settings: SchedulerSettings,
    times: StepTimes,
    region: Region,
    local: LocalCheck,
    *,
    replicas: int,
    objectives: Objectives,
    confidence: float,
    probability: float,
    seed: int,
    progress: ShowShare = lambda share: None,
) -> ServerSimulation:
    """Replay a workload once for each draw, on servers whose trace covers a region and tells where they err.

    A :class:`PoissonWorkload` is drawn anew for each replay, so that intervals hold the luck of the arrivals
    too; the same seed gives the same arrivals whatever the servers. Where the confidence asked for is out of
    reach, no more than `FEWEST_DRAWS` draws are replayed.
    """
    time_at = np.zeros(times.mean_ms.shape[1:])
    draws: list[Measures] = []
    num_steps, seconds, num_failed = 0, 0.0, 0
    for draw in range(times.num_draws):
        if draw >= FEWEST_DRAWS and num_failed > (1.0 - confidence) * times.num_draws:
            break
        requests, warmup_ms = _drawn(workload, np.random.default_rng([seed, draw]))
        table = times.table(draw, overhead_ms=settings.step_overhead_ms)
        parts = [requests.part(number, replicas) for number in range(replicas)]
        start = time.perf_counter()
        replays = []
        for number, part in enumerate(part for part in parts if part is not None):
            rng = np.random.default_rng([seed, draw, replicas, number])
            replays.append(replay(part, settings, table, rng=rng, time_at=time_at))
        seconds += time.perf_counter() - start
        num_steps += sum(r.num_steps for r in replays)
        draws.append(measure(replays, objectives, warmup_ms=warmup_ms))
        num_failed += not draws[-1].will_do(objectives)
        progress((draw + 1) / times.num_draws)
    extrapolated, beyond, contradicted = _outside_shares(time_at, times, region, local)
    return ServerSimulation(
        replicas=replicas,
        draws=tuple(draws),
        asked=tuple(key for key in KEYS if objectives[key] is not None),
        confidence=(len(draws) - num_failed) / len(draws),
        p_overloaded=float(np.mean([draw.is_overloaded for draw in draws])),
        all_within=_interval([draw.all_within for draw in draws], probability),
        times={key: _time(draws, key, objectives[key], probability) for key in KEYS},
        load={name: _interval([getattr(draw, name) for draw in draws], probability) for name in _LOAD},
        extrapolated=extrapolated,
        beyond=beyond,
        contradicted=contradicted,
        num_steps=num_steps,
        seconds=seconds,
    )


def _drawn(workload: AnyWorkload, rng: np.random.Generator) -> tuple[Workload, float]:
    """Return the requests of one replay, and from when they count, ms."""
    if isinstance(workload, Workload):
        return workload, 0.0
    requests = workload.draw(rng)
    first = int(WARMUP * requests.num_requests)
    return requests, 1000.0 * float(requests.arrival_s[first])


def _outside_shares(
    time_at: Floats, times: StepTimes, region: Region, local: LocalCheck
) -> tuple[float, float, float]:
    """Return the shares of the time outside of a region, beyond its largest steps, and contradicted."""
    b, s = np.meshgrid(times.nodes_b.astype(float), times.nodes_s.astype(float), indexing="ij")
    outside = ~region.contains(b, np.maximum(b, s))
    largest_b, largest_s = region.reach
    beyond = (b > largest_b) | (s > largest_s)
    total = max(float(time_at.sum()), 1e-300)
    wrong = local.is_contradicted(b, np.maximum(b, s))
    outside_share, beyond_share, wrong_share = (
        float(time_at[w].sum() / total) for w in (outside, beyond, wrong)
    )
    return outside_share, beyond_share, wrong_share


def _time(
    draws: Sequence[Measures], key: str, objective: Objective | None, probability: float
) -> dict[str, Any]:
    quantiles = np.stack([draw.quantiles[key] for draw in draws])
    found: dict[str, Any] = {
        name: _interval(quantiles[:, np.argmin(np.abs(LEVELS - level))], probability)
        for name, level in _SHOWN_LEVELS.items()
    }
    if objective is not None:
        found |= {
            "limit_ms": objective.limit_ms,
            "quantile": objective.quantile,
            "within": _interval([draw.within[key] for draw in draws], probability),
            "confidence": float(np.mean([draw.keeps(key, objective) for draw in draws])),
        }
    return found


def _interval(draws: Sequence[float] | Floats, probability: float) -> Interval:
    values = np.asarray(draws, dtype=np.float64)
    known = values[np.isfinite(values)]
    levels = band_levels(probability)
    lower, median, upper = np.quantile(known, levels).tolist() if known.size else [None] * 3
    return {"median": median, "lower": lower, "upper": upper}


def spread_out(workload: AnyWorkload, *, most: int, seed: int) -> Workload:
    """Return at most so many requests that never meet: what each does alone on a server."""
    requests = workload
    if isinstance(requests, PoissonWorkload):
        requests = requests.draw(np.random.default_rng([seed, 0]))
    every = max(1, requests.num_requests // most)
    prompt, output = requests.prompt_tokens[::every][:most], requests.output_tokens[::every][:most]
    gap_s = 10.0 * float((prompt + output).max())  # ten seconds a token: longer than any step
    return Workload(gap_s * np.arange(len(prompt), dtype=np.float64), prompt, output)
