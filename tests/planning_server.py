"""Servers whose step times are known, for tests of the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bayes_sched.planning.replay import Replay, SchedulerSettings, StepTimes, replay
from bayes_sched.planning.workload import Workload


def exact_times(latency_ms: Callable[[Any, Any], Any], *, requests: int, tokens: int) -> StepTimes:
    """Step times without noise, the same for one draw: `latency_ms` of B and S at every number."""
    b, s = np.arange(1, max(requests, 2) + 1), np.arange(1, max(tokens, 2) + 1)
    mean = np.broadcast_to(latency_ms(b[:, None], s[None, :]), (len(b), len(s))).astype(float)
    return StepTimes(mean[None].copy(), np.zeros((1, *mean.shape)), np.zeros(1), b, s, 1e9)


def workload(arrival_ms: Any, prompt: Any, output: Any) -> Workload:
    """Requests, arrivals in ms."""
    return Workload(
        np.asarray(arrival_ms, float) / 1000.0, np.asarray(prompt, np.int64), np.asarray(output, np.int64)
    )


def replayed(
    requests: Workload,
    latency_ms: Callable[[Any, Any], Any] = lambda b, s: 10.0 + s,
    *,
    num_logged: int = 2000,
    **settings: Any,
) -> Replay:
    """A replay with exact step times."""
    made = SchedulerSettings(**{"token_budget": 10, "max_num_seqs": 4, **settings})
    times = exact_times(latency_ms, requests=made.max_num_seqs, tokens=made.token_budget)
    table = times.table(0, overhead_ms=made.step_overhead_ms)
    return replay(requests, made, table, rng=np.random.default_rng(0), num_logged=num_logged)
