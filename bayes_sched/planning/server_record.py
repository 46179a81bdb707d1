"""A real server's steps beside what its clients measured, and what a simulated one makes of them.

Steps and requests are brought on one clock. The simulated scheduler is held against the steps with the real
step times, so that only its decisions can differ; and a fit of the first half of the steps forecasts the
times of the second half's requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bayes_sched.arrays import Bools, Floats, Ints
from bayes_sched.errors import InputError
from bayes_sched.planning.replay import (
    BLOCK_TOKENS,
    MAX_NUM_SEQS,
    Replay,
    SchedulerSettings,
    StepTimes,
    replay,
)
from bayes_sched.planning.replay_kernel import Given
from bayes_sched.planning.simulator import KEYS, LEVELS, request_quantiles
from bayes_sched.planning.workload import MeasuredRequests, Workload
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import band_levels

COMPARED = (0.5, 0.95)
"""Quantiles over requests that are compared."""
CORRECTIONS = ("none", "median", "drawn")
"""What is added to the times of the simulated engine: nothing; the median of :attr:`Residuals.first_ms`; the
residuals of a request of the first half, drawn by lot."""
NEEDED = ("timestamp", "num_decode_reqs", "num_waiting_reqs", "num_running_reqs")
"""Columns of the steps, beside B, S and the latency."""
TOLERATED = 0.005
"""Share of the requests' tokens that the steps may hold too many or too few before that is said."""

_FEWEST_ALONE = 5
_NULL_BLOCKS = 1  # of the KV cache, which vLLM keeps for itself
_AFTER_ROUNDING_MS = 1e-3

type Times = Mapping[str, Floats]
type ShowShare = Callable[[float], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class ServerRecord:
    """Steps and requests of the same time; times of steps are in ms since the first arrival, dims (step,)."""

    steps: pd.DataFrame  # those from the first arrival to the last token, with the columns of a trace
    requests: MeasuredRequests
    warnings: tuple[str, ...]  # where steps and requests do not go together
    told: Mapping[str, int] = field(default_factory=dict)
    """What :func:`~bayes_sched.trace.reader.read_scheduler` finds in the trace's side-car."""

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
        """Time from sending a request to the scheduler, ms: median over the first half; 0 if seldom seen."""
        # It shows where a request finds the server at rest, so that its arrival begins a step.
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
        cache has none, as what ran while somebody waited though tokens were left.
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Decisions:
    """The steps of a real scheduler beside the simulated ones."""

    steps: pd.DataFrame
    """One row a real step: ``start_ms`` and ``duration_ms`` (until the next could begin), ``batch_size``,
    ``total_tokens``, and the simulated ``simulated_batch_size``, ``simulated_total_tokens``; 0 where the
    simulated scheduler had nothing to do."""
    num_simulated: int  # steps it took for the same requests

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
    """Return what the simulated scheduler does where requests come when the trace counts one more."""
    num = len(record.steps)
    clock = np.arange(num, dtype=np.float64)
    requests = record.requests
    arrival_s = np.full(requests.num_requests, num / 1000.0)
    workload = Workload(arrival_s, requests.prompt_tokens, requests.output_tokens)
    done = _forced(workload, settings, Given(clock + 1.0, record.present), num_logged=num)
    return _beside(record, done, np.rint(done.steps["start_ms"].to_numpy(float)).astype(np.int64))


def decisions_of_clock(record: ServerRecord, settings: SchedulerSettings) -> Decisions:
    """Return what it does where requests come `ingress_ms` after they were sent and steps end as they did."""
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
    """Replay with the times of steps given, the others 1 ms each."""
    nodes_b, nodes_s = (np.array([1, max(n, 2)]) for n in (settings.max_num_seqs, settings.token_budget))
    ones = np.ones((1, 2, 2))
    times = StepTimes(ones, np.zeros_like(ones), np.zeros(1), nodes_b, nodes_s, 1e9)
    rng = np.random.default_rng(0)  # nothing is drawn: the table has no noise
    table = times.table(0, overhead_ms=0.0)
    return replay(workload, settings, table, rng=rng, given=given, num_logged=num_logged)


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

    measured: Times  # by `KEYS`, dims (level,)
    predicted: Mapping[str, Times]
    """By `CORRECTIONS`, then by time, dims (draw, level). One replay of all requests a draw, those of the
    second half counted."""
    own_steps: Mapping[str, Times]
    """The same of one replay with the server's own step times, dims (level,): what is left is not the fit's
    error."""
    residual_ms: float
    """:attr:`Residuals.typical_ms`."""
    level: float  # time that the second half's steps took, as a share of what the fit expects of them
    num_requests: int  # of the second half
    num_steps: int  # simulated

    def table(self, *, probability: float) -> pd.DataFrame:
        """Return one row a correction, time and level: what was measured, and medians and ends over draws."""
        rows: list[dict[str, float | str | bool]] = []
        for correction, key, level in itertools.product(CORRECTIONS, KEYS, COMPARED):
            at = int(np.argmin(np.abs(LEVELS - level)))
            measured, own = float(self.measured[key][at]), float(self.own_steps[correction][key][at])
            draws = self.predicted[correction][key][:, at]
            lower, middle, upper = map(float, np.quantile(draws, band_levels(probability)))
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

    The fit is of the first half, which is replayed too, so that the second meets a server as busy as it was.
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
    it, whatever the simulation gets wrong though it knows the time of every step.
    """

    first_ms: Floats  # of first tokens, dims (request,)
    last_ms: Floats

    @classmethod
    def of(cls, record: ServerRecord, own: Replay) -> Residuals:
        """Return measured times less those of a replay with the server's own step times."""
        first, measured = ~record.is_second, record.requests.times_ms
        return cls((measured["ttft"] - own.ttft_ms)[first], (measured["e2e"] - own.e2e_ms)[first])

    @property
    def typical_ms(self) -> float:
        """Median over requests of the time to first token that the engine's own step times do not explain."""
        return float(np.median(self.first_ms))

    def corrected(
        self, done: Replay, counted: Bools, rng: np.random.Generator
    ) -> dict[str, dict[str, Floats]]:
        """Return the quantiles of a replay by `CORRECTIONS` and time, dims (level,)."""
        ttft, e2e, tpot = done.ttft_ms[counted], done.e2e_ms[counted], done.tpot_ms[counted]
        lot = rng.integers(0, self.first_ms.size, ttft.size)
        late_first, late_last = self.first_ms[lot], self.last_ms[lot]
        later_tokens = np.maximum(done.output_tokens[counted] - 1, 1)
        constant, single = self.typical_ms, np.isnan(tpot)
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
