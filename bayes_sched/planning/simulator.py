"""A workload replayed over posterior draws: how requests fare, and how sure one may be of that."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayes_sched.arrays import Floats
from bayes_sched.planning.replay import Replay, SchedulerSettings, StepTimes, replay
from bayes_sched.planning.workload import AnyWorkload, PoissonWorkload, Workload
from bayes_sched.region import TOLERANCE, Region
from bayes_sched.sla.risk import Objective

KEYS = ("ttft", "tpot", "e2e")
NAMES = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end-to-end time"}
LEVELS = np.concatenate([np.arange(0.01, 1.0, 0.01), [0.995, 0.999]])
"""Levels at which the distribution over requests is kept."""
GROWTH = 0.05
"""A queue that grows by this share of the arrivals, over the second half of them, does not end."""

_LEAST_GROWTH = 5  # requests: fewer are the play of chance


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


WARMUP = 0.1
"""Share of generated requests that is not counted: they meet a server that has just begun."""

FEWEST_DRAWS = 40
"""Draws that are replayed even where the confidence asked for is out of reach."""

_ROUNDING = 1e-12

type ShowShare = Callable[[float], None]
"""Called with the share of the work that is done."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Simulation:
    """What some servers did with a workload, one replay a posterior draw.

    Attributes
    ----------
    replicas : int
        Servers, all of the same draw; requests are dealt to them in turn (round-robin).
    draws : tuple of Measures
        One a posterior draw.
    objectives : Mapping of str to (Objective or None)
        What was asked of the requests, by key.
    num_steps : int
        Scheduler steps simulated.
    seconds : float
        Time they took to simulate.
    extrapolated : float
        Share of the simulated time in steps outside of what the trace covers.
    beyond : float
        Share in steps of more requests, or more tokens, than any of the trace.
    """

    replicas: int
    draws: tuple[Measures, ...]
    objectives: Mapping[str, Objective | None]
    num_steps: int
    seconds: float
    extrapolated: float
    beyond: float

    def values(self, name: str) -> Floats:
        """Return a measure of each draw, dims (draw,)."""
        return np.array([getattr(draw, name) for draw in self.draws], dtype=np.float64)

    def quantile_draws(self, key: str) -> Floats:
        """Return the quantiles of a time over requests, ms, dims (draw, level)."""
        return np.stack([draw.quantiles[key] for draw in self.draws])

    def within(self, key: str) -> Floats:
        """Return the share of the requests within a limit, dims (draw,)."""
        return np.array([draw.within[key] for draw in self.draws])

    def is_kept(self, key: str) -> NDArray[np.bool_]:
        """Return whether the asked share of requests keeps a limit, dims (draw,)."""
        objective = self.objectives[key]
        assert objective is not None, f"no limit on {key}"
        kept: NDArray[np.bool_] = self.within(key) >= objective.quantile - _ROUNDING
        return kept

    @property
    def asked(self) -> tuple[str, ...]:
        """The times with a limit."""
        return tuple(key for key in KEYS if self.objectives[key] is not None)

    @property
    def confidence(self) -> float:
        """Share of the draws in which all limits are kept, at once, and no queue grows without end."""
        return float(np.mean([_will_do(draw, self.objectives) for draw in self.draws]))

    @property
    def p_overloaded(self) -> float:
        """Share of the draws in which more comes than is served."""
        return float(self.values("is_overloaded").mean())

    @property
    def steps_per_second(self) -> float:
        """How fast it was simulated."""
        return self.num_steps / max(self.seconds, 1e-9)

    def to_dict(self, *, probability: float) -> dict[str, Any]:
        """Return plain values, ready for JSON; intervals over draws of a probability."""
        tail = 0.5 * (1.0 - probability)

        def interval(draws: Floats) -> dict[str, float | None]:
            known = draws[np.isfinite(draws)]
            ends = np.quantile(known, [0.5, tail, 1.0 - tail]).tolist() if known.size else [None] * 3
            return dict(zip(("median", "lower", "upper"), ends, strict=True))

        times = {}
        for key in KEYS:
            draws, objective = self.quantile_draws(key), self.objectives[key]
            row: dict[str, Any] = {
                f"p{100 * level:g}_ms": interval(draws[:, np.argmin(np.abs(LEVELS - level))])
                for level in (0.5, 0.95, 0.99)
            }
            if objective is not None:
                row |= {
                    "limit_ms": objective.limit_ms,
                    "quantile": objective.quantile,
                    "within": interval(self.within(key)),
                    "confidence": float(self.is_kept(key).mean()),
                }
            times[key] = row
        names = ("queue_mean", "queue_p95", "queue_max", "in_system", "utilisation", "preemptions", "growth")
        return {
            "replicas": self.replicas,
            "confidence": self.confidence,
            "p_overloaded": self.p_overloaded,
            "all_within": interval(self.values("all_within")),
            "times": times,
            **{name: interval(self.values(name)) for name in names},
            "extrapolated": self.extrapolated,
            "beyond": self.beyond,
            "num_draws": len(self.draws),
            "num_steps": self.num_steps,
            "seconds": round(self.seconds, 3),
            "steps_per_second": round(self.steps_per_second),
        }


def simulate(
    workload: AnyWorkload,
    settings: SchedulerSettings,
    times: StepTimes,
    region: Region,
    *,
    replicas: int,
    objectives: Mapping[str, Objective | None],
    seed: int,
    confidence: float = 0.0,
    progress: ShowShare = lambda share: None,
) -> Simulation:
    """Replay a workload once for each draw.

    All steps of a replay, on all servers, share the draw's parameters; their noise is independent. A
    :class:`PoissonWorkload` is drawn anew for each replay, so that intervals hold the luck of the arrivals
    too; the same seed gives the same arrivals whatever the servers.

    Parameters
    ----------
    workload : Workload or PoissonWorkload
    settings : SchedulerSettings
    times : StepTimes
    region : Region
        Where the trace has steps.
    replicas : int
    objectives : Mapping of str to (Objective or None)
    seed : int
    confidence : float
        What is asked for: where it is out of reach, no more than `FEWEST_DRAWS` draws are replayed.
    progress : callable

    Raises
    ------
    InputError
        A request does not fit into the KV cache.
    """
    limits = {key: None if of is None else of.limit_ms for key, of in objectives.items()}
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
        replays = [
            replay(
                part,
                settings,
                table,
                rng=np.random.default_rng([seed, draw, replicas, number]),
                time_at=time_at,
            )
            for number, part in enumerate(parts)
            if part is not None
        ]
        seconds += time.perf_counter() - start
        num_steps += sum(r.num_steps for r in replays)
        draws.append(measures(replays, limits, warmup_ms=warmup_ms))
        num_failed += not _will_do(draws[-1], objectives)
        progress((draw + 1) / times.num_draws)
    extrapolated, beyond = outside_shares(time_at, times, region)
    return Simulation(
        replicas=replicas,
        draws=tuple(draws),
        objectives=objectives,
        num_steps=num_steps,
        seconds=seconds,
        extrapolated=extrapolated,
        beyond=beyond,
    )


def _will_do(draw: Measures, objectives: Mapping[str, Objective | None]) -> bool:
    """Return whether a draw keeps every limit and no queue grows without end."""
    kept = (
        draw.within[key] >= objective.quantile - _ROUNDING
        for key, objective in objectives.items()
        if objective is not None
    )
    return not draw.is_overloaded and all(kept)


def _drawn(workload: AnyWorkload, rng: np.random.Generator) -> tuple[Workload, float]:
    """Return the requests of one replay, and from when they count, ms."""
    if isinstance(workload, Workload):
        return workload, 0.0
    requests = workload.draw(rng)
    first = int(WARMUP * requests.num_requests)
    return requests, 1000.0 * float(requests.arrival_s[first])


def outside_shares(time_at: Floats, times: StepTimes, region: Region) -> tuple[float, float]:
    """Return the shares of the time outside of a region, and beyond its largest steps."""
    b, s = np.meshgrid(times.nodes_b.astype(float), times.nodes_s.astype(float), indexing="ij")
    outside = ~region.contains(b, np.maximum(b, s))
    largest_b, largest_s = np.exp(region.corners.max(axis=0) + TOLERANCE)
    beyond = (b > largest_b) | (s > largest_s)
    total = max(float(time_at.sum()), 1e-300)
    return float(time_at[outside].sum() / total), float(time_at[beyond].sum() / total)


def spread_out(workload: AnyWorkload, *, most: int, seed: int) -> Workload:
    """Return requests of a workload that never meet: what each does alone on a server.

    Parameters
    ----------
    workload : Workload or PoissonWorkload
    most : int
        Requests to take, at most.
    seed : int
    """
    requests = workload
    if isinstance(requests, PoissonWorkload):
        requests = requests.draw(np.random.default_rng([seed, 0]))
    every = max(1, requests.num_requests // most)
    prompt, output = requests.prompt_tokens[::every][:most], requests.output_tokens[::every][:most]
    gap_s = 10.0 * float((prompt + output).max())  # ten seconds a token: longer than any step
    return Workload(gap_s * np.arange(len(prompt), dtype=np.float64), prompt, output)
