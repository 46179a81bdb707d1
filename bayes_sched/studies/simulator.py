"""The simulator held against a real server: what it decides, and what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.arrays import Floats
from bayes_sched.format import number, percent, records
from bayes_sched.planning.replay import SchedulerSettings
from bayes_sched.planning.server_record import (
    Decisions,
    RequestForecast,
    ServerRecord,
    decisions_of_clock,
    decisions_of_queue,
    forecast_requests,
)
from bayes_sched.planning.simulator import KEYS
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import check_probability

DEFAULT_DRAWS = 200
"""Posterior draws, a replay each."""
STEADY = 0.05
"""Change of the steps' times between the halves, as a share, from which on the server is another one."""
BUSY_CLIENTS = 0.25
"""Share of the median time to first token from which on clients measure themselves."""
STRETCH_S = 8.0
"""Length of the stretch of decisions that is drawn, seconds."""

type ShowStage = Callable[[str, float | None], None]


@dataclass(frozen=True, eq=False)
class TimeCurves:
    """Quantiles over requests of one time, ms, dims (level,): predicted with their interval, and measured.

    ``engine`` is the median over draws of the simulated engine alone.
    """

    lower: Floats
    predicted: Floats
    upper: Floats
    engine: Floats
    measured: Floats


@dataclass(frozen=True, eq=False, kw_only=True)
class SimulatorCheck:
    """The simulator beside a real server."""

    text: str
    cautions: tuple[str, ...]
    sources_text: str
    table: pd.DataFrame
    decisions: Mapping[str, Mapping[str, float]]
    steps: pd.DataFrame
    busiest: pd.DataFrame
    curves: Mapping[str, TimeCurves]
    residual_ms: float
    probability: float
    numbers: Mapping[str, Any]


def check_simulator(
    fit: FittedModel,
    record: ServerRecord,
    settings: SchedulerSettings | None = None,
    *,
    num_draws: int = DEFAULT_DRAWS,
    probability: float = DEFAULT_PROBABILITY,
    seed: int = 0,
    progress: ShowStage = lambda stage, share: None,
) -> SimulatorCheck:
    """Hold the simulator against a real server."""
    check_probability(probability, name="probability")
    settings = record.settings() if settings is None else settings
    progress("comparing decisions", None)
    queue, clock = decisions_of_queue(record, settings), decisions_of_clock(record, settings)
    forecast = forecast_requests(
        fit,
        record,
        settings,
        num_draws=num_draws,
        seed=seed,
        progress=lambda share: progress("simulating requests", share),
    )
    return judged(forecast, record, settings, queue=queue, clock=clock, fit=fit, probability=probability)


def judged(
    forecast: RequestForecast,
    record: ServerRecord,
    settings: SchedulerSettings,
    *,
    queue: Decisions,
    clock: Decisions,
    fit: FittedModel,
    probability: float,
) -> SimulatorCheck:
    """Return what decisions and a forecast say of the simulator."""
    table = forecast.table(probability=probability)
    decisions = {"of_queue": queue.to_dict(), "of_clock": clock.to_dict()}
    cautions = _cautions(forecast, record)
    text = " ".join([_verdict(forecast, table, queue, clock, probability), *cautions])
    return SimulatorCheck(
        text=text,
        cautions=cautions,
        sources_text=_sources(forecast, record, settings),
        table=table,
        decisions=decisions,
        steps=clock.steps,
        busiest=_busiest(clock.steps),
        curves=_curves(forecast, probability),
        residual_ms=forecast.residual_ms,
        probability=probability,
        numbers={
            "num_requests": record.requests.num_requests,
            "num_steps": len(record.steps),
            "num_fitted_steps": int(record.is_first_step.sum()),
            "converged": fit.converged,
            "token_budget": settings.token_budget,
            "max_num_seqs": settings.max_num_seqs,
            "kv_tokens": settings.kv_tokens,
            "block_tokens": settings.block_tokens,
            "step_overhead_ms": settings.step_overhead_ms,
            "ingress_ms": record.ingress_ms,
            "residual_ms": forecast.residual_ms,
            "level": forecast.level,
            "num_simulated_steps": forecast.num_steps,
            "probability": probability,
            "decisions": decisions,
            "requests": records(table),
            "warnings": list(record.warnings),
            "text": text,
        },
    )


def _verdict(
    forecast: RequestForecast, table: pd.DataFrame, queue: Decisions, clock: Decisions, probability: float
) -> str:
    alone, drawn = (table[table["correction"] == name] for name in ("none", "drawn"))
    return (
        "Told how many requests wait or run, the simulated scheduler puts the same requests and tokens "
        f"into {percent(queue.share_equal, 2)} of the server's {len(queue.steps):,} steps; told only "
        f"when clients sent their requests and when steps ended, into {percent(clock.share_equal, 2)}. "
        f"Median and 95% quantile of the three times of {forecast.num_requests:,} later requests "
        f"are predicted within {_worst(alone)} by the simulated engine alone, and "
        f"{int(alone['is_inside'].sum())} of the {len(alone)} lie in their {100 * probability:g}% "
        "interval; with what clients of the first half measured beyond it, within "
        f"{_worst(drawn)} and {int(drawn['is_inside'].sum())} of {len(drawn)}. The later steps took "
        f"{percent(forecast.level, 1)} of what the fit expects of them."
    )


def _worst(rows: pd.DataFrame) -> str:
    return percent(float(rows["error"].abs().max()), 1)


def _cautions(forecast: RequestForecast, record: ServerRecord) -> tuple[str, ...]:
    found = []
    if abs(forecast.level - 1.0) > STEADY:
        found.append("BEWARE: the server itself changed between the halves, and no interval holds that.")
    if forecast.residual_ms > BUSY_CLIENTS * float(np.nanmedian(record.requests.times_ms["ttft"])):
        found.append(
            "BEWARE: much of what clients measured is not the simulated engine's, but their own, the way "
            "there and back, or what the simulation gets wrong."
        )
    return tuple(found)


def _sources(forecast: RequestForecast, record: ServerRecord, settings: SchedulerSettings) -> str:
    gaps = record.gaps_ms
    median = number(float(np.median(gaps)) if gaps.size else 0.0)
    return (
        f"{record.requests.num_requests:,} requests and {len(record.steps):,} steps; the fit is of "
        f"{int(record.is_first_step.sum()):,} steps before the second half. Scheduler: "
        f"{settings.text} (the mean gap between model runs of the first half where a request goes "
        f"on; median {median} ms). A request takes {number(record.ingress_ms)} ms to the scheduler "
        "(median where the server was at rest, first half). Clients measured "
        f"{number(forecast.residual_ms)} ms more to the first token than the engine takes that is "
        "simulated with the server's own step times (median, first half)."
    )


def _curves(forecast: RequestForecast, probability: float) -> dict[str, TimeCurves]:
    tail = 0.5 * (1.0 - probability)
    found = {}
    for key in KEYS:
        drawn = np.quantile(forecast.predicted["drawn"][key], [tail, 0.5, 1.0 - tail], axis=0)
        engine = np.median(forecast.predicted["none"][key], axis=0)
        found[key] = TimeCurves(drawn[0], drawn[1], drawn[2], engine, forecast.measured[key])
    return found


def _busiest(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the stretch with the most requests, over time."""
    start = steps["start_ms"].to_numpy(float)
    work = np.concatenate([[0.0], np.cumsum(steps["batch_size"] * steps["duration_ms"])])
    ends = np.searchsorted(start, start + 1000.0 * STRETCH_S)
    begin = float(start[np.argmax(work[ends] - work[np.arange(len(start))])])
    return steps[steps["start_ms"].between(begin, begin + 1000.0 * STRETCH_S)]
