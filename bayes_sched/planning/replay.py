"""One replay: a workload through a scheduler whose step times follow one posterior draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Floats, Ints
from bayes_sched.errors import InputError
from bayes_sched.planning.replay_kernel import (
    LOG_COLUMNS,
    Arrivals,
    Given,
    Limits,
    State,
    StepTable,
    replay_steps,
)
from bayes_sched.planning.workload import Workload
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import Evaluator, PerDraw
from bayes_sched.sla.risk import check_columns
from bayes_sched.steps import POSSIBLE

BLOCK_TOKENS = 16
"""Tokens of a block of the KV cache, as vLLM divides it unless told otherwise."""
MAX_NUM_SEQS = 256
"""Requests that run at once at most, where nothing says otherwise."""
UNLIMITED_BLOCKS = 2**50


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """What a scheduler with chunked prefill, such as vLLM's, may put into a step.

    Attributes
    ----------
    token_budget : int
        Most tokens of a step (``max_num_batched_tokens``).
    max_num_seqs : int
        Most requests running at once.
    kv_tokens : int or None
        Tokens that the KV cache holds, counted in whole blocks; None: no limit. A running request that finds
        no room preempts the newest running one, whose tokens are then computed anew.
    block_tokens : int
        Tokens of a block.
    step_overhead_ms : float
        Time between the model runs of two steps, ms: scheduling, where that is not done meanwhile.

    Raises
    ------
    InputError
        A number is out of range.
    """

    token_budget: int
    max_num_seqs: int = MAX_NUM_SEQS
    kv_tokens: int | None = None
    block_tokens: int = BLOCK_TOKENS
    step_overhead_ms: float = 0.0

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


_EXACT = 32
_RATIO = 1.03


@dataclass(frozen=True, eq=False)
class StepTimes:
    """Location and scale of the step times of some draws, at nodes of B and S.

    Nodes are every number up to 32 and 3 % apart from there; between them both are linear, which is within a
    thousandth of the model's own answer for the saturation equation.

    Attributes
    ----------
    mean_ms, scale_ms : ndarray, dims (draw, node_b, node_s)
    nu : ndarray, dims (draw,)
        Degrees of freedom of the noise; 0: no noise.
    nodes_b, nodes_s : ndarray, dims (node,)
        Requests and tokens of the nodes.
    longest_ms : float
        A step lasts at most this (or three times its mean): the longest latency that the fit's trace was
        cleaned to. Beyond it the noise's tail has seen no data.
    """

    mean_ms: Floats
    scale_ms: Floats
    nu: Floats
    nodes_b: Ints
    nodes_s: Ints
    longest_ms: float

    @classmethod
    def of(cls, fit: FittedModel, *, max_batch_size: int, max_tokens: int, max_draws: int) -> StepTimes:
        """Tabulate a fit.

        Raises
        ------
        InputError
            The fit's model needs more of a step than B and S.
        """
        check_columns(fit)
        evaluator = Evaluator(fit.model, fit.posterior, max_draws=max_draws)
        nodes_b, nodes_s = _nodes(max_batch_size), _nodes(max_tokens)
        b, s = (axis.ravel() for axis in np.meshgrid(nodes_b, nodes_s, indexing="ij"))
        steps = xr.Dataset(
            {
                "batch_size": ("step", b.astype(np.float64)),
                "total_tokens": ("step", s.astype(np.float64)),
                # Corners of cells may have fewer tokens than requests: the equation holds there too.
                POSSIBLE: ("step", np.ones(b.size, dtype=bool)),
            }
        )

        def tabulated(function: PerDraw) -> Floats:
            values = evaluator.per_draw(steps, function).transpose("chain", "draw", "step")
            return np.ascontiguousarray(values, dtype=np.float64).reshape(-1, len(nodes_b), len(nodes_s))

        nu = tabulated(lambda mean, scale, nu, x: nu + 0.0 * mean)[:, 0, 0]
        cleaning = fit.metadata.cleaning
        return cls(
            tabulated(lambda mean, scale, nu, x: mean),
            tabulated(lambda mean, scale, nu, x: scale),
            np.ascontiguousarray(nu),
            nodes_b,
            nodes_s,
            float(cleaning.max_latency_ms),
        )

    @property
    def num_draws(self) -> int:
        """How many draws there are."""
        return len(self.nu)

    @property
    def max_batch_size(self) -> int:
        """Most requests of a step."""
        return int(self.nodes_b[-1])

    @property
    def max_tokens(self) -> int:
        """Most tokens of a step."""
        return int(self.nodes_s[-1])

    def table(self, draw: int, *, overhead_ms: float) -> StepTable:
        """Return the step times of one draw as a replay reads them."""
        (left_b, share_b), (left_s, share_s) = _places(self.nodes_b), _places(self.nodes_s)
        return StepTable(
            self.mean_ms[draw],
            self.scale_ms[draw],
            left_b,
            share_b,
            left_s,
            share_s,
            float(self.nu[draw]),
            self.longest_ms,
            overhead_ms,
        )


def _nodes(last: int) -> Ints:
    """Return the nodes from 1 to at least `last`, two of them at least."""
    last = max(last, 2)
    exact = np.arange(1, min(_EXACT, last) + 1)
    if last <= _EXACT:
        return exact
    num = int(np.ceil(np.log(last / _EXACT) / np.log(_RATIO))) + 1
    return np.unique(np.concatenate([exact, np.rint(np.geomspace(_EXACT, last, num)).astype(np.int64)]))


def _places(nodes: Ints) -> tuple[Ints, Floats]:
    """Return the node below each number, and the share of the way to the next, dims (number,)."""
    numbers = np.arange(nodes[-1] + 1)
    left = np.clip(np.searchsorted(nodes, numbers, side="right") - 1, 0, len(nodes) - 2)
    return left, np.clip((numbers - nodes[left]) / np.diff(nodes)[left], 0.0, 1.0)


NOTHING_GIVEN = Given(np.empty(0), np.empty(0, dtype=np.int64))


@dataclass(frozen=True, eq=False, kw_only=True)
class Replay:
    """What became of each request, dims (request,), in ms since the first arrival.

    Attributes
    ----------
    arrival_ms, start_ms, first_token_ms, finish_ms : ndarray
        When it came, was first scheduled, had its first token, and its last.
    output_tokens : ndarray
    preemptions : ndarray
        How often it lost its place in the KV cache.
    num_steps : int
    busy_ms : float
        Time during which a step was running.
    steps : DataFrame
        The first steps, as many as were to be logged; columns as in
        :data:`~bayes_sched.planning.replay_kernel.LOG_COLUMNS`.
    """

    arrival_ms: Floats
    start_ms: Floats
    first_token_ms: Floats
    finish_ms: Floats
    output_tokens: Ints
    preemptions: Ints
    num_steps: int
    busy_ms: float
    steps: pd.DataFrame

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


def replay(
    workload: Workload,
    settings: SchedulerSettings,
    table: StepTable,
    *,
    rng: np.random.Generator,
    given: Given | None = None,
    time_at: Floats | None = None,
    num_logged: int = 0,
) -> Replay:
    """Run a workload through the scheduler until every request is served.

    Parameters
    ----------
    workload : Workload
    settings : SchedulerSettings
    table : StepTable
        Reaches to the settings' token budget and number of sequences.
    rng : Generator
    given : Given, optional
        What is taken from a trace: when steps end, or who is there.
    time_at : ndarray, optional, dims (node_b, node_s)
        The time of the steps is added to it, by the nodes of the table.
    num_logged : int
        Steps to log.

    Raises
    ------
    InputError
        A request does not fit into the KV cache.
    """
    check_fits(workload, settings)
    arrival_ms = 1000.0 * workload.arrival_s
    state = _empty_state(workload.num_requests, places=settings.max_num_seqs)
    log = np.full((num_logged, len(LOG_COLUMNS)), np.nan)
    num_steps, busy_ms = replay_steps(
        Arrivals(arrival_ms, workload.prompt_tokens, workload.output_tokens),
        Limits(settings.token_budget, settings.max_num_seqs, settings.num_blocks, settings.block_tokens),
        table,
        NOTHING_GIVEN if given is None else given,
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


def _empty_state(num: int, *, places: int) -> State:
    def counts(size: int) -> Ints:
        return np.zeros(size, dtype=np.int64)

    def times() -> Floats:
        return np.full(num, np.nan)

    return State(
        computed=counts(num),
        generated=counts(num),
        blocks=counts(num),
        start_ms=times(),
        first_ms=times(),
        finish_ms=times(),
        preemptions=counts(num),
        running=counts(places),
        chunk=counts(places),
        preempted=counts(places),
    )


def check_fits(workload: Workload, settings: SchedulerSettings) -> None:
    """Check that each request fits into the KV cache on its own.

    Raises
    ------
    InputError
        One does not.
    """
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
