"""What a fit of a server's first half says of its second half's requests, beside what clients measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.fitted import FittedModel
from bayes_sched.planning.decisions import replay_on_clock
from bayes_sched.planning.measures import KEYS, LEVELS
from bayes_sched.planning.replay import Replay, replay
from bayes_sched.planning.scheduler import SchedulerSettings
from bayes_sched.planning.server_record import ServerRecord
from bayes_sched.planning.step_times import StepTimes

COMPARED = (0.5, 0.95)
"""Quantiles over requests that are compared."""
CORRECTIONS = ("none", "median", "drawn")
"""What is added to the times of the simulated engine: nothing; the median of :attr:`Residuals.first_ms`; the
residuals of a request of the first half, drawn by lot."""

type Floats = NDArray[np.float64]
type Bools = NDArray[np.bool_]
type Times = Mapping[str, Floats]
type ShowShare = Callable[[float], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class RequestForecast:
    """Quantiles of the second half's requests: measured, and predicted by each posterior draw.

    Attributes
    ----------
    measured : Mapping of str to ndarray, dims (level,)
        By :data:`~bayes_sched.planning.measures.KEYS`, at :data:`~bayes_sched.planning.measures.LEVELS`.
    predicted : Mapping of str to Mapping of str to ndarray, dims (draw, level)
        By `CORRECTIONS`, then by time. One replay of all requests a draw, those of the second half counted.
    own_steps : Mapping of str to Mapping of str to ndarray, dims (level,)
        The same of one replay with the server's own step times in place of the fit's: what is left is not
        the fit's error.
    residual_ms : float
        Median over the first half's requests of the measured time to first token, less that of the replay
        with the server's own step times: see :class:`Residuals`.
    level : float
        Time that the second half's steps took, as a share of what the fit expects of them.
    num_requests : int
        Of the second half.
    num_steps : int
        Simulated.
    """

    measured: Times
    predicted: Mapping[str, Times]
    own_steps: Mapping[str, Times]
    residual_ms: float
    level: float
    num_requests: int
    num_steps: int

    def table(self, *, probability: float) -> pd.DataFrame:
        """Return one row a correction, time and level, times in ms.

        ``correction``, ``time``, ``level``, ``measured_ms``, ``predicted_ms`` (median over draws) with
        ``lower_ms`` and ``upper_ms``, ``error`` (share of what was measured), ``is_inside``,
        ``own_steps_error``.
        """
        rows = [
            self._row(correction, key, level, 0.5 * (1.0 - probability))
            for correction in CORRECTIONS
            for key in KEYS
            for level in COMPARED
        ]
        return pd.DataFrame(rows)

    def _row(self, correction: str, key: str, level: float, tail: float) -> dict[str, float | str | bool]:
        at = int(np.argmin(np.abs(LEVELS - level)))
        measured = float(self.measured[key][at])
        draws = self.predicted[correction][key][:, at]
        middle, lower, upper = map(float, np.quantile(draws, [0.5, tail, 1.0 - tail]))
        return {
            "correction": correction,
            "time": key,
            "level": level,
            "measured_ms": measured,
            "predicted_ms": middle,
            "lower_ms": lower,
            "upper_ms": upper,
            "error": middle / measured - 1.0,
            "is_inside": lower <= measured <= upper,
            "own_steps_error": float(self.own_steps[correction][key][at]) / measured - 1.0,
        }


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

    The first half is replayed too, so that the second meets a server as busy as it was. Of the measured times
    only those of the first half are used, and only for the corrections.

    Parameters
    ----------
    fit : FittedModel
        Of the first half's steps.
    record : ServerRecord
    settings : SchedulerSettings
    num_draws : int
    seed : int
    progress : callable
        Called with the share that is done.

    Raises
    ------
    InputError
        The fit's model needs more than B and S, or a request does not fit into the KV cache.
    """
    times = StepTimes.of(
        fit, max_batch_size=settings.max_num_seqs, max_tokens=settings.token_budget, max_draws=num_draws
    )
    workload, second = record.requests.workload, record.is_second
    own = replay_on_clock(record, settings, ingress_ms=record.ingress_ms)
    residuals = Residuals.of(record, own)
    replays = []
    num_steps = 0
    for draw in range(times.num_draws):
        table = times.table(draw, overhead_ms=settings.step_overhead_ms)
        rng = np.random.default_rng([seed, draw])
        done = replay(workload, settings, table, rng=rng)
        replays.append(residuals.corrected(done, second, rng))
        num_steps += done.num_steps
        progress((draw + 1) / times.num_draws)
    return RequestForecast(
        measured={key: _levels(record.requests.times_ms[key][second]) for key in KEYS},
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
    it, whatever the simulation gets wrong though it knows the time of every step.

    Attributes
    ----------
    first_ms, last_ms : ndarray, dims (request,)
        Of first and last tokens.
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
            correction: {key: _levels(of) for key, of in zip(KEYS, values, strict=True)}
            for correction, values in found.items()
        }


def _level(fit: FittedModel, record: ServerRecord) -> float:
    """Return what the second half's steps took, over what the fit expects of them."""
    later = record.steps[~record.is_first_step]
    steps = later[["batch_size", "total_tokens"]].reset_index(drop=True)
    expected = fit.mean_latency(steps, max_draws=100).mean(("chain", "draw"))
    return float(later["latency_ms"].sum() / float(expected.sum()))


def _levels(values: Floats) -> Floats:
    known = values[~np.isnan(values)]
    return np.quantile(known, LEVELS) if known.size else np.full(LEVELS.size, np.nan)
