"""The inner loop of a replay, compiled: a continuous-batching scheduler with chunked prefill, as in vLLM V1.

A request needs ``prompt + generated - computed`` tokens of work: the rest of its prompt while that is
prefilled, one token while it decodes, and all of it again after it was preempted. A step gives running
requests their tokens in the order of their admission, then admits waiting ones in the order of their arrival,
as far as the token budget, the number of sequences and the blocks of the KV cache go: one is admitted where
the cache has room for all of its tokens so far, though it takes the blocks of its first chunk alone (vLLM's
``scheduler_reserve_full_isl``, its default). Where a running request finds no block, the newest running one
loses all of its blocks and waits in front of all others (in vLLM, too, its tokens are computed anew), and
that step admits nobody.

Waiting requests are always newer than running ones, so that a stack of the preempted and a pointer into the
arrivals are the whole queue.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from bayes_sched.arrays import Floats, Ints

LOG_COLUMNS = (
    *("start_ms", "duration_ms", "batch_size", "total_tokens", "context_tokens", "prefill_pairs"),
    *("num_prefill_reqs", "num_waiting_reqs", "num_running_reqs", "kv_blocks"),
)
"""What is logged of a step; of the queue and the cache, the state while it runs."""


class Arrivals(NamedTuple):
    """The requests in the order of their arrival, dims (request,)."""

    arrival_ms: Floats
    prompt: Ints
    output: Ints


class StepLimits(NamedTuple):
    """What a step may hold."""

    token_budget: int
    max_num_seqs: int
    num_blocks: int
    block_tokens: int


class StepTable(NamedTuple):
    """Step times of one draw: mean and scale (ms) at nodes, and where each B and S lies between them."""

    mean: Floats
    scale: Floats
    left_b: Ints
    share_b: Floats
    left_s: Ints
    share_s: Floats
    nu: float
    longest_ms: float
    overhead_ms: float


class Given(NamedTuple):
    """What a replay takes from a trace instead of computing it, dims (step,); empty: nothing."""

    ends_ms: Floats  # rising: every step ends at the next of these times
    present: Ints  # requests that wait or run; they come when this says, not at their times of arrival


class State(NamedTuple):
    """What is known of each request, dims (request,), and the running and preempted ones, dims (place,)."""

    computed: Ints
    generated: Ints
    blocks: Ints
    start_ms: Floats
    first_ms: Floats
    finish_ms: Floats
    preemptions: Ints
    running: Ints
    chunk: Ints
    preempted: Ints

    @classmethod
    def empty(cls, num_requests: int, num_places: int) -> State:
        """Return what is known before the first step."""
        computed, generated, blocks, preemptions = np.zeros((4, num_requests), dtype=np.int64)
        start, first, finish = np.full((3, num_requests), np.nan)
        running, chunk, preempted = np.zeros((3, num_places), dtype=np.int64)
        requests = computed, generated, blocks, start, first, finish, preemptions
        return cls(*requests, running, chunk, preempted)


@njit(cache=True, nogil=True)
def replay_steps(
    arrivals: Arrivals,
    limits: StepLimits,
    table: StepTable,
    given: Given,
    state: State,
    rng: np.random.Generator,
    time_at: Floats,
    log: Floats,
) -> tuple[int, float]:
    """Run all requests through the scheduler; return the number of steps, and the time they took, ms.

    Every request has to fit into the blocks on its own. Filled in are `state`, which comes empty; `time_at`,
    dims (node_b, node_s), to which the time of each step is added at the node below it; and `log`, dims
    (step, column), with the first steps.
    """
    num_requests = arrivals.arrival_ms.size
    running = preempted = admitted = arrived = finished = steps = upcoming = 0
    free = limits.num_blocks
    now, busy_ms = 0.0, 0.0
    while finished < num_requests:
        while arrived < num_requests and arrivals.arrival_ms[arrived] <= now:
            arrived += 1
        if steps < given.present.size:
            arrived = max(arrived, min(num_requests, finished + given.present[steps]))
        if running + preempted == 0 and admitted == arrived:
            now = arrivals.arrival_ms[arrived]
            continue
        scheduled, left, running, preempted, free, has_preempted = _run_running(
            arrivals, limits, state, running, preempted, free
        )
        if not has_preempted:
            scheduled, running, preempted, admitted, free = _admit(
                arrivals, limits, state, scheduled, left, running, preempted, admitted, arrived, free, now
            )
        if scheduled == 0:  # a request that cannot fit: excluded by the caller
            break
        tokens, context, pairs, prefills = _columns(arrivals, state, scheduled)
        while upcoming < given.ends_ms.size and given.ends_ms[upcoming] <= now + 1e-6:  # but for rounding
            upcoming += 1
        if upcoming < given.ends_ms.size:
            duration = given.ends_ms[upcoming] - now
        else:
            duration = _duration(table, scheduled, tokens, rng)
        time_at[table.left_b[scheduled], table.left_s[tokens]] += duration
        if steps < log.shape[0]:
            row = log[steps]
            row[0], row[1], row[2], row[3], row[4] = now, duration, scheduled, tokens, context
            row[5], row[6], row[7], row[8] = pairs, prefills, arrived - admitted + preempted, running
            row[9] = limits.num_blocks - free
        now += duration
        busy_ms += duration
        steps += 1
        ended, running, free = _end_step(arrivals, state, scheduled, running, free, now)
        finished += ended
    return steps, busy_ms


@njit(cache=True, nogil=True)
def _run_running(
    arrivals: Arrivals, limits: StepLimits, state: State, running: int, preempted: int, free: int
) -> tuple[int, int, int, int, int, bool]:
    """Give running requests their tokens, the oldest first."""
    left, place, has_preempted = limits.token_budget, 0, False
    while place < running and left > 0:
        r = state.running[place]
        tokens = min(arrivals.prompt[r] + state.generated[r] - state.computed[r], left)
        need = -((state.computed[r] + tokens) // -limits.block_tokens) - state.blocks[r]
        while need > free and running > place:
            running -= 1
            newest = state.running[running]
            free += state.blocks[newest]
            state.blocks[newest] = 0
            state.computed[newest] = 0
            state.preemptions[newest] += 1
            state.preempted[preempted] = newest
            preempted += 1
            has_preempted = True
        if running <= place:
            break
        free -= need
        state.blocks[r] += need
        state.chunk[place] = tokens
        left -= tokens
        place += 1
    return place, left, running, preempted, free, has_preempted


@njit(cache=True, nogil=True)
def _admit(
    arrivals: Arrivals,
    limits: StepLimits,
    state: State,
    scheduled: int,
    left: int,
    running: int,
    preempted: int,
    admitted: int,
    arrived: int,
    free: int,
    now: float,
) -> tuple[int, int, int, int, int]:
    """Admit waiting requests, the oldest first, with as much of their work as fits."""
    while left > 0 and running < limits.max_num_seqs and preempted + arrived > admitted:
        r = state.preempted[preempted - 1] if preempted > 0 else admitted
        whole = arrivals.prompt[r] + state.generated[r]
        if -(whole // -limits.block_tokens) > free:
            break
        tokens = min(whole, left)
        need = -(tokens // -limits.block_tokens)
        if preempted > 0:
            preempted -= 1
        else:
            admitted += 1
            state.start_ms[r] = now
        free -= need
        state.blocks[r] = need
        state.running[running] = r
        state.chunk[running] = tokens
        left -= tokens
        running += 1
        scheduled += 1
    return scheduled, running, preempted, admitted, free


@njit(cache=True, nogil=True)
def _columns(arrivals: Arrivals, state: State, scheduled: int) -> tuple[int, int, float, int]:
    """Return what a model may want to know of a step: S, context_tokens, prefill_pairs, num_prefill_reqs."""
    tokens = context = prefills = 0
    pairs = 0.0
    for place in range(scheduled):
        r, chunk = state.running[place], state.chunk[place]
        before = state.computed[r]
        tokens += chunk
        context += before
        if before < arrivals.prompt[r] or chunk > 1:
            prefills += 1
            pairs += float(chunk) * before + 0.5 * chunk * (chunk + 1)
    return tokens, context, pairs, prefills


@njit(cache=True, nogil=True)
def _duration(table: StepTable, batch_size: int, tokens: int, rng: np.random.Generator) -> float:
    """Draw the time of a step, ms: the mean between the nodes, Student-t noise around it."""
    b, s = table.left_b[batch_size], table.left_s[tokens]
    along_b, along_s = table.share_b[batch_size], table.share_s[tokens]
    mean = _between(table.mean, b, s, along_b, along_s)
    if table.nu <= 0.0:
        return mean + table.overhead_ms
    latency = mean + _between(table.scale, b, s, along_b, along_s) * rng.standard_t(table.nu)
    return min(max(latency, 0.0), max(table.longest_ms, 3.0 * mean)) + table.overhead_ms


@njit(cache=True, nogil=True)
def _between(values: Floats, b: int, s: int, along_b: float, along_s: float) -> float:
    low: float = values[b, s] + along_s * (values[b, s + 1] - values[b, s])
    if along_b == 0.0:
        return low
    high: float = values[b + 1, s] + along_s * (values[b + 1, s + 1] - values[b + 1, s])
    return low + along_b * (high - low)


@njit(cache=True, nogil=True)
def _end_step(
    arrivals: Arrivals, state: State, scheduled: int, running: int, free: int, now: float
) -> tuple[int, int, int]:
    """Book what the step computed; a request whose work is done has one more token."""
    kept = ended = 0
    for place in range(running):
        r = state.running[place]
        if place < scheduled:
            state.computed[r] += state.chunk[place]
            if state.computed[r] == arrivals.prompt[r] + state.generated[r]:
                state.generated[r] += 1
                if state.generated[r] == 1:
                    state.first_ms[r] = now
                if state.generated[r] == arrivals.output[r]:
                    state.finish_ms[r] = now
                    free += state.blocks[r]
                    state.blocks[r] = 0
                    ended += 1
                    continue
        state.running[kept] = r
        kept += 1
    return ended, kept, free
