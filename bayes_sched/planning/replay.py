"""One replay: a workload through a scheduler whose step times follow one posterior draw."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Floats, Ints
from bayes_sched.checks.local import LocalCheck
from bayes_sched.errors import InputError
from bayes_sched.planning.replay_kernel import (
    LOG_COLUMNS,
    Arrivals,
    Given,
    State,
    StepLimits,
    StepTable,
    replay_steps,
)
from bayes_sched.planning.workload import Workload
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sla.risk import noise_draws
from bayes_sched.steps import POSSIBLE

BLOCK_TOKENS = 16
"""Tokens of a block of the KV cache, as vLLM divides it unless told otherwise."""
MAX_NUM_SEQS = 256
"""Requests that run at once at most, where nothing says otherwise."""
UNLIMITED_BLOCKS = 2**50


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """What a scheduler with chunked prefill, may put into a step; InputError for a number out of range."""

    token_budget: int
    """Most tokens of a step (``max_num_batched_tokens``)."""
    max_num_seqs: int = MAX_NUM_SEQS
    """Most requests running at once."""
    kv_tokens: int | None = None
    """Tokens that the KV cache holds, counted in whole blocks; None: no limit. A running request that finds
    no room preempts the newest running one, whose tokens are then computed anew."""
    block_tokens: int = BLOCK_TOKENS
    """Tokens of a block."""
    step_overhead_ms: float = 0.0
    """Time between the model runs of two steps, ms: scheduling, where that is not done meanwhile."""

    def __post_init__(self) -> None:
        for name in ("token_budget", "max_num_seqs", "block_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: give at least 1")
        if self.kv_tokens is not None and self.kv_tokens < self.block_tokens:
            raise InputError(
                f"kv_tokens = {self.kv_tokens}: the cache is divided into blocks of {self.block_tokens} "
                "tokens, give at least one"
            )
        if not 0.0 <= self.step_overhead_ms < 1e6:
            raise InputError(f"step_overhead_ms = {self.step_overhead_ms:g}: give milliseconds, 0 or more")

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""
        return UNLIMITED_BLOCKS if self.kv_tokens is None else self.kv_tokens // self.block_tokens

    @property
    def text(self) -> str:
        """A phrase a person can paste."""
        cache = (
            "no limit on the KV cache" if self.kv_tokens is None else f"{self.kv_tokens:,} tokens of KV cache"
        )
        overhead = f", {self.step_overhead_ms:g} ms between steps" if self.step_overhead_ms else ""
        return (
            f"token budget {self.token_budget:,}, at most {self.max_num_seqs:,} sequences, {cache}{overhead}"
        )


_EXACT, _RATIO = 32, 1.03  # every number up to there is a node, and others so far apart


@dataclass(frozen=True, eq=False)
class StepTimes:
    """Location and scale of the step times of some draws, ms, dims (draw, node_b, node_s).

    Between the nodes both are linear, within a thousandth of the saturation equation's own answer.
    """

    mean_ms: Floats
    scale_ms: Floats
    nu: Floats  # degrees of freedom of the noise, dims (draw,); 0: no noise
    nodes_b: Ints
    nodes_s: Ints
    longest_ms: float
    """A step lasts at most this (or three times its mean): the longest latency that the fit's trace was
    cleaned to. Beyond it the noise's tail has seen no data."""

    @classmethod
    def of(cls, fit: FittedModel, *, max_batch_size: int, max_tokens: int, max_draws: int) -> StepTimes:
        """Tabulate a fit; one whose model needs more of a step than B and S is refused."""
        nodes_b, nodes_s = (whole_numbers(max(n, 2), _EXACT, _RATIO) for n in (max_batch_size, max_tokens))
        b, s = (axis.ravel() for axis in np.meshgrid(nodes_b, nodes_s, indexing="ij"))
        # Corners of cells may have fewer tokens than requests: the equation holds there too.
        columns = {"batch_size": b.astype(float), "total_tokens": s.astype(float), POSSIBLE: b > 0}
        steps = xr.Dataset({name: ("step", values) for name, values in columns.items()})
        mean, scale, nu = noise_draws(fit, steps, max_draws=max_draws)
        shape = -1, len(nodes_b), len(nodes_s)
        return cls(
            mean_ms=mean.reshape(shape),
            scale_ms=scale.reshape(shape),
            nu=nu,
            nodes_b=nodes_b,
            nodes_s=nodes_s,
            longest_ms=float(fit.metadata.cleaning.max_latency_ms),
        )

    @property
    def num_draws(self) -> int:
        """How many draws there are."""
        return len(self.nu)

    def corrected(self, local: LocalCheck) -> StepTimes:
        """Return the times with the trace's own medians where it contradicts the fit."""
        b, s = np.meshgrid(self.nodes_b, self.nodes_s, indexing="ij")
        factors = local.factors(b, np.maximum(b, s))
        return replace(self, mean_ms=self.mean_ms * factors, scale_ms=self.scale_ms * factors)

    def table(self, draw: int, *, overhead_ms: float) -> StepTable:
        """Return the step times of one draw as a replay reads them."""
        places = (*_places(self.nodes_b), *_places(self.nodes_s))
        nu = float(self.nu[draw])
        return StepTable(self.mean_ms[draw], self.scale_ms[draw], *places, nu, self.longest_ms, overhead_ms)


def whole_numbers(last: int, exact: int, ratio: float) -> Ints:
    """Return every number from 1 to `exact`, and further ones to `last` that lie a factor `ratio` apart."""
    first = np.arange(1, min(exact, last) + 1)
    if last <= exact:
        return first
    num = int(np.ceil(np.log(last / exact) / np.log(ratio))) + 1
    return np.union1d(first, np.rint(np.geomspace(exact, last, num)).astype(np.int64))


def _places(nodes: Ints) -> tuple[Ints, Floats]:
    """Return the node below each number, and the share of the way to the next, dims (number,)."""
    numbers = np.arange(nodes[-1] + 1)
    left = np.clip(np.searchsorted(nodes, numbers, side="right") - 1, 0, len(nodes) - 2)
    return left, np.clip((numbers - nodes[left]) / np.diff(nodes)[left], 0.0, 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Replay:
    """What became of each request, dims (request,), in ms since the first arrival."""

    arrival_ms: Floats
    start_ms: Floats  # when it was first scheduled
    first_token_ms: Floats
    finish_ms: Floats
    output_tokens: Ints
    preemptions: Ints  # how often it lost its place in the KV cache
    num_steps: int
    busy_ms: float  # time during which a step was running
    steps: pd.DataFrame  # the first steps, as many as were to be logged: `LOG_COLUMNS`

    @property
    def ttft_ms(self) -> Floats:
        """Time to first token."""
        return self.first_token_ms - self.arrival_ms

    @property
    def e2e_ms(self) -> Floats:
        """End-to-end time."""
        return self.finish_ms - self.arrival_ms

    @property
    def tpot_ms(self) -> Floats:
        """Mean time per output token after the first; NaN for requests of one token."""
        later = np.where(self.output_tokens > 1, self.output_tokens - 1.0, np.nan)
        tpot: Floats = (self.finish_ms - self.first_token_ms) / later
        return tpot


NOTHING_GIVEN = Given(np.empty(0), np.empty(0, dtype=np.int64))


def replay(
    workload: Workload,
    settings: SchedulerSettings,
    table: StepTable,
    *,
    rng: np.random.Generator,
    given: Given = NOTHING_GIVEN,
    time_at: Floats | None = None,
    num_logged: int = 0,
) -> Replay:
    """Run a workload through the scheduler until every request is served, and log the first steps.

    The table reaches to the settings' token budget and number of sequences. `given` is what is taken from a
    trace; to `time_at`, dims (node_b, node_s), the time of the steps is added by the nodes of the table.
    """
    _check_fits(workload, settings)
    state = State.empty(workload.num_requests, settings.max_num_seqs)
    arrival_ms = 1000.0 * workload.arrival_s
    log = np.full((num_logged, len(LOG_COLUMNS)), np.nan)
    num_steps, busy_ms = replay_steps(
        Arrivals(arrival_ms, workload.prompt_tokens, workload.output_tokens),
        StepLimits(settings.token_budget, settings.max_num_seqs, settings.num_blocks, settings.block_tokens),
        table,
        given,
        state,
        rng,
        np.zeros(table.mean.shape) if time_at is None else time_at,
        log,
    )
    return Replay(
        arrival_ms=arrival_ms,
        start_ms=state.start_ms,
        first_token_ms=state.first_ms,
        finish_ms=state.finish_ms,
        output_tokens=workload.output_tokens,
        preemptions=state.preemptions,
        num_steps=int(num_steps),
        busy_ms=float(busy_ms),
        steps=pd.DataFrame(log[: int(num_steps)], columns=list(LOG_COLUMNS)),
    )


def _check_fits(workload: Workload, settings: SchedulerSettings) -> None:
    if settings.kv_tokens is None:
        return
    tokens = workload.prompt_tokens + workload.output_tokens
    too_large = -(-tokens // settings.block_tokens) > settings.num_blocks
    if too_large.any():
        raise InputError(
            f"kv_tokens = {settings.kv_tokens:,}: {int(too_large.sum()):,} of {workload.num_requests:,} "
            "requests do not fit into the KV cache on their own (the largest has "
            f"{int(tokens.max()):,} tokens): give a larger cache or leave them out"
        )
