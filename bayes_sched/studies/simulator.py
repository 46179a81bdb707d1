"""The simulator held against a real server: what it decides, and what it predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.format import number, percent, records
from bayes_sched.planning.forecast import (
    Decisions,
    RequestForecast,
    decisions_of_clock,
    decisions_of_queue,
    forecast_requests,
)
from bayes_sched.planning.replay import SchedulerSettings
from bayes_sched.planning.server_record import ServerRecord
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import check_probability

DEFAULT_DRAWS = 200
"""Posterior draws, a replay each."""

STEADY = 0.05
"""Change of the steps' times between the halves, as a share, from which on the server is another one."""
BUSY_CLIENTS = 0.25
"""Share of the median time to first token from which on clients measure themselves."""

type ShowStage = Callable[[str, float | None], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class SimulatorCheck:
    """The simulator beside a real server.

    Attributes
    ----------
    fit : FittedModel
        Of the steps before the second half's requests.
    record : ServerRecord
    settings : SchedulerSettings
    of_queue, of_clock : Decisions
        The scheduler's decisions where it is told how many are there, and where it is told when steps end.
    forecast : RequestForecast
    probability : float
        Of intervals.
    """

    fit: FittedModel
    record: ServerRecord
    settings: SchedulerSettings
    of_queue: Decisions
    of_clock: Decisions
    forecast: RequestForecast
    probability: float

    @property
    def table(self) -> pd.DataFrame:
        """Quantiles over the second half's requests, as :meth:`RequestForecast.table` says."""
        return self.forecast.table(probability=self.probability)

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        table = self.table
        alone, drawn = (table[table["correction"] == name] for name in ("none", "drawn"))
        queue, clock = self.of_queue, self.of_clock
        return (
            "Told how many requests wait or run, the simulated scheduler puts the same requests and tokens "
            f"into {percent(queue.share_equal, 2)} of the server's {len(queue.steps):,} steps; told only "
            f"when clients sent their requests and when steps ended, into {percent(clock.share_equal, 2)}. "
            f"Median and 95% quantile of the three times of {self.forecast.num_requests:,} later requests "
            f"are predicted within {_worst(alone)} by the simulated engine alone, and "
            f"{int(alone['is_inside'].sum())} of the {len(alone)} lie in their {100 * self.probability:g}% "
            "interval; with what clients of the first half measured beyond it, within "
            f"{_worst(drawn)} and {int(drawn['is_inside'].sum())} of {len(drawn)}. The later steps took "
            f"{percent(self.forecast.level, 1)} of what the fit expects of them."
            + "".join(f" {caution}" for caution in self.cautions)
        )

    @property
    def cautions(self) -> tuple[str, ...]:
        """What the predictions cannot be blamed for, a sentence each."""
        found = []
        if abs(self.forecast.level - 1.0) > STEADY:
            found.append("BEWARE: the server itself changed between the halves, and no interval holds that.")
        if self.forecast.residual_ms > BUSY_CLIENTS * float(
            np.nanmedian(self.record.requests.times_ms["ttft"])
        ):
            found.append(
                "BEWARE: much of what clients measured is not the simulated engine's, but their own, the way "
                "there and back, or what the simulation gets wrong."
            )
        return tuple(found)

    @property
    def sources_text(self) -> str:
        """What the settings and constants are, and where they come from."""
        gaps, record = self.record.gaps_ms, self.record
        median = number(float(np.median(gaps)) if gaps.size else 0.0)
        return (
            f"{record.requests.num_requests:,} requests and {len(record.steps):,} steps; the fit is of "
            f"{int(record.is_first_step.sum()):,} steps before the second half. Scheduler: "
            f"{self.settings.text} (the mean gap between model runs of the first half where a request goes "
            f"on; median {median} ms). A request takes {number(record.ingress_ms)} ms to the scheduler "
            "(median where the server was at rest, first half). Clients measured "
            f"{number(self.forecast.residual_ms)} ms more to the first token than the engine takes that is "
            "simulated with the server's own step times (median, first half)."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        settings = self.settings
        return {
            "num_requests": self.record.requests.num_requests,
            "num_steps": len(self.record.steps),
            "num_fitted_steps": int(self.record.is_first_step.sum()),
            "converged": self.fit.converged,
            "token_budget": settings.token_budget,
            "max_num_seqs": settings.max_num_seqs,
            "kv_tokens": settings.kv_tokens,
            "block_tokens": settings.block_tokens,
            "step_overhead_ms": settings.step_overhead_ms,
            "ingress_ms": self.record.ingress_ms,
            "residual_ms": self.forecast.residual_ms,
            "level": self.forecast.level,
            "num_simulated_steps": self.forecast.num_steps,
            "probability": self.probability,
            "decisions": {"of_queue": self.of_queue.to_dict(), "of_clock": self.of_clock.to_dict()},
            "requests": records(self.table),
            "warnings": list(self.record.warnings),
            "text": self.text,
        }


def _worst(rows: pd.DataFrame) -> str:
    return percent(float(rows["error"].abs().max()), 1)


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
    """Hold the simulator against a real server.

    Parameters
    ----------
    fit : FittedModel
        Of the record's first half, ``record.steps[record.is_first_step]``.
    record : ServerRecord
    settings : SchedulerSettings, optional
        The server's; by default as :meth:`ServerRecord.settings` finds them.
    num_draws : int
    probability : float
        Of intervals.
    seed : int
    progress : callable

    Raises
    ------
    InputError
        A value is out of range, or the fit's model needs more than B and S.
    """
    check_probability(probability, name="probability")
    settings = record.settings() if settings is None else settings
    progress("comparing decisions", None)
    of_queue, of_clock = decisions_of_queue(record, settings), decisions_of_clock(record, settings)
    forecast = forecast_requests(
        fit,
        record,
        settings,
        num_draws=num_draws,
        seed=seed,
        progress=lambda share: progress("simulating requests", share),
    )
    return SimulatorCheck(
        fit=fit,
        record=record,
        settings=settings,
        of_queue=of_queue,
        of_clock=of_clock,
        forecast=forecast,
        probability=probability,
    )
