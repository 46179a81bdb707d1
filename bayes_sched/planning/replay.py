"""One replay: a workload through a scheduler whose step times follow one posterior draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
from bayes_sched.planning.scheduler import SchedulerSettings
from bayes_sched.planning.workload import Workload

type Floats = NDArray[np.float64]
type Ints = NDArray[np.int64]

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
