"""What a fit of a server's first half says of its second half's requests, beside what clients measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bayes_sched.arrays import Bools, Floats, Ints
from bayes_sched.planning.replay import Replay, SchedulerSettings, StepTimes, replay
from bayes_sched.planning.replay_kernel import Given, StepTable
from bayes_sched.planning.server_record import ServerRecord
from bayes_sched.planning.simulator import KEYS, LEVELS, request_quantiles
from bayes_sched.planning.workload import Workload
from bayes_sched.posterior.fitted import FittedModel

COMPARED = (0.5, 0.95)
"""Quantiles over requests that are compared."""
CORRECTIONS = ("none", "median", "drawn")
"""What is added to the times of the simulated engine: nothing; the median of :attr:`Residuals.first_ms`; the
residuals of a request of the first half, drawn by lot."""

_AFTER_ROUNDING_MS = 1e-3

type Times = Mapping[str, Floats]
type ShowShare = Callable[[float], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Decisions:
    """The steps of a real scheduler beside the simulated ones."""

    steps: pd.DataFrame
    """One row a real step: ``start_ms`` and ``duration_ms`` (until the next could begin), ``batch_size``,
    ``total_tokens``, and the simulated ``simulated_batch_size``, ``simulated_total_tokens``; 0 where the
    simulated scheduler had nothing to do."""
    num_simulated: int
    """Steps it took for the same requests."""

    def difference(self, name: str) -> Floats:
        """Return simulated less real ``batch_size`` or ``total_tokens``, dims (step,)."""
        values: Floats = (self.steps[f"simulated_{name}"] - self.steps[name]).to_numpy(float)
        return values

    @property
    def share_equal(self) -> float:
        """Share of the steps with the same requests and tokens."""
        return float(((self.difference("batch_size") == 0) & (self.difference("total_tokens") == 0)).mean())

    def to_dict(self) -> dict[str, float]:
        """Return plain values: shares over steps, differences of B also over time."""
        b, s = self.difference("batch_size"), self.difference("total_tokens")
        span = self.steps["duration_ms"].to_numpy(float)
        return {
            "num_steps": len(b),
            "num_simulated": self.num_simulated,
            "share_equal": self.share_equal,
            "share_equal_batch_size": float((b == 0).mean()),
            "share_equal_total_tokens": float((s == 0).mean()),
            "share_batch_size_within_1": float((np.abs(b) <= 1).mean()),
            "time_share_equal_batch_size": float(span[b == 0].sum() / span.sum()),
            "mean_batch_size": float((self.steps["batch_size"] * span).sum() / span.sum()),
            "mean_batch_size_difference": float((b * span).sum() / span.sum()),
            "largest_batch_size_difference": float(np.abs(b).max()),
            "mean_total_tokens_difference": float(s.mean()),
            "p95_total_tokens_difference": float(np.quantile(np.abs(s), 0.95)),
        }


def decisions_of_queue(record: ServerRecord, settings: SchedulerSettings) -> Decisions:
    """Return what the simulated scheduler does where it is told how many are there in each step.

    Requests come when the trace counts one more, so that only the scheduling itself can differ.
    """
    num = len(record.steps)
    clock = np.arange(num, dtype=np.float64)
    requests = record.requests
    arrival_s = np.full(requests.num_requests, num / 1000.0)
    workload = Workload(arrival_s, requests.prompt_tokens, requests.output_tokens)
    done = _forced(workload, settings, Given(clock + 1.0, record.present), num_logged=num)
    return _beside(record, done, np.rint(done.steps["start_ms"].to_numpy(float)).astype(np.int64))


def decisions_of_clock(record: ServerRecord, settings: SchedulerSettings) -> Decisions:
    """Return what it does where requests come when clients sent them, and steps end when the real ones did.

    Arrivals are moved by the time that a request takes to reach the scheduler (`ingress_ms`).
    """
    done = replay_on_clock(record, settings, ingress_ms=record.ingress_ms)
    ends = (done.steps["start_ms"] + done.steps["duration_ms"]).to_numpy(float)
    return _beside(record, done, np.searchsorted(record.ends_ms, ends - _AFTER_ROUNDING_MS))


def replay_on_clock(record: ServerRecord, settings: SchedulerSettings, *, ingress_ms: float) -> Replay:
    """Replay the requests with the real step times; times are as of the first arrival plus `ingress_ms`."""
    given = Given(record.ends_ms - ingress_ms, np.empty(0, dtype=np.int64))
    done = _forced(record.requests.workload, settings, given, num_logged=4 * len(record.steps))
    done.steps["start_ms"] += ingress_ms
    return done


def _forced(workload: Workload, settings: SchedulerSettings, given: Given, *, num_logged: int) -> Replay:
    rng = np.random.default_rng(0)  # nothing is drawn: the table has no noise
    return replay(workload, settings, _plain_table(settings), rng=rng, given=given, num_logged=num_logged)


def _plain_table(settings: SchedulerSettings) -> StepTable:
    """Return steps of 1 ms, whatever they hold."""
    nodes_b, nodes_s = (np.array([1, max(n, 2)]) for n in (settings.max_num_seqs, settings.token_budget))
    ones = np.ones((1, 2, 2))
    times = StepTimes(ones, np.zeros_like(ones), np.zeros(1), nodes_b, nodes_s, 1e9)
    return times.table(0, overhead_ms=0.0)


def _beside(record: ServerRecord, done: Replay, number: Ints) -> Decisions:
    """Put simulated steps beside the real ones of the same numbers."""
    num = len(record.steps)
    is_real = number < num
    table = pd.DataFrame({"start_ms": record.start_ms, "duration_ms": record.ends_ms - record.start_ms})
    for name in ("batch_size", "total_tokens"):
        table[name] = record.steps[name].to_numpy(np.int64)
        simulated = np.zeros(num, dtype=np.int64)
        simulated[number[is_real]] = done.steps[name].to_numpy(np.int64)[is_real]
        table[f"simulated_{name}"] = simulated
    return Decisions(steps=table, num_simulated=done.num_steps)


@dataclass(frozen=True, eq=False, kw_only=True)
class RequestForecast:
    """Quantiles of the second half's requests: measured, and predicted by each posterior draw."""

    measured: Times
    """By `KEYS`, dims (level,)."""
    predicted: Mapping[str, Times]
    """By `CORRECTIONS`, then by time, dims (draw, level). One replay of all requests a draw, those of the
    second half counted."""
    own_steps: Mapping[str, Times]
    """The same of one replay with the server's own step times in place of the fit's, dims (level,): what is
    left is not the fit's error."""
    residual_ms: float
    """Median over the first half's requests of the measured time to first token, less that of the replay with
    the server's own step times: see :class:`Residuals`."""
    level: float
    """Time that the second half's steps took, as a share of what the fit expects of them."""
    num_requests: int
    """Of the second half."""
    num_steps: int
    """Simulated."""

    def table(self, *, probability: float) -> pd.DataFrame:
        """Return one row a correction, time and level, times in ms.

        ``correction``, ``time``, ``level``, ``measured_ms``, ``predicted_ms`` (median over draws) with
        ``lower_ms`` and ``upper_ms``, ``error`` (share of what was measured), ``is_inside``,
        ``own_steps_error``.
        """
        levels = [0.5, 0.5 * (1.0 - probability), 1.0 - 0.5 * (1.0 - probability)]
        rows: list[dict[str, float | str | bool]] = []
        for correction, key, level in itertools.product(CORRECTIONS, KEYS, COMPARED):
            at = int(np.argmin(np.abs(LEVELS - level)))
            measured, own = float(self.measured[key][at]), float(self.own_steps[correction][key][at])
            draws = self.predicted[correction][key][:, at]
            middle, lower, upper = map(float, np.quantile(draws, levels))
            rows.append(
                {
                    "correction": correction,
                    "time": key,
                    "level": level,
                    "measured_ms": measured,
                    "predicted_ms": middle,
                    "lower_ms": lower,
                    "upper_ms": upper,
                    "error": middle / measured - 1.0,
                    "is_inside": lower <= measured <= upper,
                    "own_steps_error": own / measured - 1.0,
                }
            )
        return pd.DataFrame(rows)


def forecast_requests(
    fit: FittedModel,
    record: ServerRecord,
    settings: SchedulerSettings,
    *,
    num_draws: int,
    seed: int,
    progress: ShowShare = lambda share: None,
) -> RequestForecast:
    """Replay all requests once for each posterior draw, and keep the quantiles of the second half.

    The fit is of the first half's steps, which is replayed too, so that the second meets a server as busy as
    it was. Of the measured times only those of the first half are used, and only for the corrections.
    """
    times = StepTimes.of(
        fit, max_batch_size=settings.max_num_seqs, max_tokens=settings.token_budget, max_draws=num_draws
    )
    workload, second = record.requests.workload, record.is_second
    own = replay_on_clock(record, settings, ingress_ms=record.ingress_ms)
    residuals = Residuals.of(record, own)
    replays, num_steps = [], 0
    for draw in range(times.num_draws):
        table = times.table(draw, overhead_ms=settings.step_overhead_ms)
        rng = np.random.default_rng([seed, draw])
        done = replay(workload, settings, table, rng=rng)
        replays.append(residuals.corrected(done, second, rng))
        num_steps += done.num_steps
        progress((draw + 1) / times.num_draws)
    return RequestForecast(
        measured={key: request_quantiles(record.requests.times_ms[key][second]) for key in KEYS},
        predicted={
            correction: {key: np.stack([found[correction][key] for found in replays]) for key in KEYS}
            for correction in CORRECTIONS
        },
        own_steps=residuals.corrected(own, second, np.random.default_rng(seed)),
        residual_ms=residuals.typical_ms,
        level=_level(fit, record),
        num_requests=int(second.sum()),
        num_steps=num_steps,
    )


@dataclass(frozen=True, eq=False)
class Residuals:
    """What clients measured beyond the simulated engine, of the first half's requests.

    That is what is outside the engine (HTTP, tokenisation, the way there and back) and, not to be told from
    it, whatever the simulation gets wrong though it knows the time of every step. Of first and of last
    tokens, dims (request,).
    """

    first_ms: Floats
    last_ms: Floats

    @classmethod
    def of(cls, record: ServerRecord, own: Replay) -> Residuals:
        """Return measured times less those of a replay with the server's own step times."""
        first, measured = ~record.is_second, record.requests.times_ms
        return cls((measured["ttft"] - own.ttft_ms)[first], (measured["e2e"] - own.e2e_ms)[first])

    @property
    def typical_ms(self) -> float:
        """The median of the first tokens."""
        return float(np.median(self.first_ms))

    def corrected(
        self, done: Replay, counted: Bools, rng: np.random.Generator
    ) -> dict[str, dict[str, Floats]]:
        """Return the quantiles of a replay by `CORRECTIONS` and time, dims (level,)."""
        ttft, e2e, tpot = done.ttft_ms[counted], done.e2e_ms[counted], done.tpot_ms[counted]
        lot = rng.integers(0, self.first_ms.size, ttft.size)
        late_first, late_last = self.first_ms[lot], self.last_ms[lot]
        later_tokens = np.maximum(done.output_tokens[counted] - 1, 1)
        constant = self.typical_ms
        single = np.isnan(tpot)
        late_last = np.where(single, late_first, late_last)
        spread = np.maximum(e2e + late_last - ttft - late_first, 0.0) / later_tokens
        found = {
            "none": (ttft, tpot, e2e),
            "median": (ttft + constant, tpot, e2e + constant),
            "drawn": (ttft + late_first, np.where(single, np.nan, spread), e2e + late_last),
        }
        return {
            correction: {key: request_quantiles(of) for key, of in zip(KEYS, values, strict=True)}
            for correction, values in found.items()
        }


def _level(fit: FittedModel, record: ServerRecord) -> float:
    """Return what the second half's steps took, over what the fit expects of them."""
    later = record.steps[~record.is_first_step]
    steps = later[["batch_size", "total_tokens"]].reset_index(drop=True)
    expected = fit.mean_latency(steps, max_draws=100).mean(("chain", "draw"))
    return float(later["latency_ms"].sum() / float(expected.sum()))
