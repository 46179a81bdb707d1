"""A real server's steps beside what its clients measured, on one clock and cut in two halves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from bayes_sched.arrays import Bools, Floats, Ints
from bayes_sched.errors import InputError
from bayes_sched.planning.replay import BLOCK_TOKENS, MAX_NUM_SEQS, SchedulerSettings
from bayes_sched.planning.simulator import KEYS
from bayes_sched.planning.workload import FIELDS, Workload, request_records, request_value

MEASURED = tuple(f"{key}_ms" for key in KEYS)
"""Fields of a measured request beside those of any request."""
LEAST = 20
"""Fewer requests have no quantiles worth a comparison."""
NEEDED = ("timestamp", "num_decode_reqs", "num_waiting_reqs", "num_running_reqs")
"""Columns of the steps, beside B, S and the latency."""
TOLERATED = 0.005
"""Share of the requests' tokens that the steps may hold too many or too few before that is said."""

_FEWEST_ALONE = 5
_NULL_BLOCKS = 1  # of the KV cache, which vLLM keeps for itself


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredRequests:
    """Requests with the times that their clients measured, dims (request,), in the order of their arrival."""

    arrival_s: Floats
    """When they were sent, on the clock of the server's trace."""
    prompt_tokens: Ints
    output_tokens: Ints
    times_ms: Mapping[str, Floats]
    """By `KEYS`; NaN where a request has no such time."""

    @property
    def num_requests(self) -> int:
        """How many requests there are."""
        return self.arrival_s.size

    @property
    def finish_s(self) -> Floats:
        """When the last token came, s, dims (request,)."""
        return self.arrival_s + self.times_ms["e2e"] / 1000.0

    @property
    def num_computed(self) -> int:
        """Tokens that a server computes for them, without a prefix cache: the last one is not an input."""
        return int((self.prompt_tokens + self.output_tokens - 1).sum())

    @property
    def workload(self) -> Workload:
        """The requests as a simulator takes them, the first at 0."""
        return Workload.of(self.arrival_s, self.prompt_tokens, self.output_tokens)


def read_measured_requests(path: str | os.PathLike[str]) -> MeasuredRequests:
    """Read requests that were measured: ``arrival_s``, the tokens, ``ttft_ms``, ``tpot_ms``, ``e2e_ms``.

    The time per output token may be missing of requests of one token. Other fields are ignored; what cannot
    be read is refused with file and line.
    """
    path = Path(path)
    rows = []
    for place, record in request_records(path, fields=(*FIELDS, *MEASURED)):
        values = {name: request_value(record, name, place) for name in (*FIELDS, "ttft_ms", "e2e_ms")}
        is_single = values["output_tokens"] == 1
        values["tpot_ms"] = np.nan if is_single else request_value(record, "tpot_ms", place)
        if values["e2e_ms"] < values["ttft_ms"]:
            raise InputError(f"{place}: e2e_ms is below ttft_ms: the last token comes before the first")
        rows.append([values[name] for name in (*FIELDS, *MEASURED)])
    if len(rows) < LEAST:
        raise InputError(f"{path}: {len(rows):,} requests are too few: give at least {LEAST}")
    table = np.array(rows, dtype=np.float64)
    arrival, prompt, output, *times = table[np.argsort(table[:, 0], kind="stable")].T
    return MeasuredRequests(
        arrival_s=arrival,
        prompt_tokens=prompt.astype(np.int64),
        output_tokens=output.astype(np.int64),
        times_ms=dict(zip(KEYS, times, strict=True)),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class ServerRecord:
    """Steps and requests of the same time; times of steps are in ms since the first arrival, dims (step,)."""

    steps: pd.DataFrame
    """Those from the first arrival to the last token, with the columns of a trace."""
    requests: MeasuredRequests
    warnings: tuple[str, ...]
    """Where steps and requests do not go together."""
    told: Mapping[str, int] = field(default_factory=dict)
    """What :func:`~bayes_sched.trace.sidecar.read_scheduler` finds in the trace's side-car."""

    @classmethod
    def of(
        cls, steps: pd.DataFrame, requests: MeasuredRequests, *, told: Mapping[str, int] | None = None
    ) -> ServerRecord:
        """Bring steps and requests together; refuse those of different times, or steps without a clock."""
        missing = [name for name in NEEDED if name not in steps or steps[name].isna().any()]
        if missing:
            raise InputError(
                f"the trace's steps lack {', '.join(missing)}, by which they are held against requests"
            )
        work = steps[steps["total_tokens"] > 0].sort_values("timestamp", kind="stable")
        start, end = float(requests.arrival_s[0]), float(requests.finish_s.max())
        first, last = (float(work["timestamp"].iloc[i]) if len(work) else np.nan for i in (0, -1))
        if not (first <= end and last >= start):
            raise InputError(
                f"the requests came from {start:.3f} to {end:.3f} s and the steps ran from {first:.3f} to "
                f"{last:.3f} s: they do not overlap; both need one clock (arrival_s as Unix time)"
            )
        work = work[work["timestamp"].between(start, end)].reset_index(drop=True)
        return cls(steps=work, requests=requests, warnings=_mismatch(work, requests), told=told or {})

    @property
    def num_first(self) -> int:
        """Requests of the first half."""
        return self.requests.num_requests // 2

    @property
    def split_s(self) -> float:
        """When the second half begins, s: at the arrival of its first request."""
        return float(self.requests.arrival_s[self.num_first])

    @property
    def is_second(self) -> Bools:
        """Whether a request is of the second half, dims (request,)."""
        return np.arange(self.requests.num_requests) >= self.num_first

    @property
    def start_ms(self) -> Floats:
        """When each step was begun to be scheduled."""
        at: Floats = 1000.0 * (self._column("timestamp") - self.requests.arrival_s[0])
        return at

    @property
    def done_ms(self) -> Floats:
        """When each step's tokens were there."""
        whole = self._column("latency_ms")
        if "schedule_ms" in self.steps:
            whole = whole + np.nan_to_num(self._column("schedule_ms"))
        if "step_ms" in self.steps:
            told = self._column("step_ms")
            whole = np.where(np.isnan(told), whole, told)
        return self.start_ms + whole

    @property
    def is_first_step(self) -> Bools:
        """Whether a step was over when the second half began."""
        return np.asarray(self.done_ms <= 1000.0 * (self.split_s - self.requests.arrival_s[0]))

    @property
    def goes_on(self) -> Bools:
        """Whether a step carries on a request of the one before: the server was busy between the two."""
        has_context = self._column("context_tokens") > 0 if "context_tokens" in self.steps else False
        return (self._column("num_decode_reqs") > 0) | has_context

    @property
    def gaps_ms(self) -> Floats:
        """Time between the model runs of two steps in the first half, where the server was busy."""
        gaps: Floats = np.diff(self.start_ms) - self._column("latency_ms")[:-1]
        return gaps[self.goes_on[1:] & self.is_first_step[1:]]

    @property
    def step_overhead_ms(self) -> float:
        """Mean of `gaps_ms`; 0 where there are none."""
        return max(float(self.gaps_ms.mean()), 0.0) if self.gaps_ms.size else 0.0

    @property
    def ends_ms(self) -> Floats:
        """When the next step could begin."""
        start = self.start_ms
        ends = self.done_ms + self.step_overhead_ms
        ends[:-1] = np.where(self.goes_on[1:], start[1:], np.minimum(ends[:-1], start[1:]))
        return np.maximum.accumulate(ends)

    @property
    def present(self) -> Ints:
        """Requests that wait or run in each step."""
        there: Ints = (self.steps["num_waiting_reqs"] + self.steps["num_running_reqs"]).to_numpy(np.int64)
        return there

    @property
    def ingress_ms(self) -> float:
        """Time from sending a request to the scheduler, ms: median over the first half.

        It shows where a request finds the server at rest, and its arrival begins a step. 0 where that was
        seen fewer than five times.
        """
        is_single = (self.steps["batch_size"] == 1).to_numpy()
        begins = np.flatnonzero(~self.goes_on & self.is_first_step & is_single)
        arrival_ms = 1000.0 * (self.requests.arrival_s - self.requests.arrival_s[0])
        latest = np.searchsorted(arrival_ms, self.start_ms[begins], side="right") - 1
        before_ms = np.concatenate([[-np.inf], self.done_ms])[begins]
        was_at_rest = (latest >= 0) & (arrival_ms[latest] > before_ms)
        took = (self.start_ms[begins] - arrival_ms[latest])[was_at_rest]
        return float(np.median(took)) if took.size >= _FEWEST_ALONE else 0.0

    def settings(
        self,
        *,
        token_budget: int | None = None,
        max_num_seqs: int | None = None,
        kv_tokens: int | None = None,
        block_tokens: int | None = None,
    ) -> SchedulerSettings:
        """Return the scheduler's settings: as given, else as the side-car tells, else as the trace shows.

        A trace shows the token budget as the most tokens of a step, and the limit on sequences, where the KV
        cache has none, as what ran while somebody waited though tokens were left. What it does not show is
        `MAX_NUM_SEQS`, no limit on the KV cache, and `BLOCK_TOKENS`. Of the blocks that a side-car tells,
        vLLM keeps one for itself.
        """
        told = self.told
        tokens = int(self.steps["total_tokens"].max())
        budget = _first(token_budget, told.get("max_num_batched_tokens"), tokens)
        blocks, size = told.get("num_kv_cache_blocks"), told.get("kv_cache_block_size")
        if kv_tokens is None and blocks is not None and size is not None:
            kv_tokens = (blocks - _NULL_BLOCKS) * size
        shown = self._most_held_back(budget) if kv_tokens is None else MAX_NUM_SEQS
        return SchedulerSettings(
            token_budget=budget,
            max_num_seqs=_first(max_num_seqs, told.get("max_num_seqs"), shown),
            kv_tokens=kv_tokens,
            block_tokens=_first(block_tokens, size, BLOCK_TOKENS),
            step_overhead_ms=self.step_overhead_ms,
        )

    def _most_held_back(self, budget: int) -> int:
        """Return how many ran while somebody waited though tokens were left; if nobody did, the default."""
        steps = self.steps
        held_back = (steps["num_waiting_reqs"] > 0) & (steps["total_tokens"] < budget)
        return int(steps["num_running_reqs"][held_back].max()) if held_back.any() else MAX_NUM_SEQS

    def _column(self, name: str) -> Floats:
        return self.steps[name].to_numpy(np.float64)


def _first(*values: int | None) -> int:
    """Return the first that is not None."""
    return next(value for value in values if value is not None)


def _mismatch(steps: pd.DataFrame, requests: MeasuredRequests) -> tuple[str, ...]:
    held, brought = int(steps["total_tokens"].sum()), requests.num_computed
    if abs(held - brought) <= TOLERATED * brought:
        return ()
    return (
        f"the steps in the time of the requests hold {held:,} tokens, and the requests bring {brought:,}: "
        "there were other requests, a prefix cache, preemptions, or steps are missing",
    )
