"""What a real scheduler put into its steps, and what the simulated one puts into them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.planning.replay import Replay, replay
from bayes_sched.planning.replay_kernel import Given, StepTable
from bayes_sched.planning.scheduler import SchedulerSettings
from bayes_sched.planning.server_record import ServerRecord
from bayes_sched.planning.step_times import StepTimes
from bayes_sched.planning.workload import Workload

type Floats = NDArray[np.float64]

_AFTER_ROUNDING_MS = 1e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class Decisions:
    """The steps of a real scheduler beside the simulated ones.

    Attributes
    ----------
    steps : DataFrame
        One row a real step: ``start_ms`` and ``duration_ms`` (until the next could begin), ``batch_size``,
        ``total_tokens``, and the simulated ``simulated_batch_size``, ``simulated_total_tokens``; 0 where the
        simulated scheduler had nothing to do.
    num_simulated : int
        Steps it took for the same requests.
    """

    steps: pd.DataFrame
    num_simulated: int

    @property
    def batch_size_difference(self) -> Floats:
        """Simulated less real requests, dims (step,)."""
        return self._difference("batch_size")

    @property
    def total_tokens_difference(self) -> Floats:
        """Simulated less real tokens, dims (step,)."""
        return self._difference("total_tokens")

    def _difference(self, name: str) -> Floats:
        values: Floats = (self.steps[f"simulated_{name}"] - self.steps[name]).to_numpy(float)
        return values

    @property
    def share_equal(self) -> float:
        """Share of the steps with the same requests and tokens."""
        return float(((self.batch_size_difference == 0) & (self.total_tokens_difference == 0)).mean())

    def to_dict(self) -> dict[str, float]:
        """Return plain values: shares over steps, differences of B also over time."""
        b, s = self.batch_size_difference, self.total_tokens_difference
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


def _beside(record: ServerRecord, done: Replay, number: NDArray[np.int64]) -> Decisions:
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
