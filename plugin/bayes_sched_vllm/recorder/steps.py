"""Steps: copied from a scheduler's calls on the engine's thread, queued when done, rendered by the writer."""

import json
from collections import deque
from operator import attrgetter
from time import perf_counter
from typing import Any, NamedTuple

MAX_QUEUED = 2048
"""Steps that wait for the writer at the most: some ten megabytes, some twenty seconds of a busy server."""
MAX_IN_FLIGHT = 64
"""Steps that were scheduled and not done; vLLM has as many as pipeline stages, or two."""

_COMPUTED = attrgetter("num_computed_tokens")
_PROMPT = attrgetter("num_prompt_tokens")


class Scheduled(NamedTuple):
    """What `schedule` decided, copied on the engine's thread: numbers, nothing that vLLM goes on changing.

    The tuples have one entry a request of the step, in the scheduler's order.
    """

    timestamp: float
    """Unix time at which `schedule` was entered, s."""
    begin: float
    end: float
    """Entering and leaving `schedule`, s of `time.perf_counter`."""
    num_tokens: int
    sizes: tuple[int, ...]
    """Tokens scheduled."""
    computed: tuple[int, ...]
    """Tokens computed once the step is done: `schedule` has advanced them already."""
    prompts: tuple[int, ...]
    """Tokens of the prompt."""
    speculative: tuple[int, ...] | None
    """Draft tokens among the scheduled ones; None: none in the whole step."""
    num_cached: int
    """Tokens that the requests which begin with this step found computed already."""
    num_waiting: int | None
    num_running: int | None
    kv_cache_usage: float | None


class Step(NamedTuple):
    """A step whose result is there."""

    batch_id: int
    scheduled: Scheduled
    device_begin: float
    """When the device could begin: it was scheduled and the step before was done. s of `perf_counter`."""
    end: float
    """Its sampled tokens are on the host. s of `perf_counter`."""


class Recorder:
    """Follows the steps of one scheduler. Its methods run on the engine's thread and raise what goes wrong.

    Attributes
    ----------
    queue : deque of Step
        Finished steps. The engine's thread appends, the writer's takes.
    is_paused : bool
        Steps pass unrecorded; set by the writer.
    is_scheduling : bool
        The engine's thread is inside `schedule`: a subclass may call its parent's.
    num_dropped : int
        Steps that were lost: the queue was full, or they could not be rendered. They leave gaps in the ids.
    """

    def __init__(self) -> None:
        self.queue: deque[Step] = deque()
        self.is_paused = False
        self.is_scheduling = False
        self.num_dropped = 0
        self._next_id = 0
        self._last_end = 0.0
        self._last_output: Any = None
        # By the identity of the SchedulerOutput, which the value keeps alive: two steps are in flight at once
        # under asynchronous scheduling.
        self._in_flight: dict[int, tuple[Any, Scheduled]] = {}

    def scheduled(self, scheduler: Any, output: Any, *, timestamp: float, begin: float, end: float) -> None:
        """Take in what `schedule` returned, unless it scheduled nothing."""
        if self.is_paused or not output.total_num_scheduled_tokens:
            return
        copied = copy_schedule(scheduler, output, timestamp=timestamp, begin=begin, end=end)
        self._in_flight[id(output)] = (output, copied)
        if len(self._in_flight) > MAX_IN_FLIGHT:  # steps whose model run failed never come back
            del self._in_flight[next(iter(self._in_flight))]

    def finished(self, output: Any) -> None:
        """Take in that `update_from_output` was entered: the sampled tokens are on the host."""
        end = perf_counter()
        if output is self._last_output or not output.total_num_scheduled_tokens:
            return  # a subclass calls its parent's; an empty step, which keeps the device from nothing
        _, scheduled = self._in_flight.pop(id(output), (None, None))
        previous_end, self._last_end, self._last_output = self._last_end, end, output
        if scheduled is None or self.is_paused:
            return
        batch_id, self._next_id = self._next_id, self._next_id + 1
        if len(self.queue) >= MAX_QUEUED:
            self.num_dropped += 1
            return
        self.queue.append(Step(batch_id, scheduled, max(scheduled.end, previous_end), end))


def copy_schedule(scheduler: Any, output: Any, *, timestamp: float, begin: float, end: float) -> Scheduled:
    """Copy what a step is made of: on the engine's thread, so in as little time as may be.

    Parameters
    ----------
    scheduler, output : Scheduler, SchedulerOutput
        vLLM's, right after `schedule` returned the one from the other.
    timestamp, begin, end : float
        As in `Scheduled`.
    """
    sizes = output.num_scheduled_tokens
    requests = list(map(scheduler.requests.__getitem__, sizes))
    drafts = output.scheduled_spec_decode_tokens
    num_running, num_waiting = _queue_lengths(scheduler)
    return Scheduled(
        timestamp,
        begin,
        end,
        output.total_num_scheduled_tokens,
        tuple(sizes.values()),
        tuple(map(_COMPUTED, requests)),
        tuple(map(_PROMPT, requests)),
        tuple(len(drafts.get(name, ())) for name in sizes) if drafts else None,
        _num_cached(scheduler, output),
        num_waiting,
        num_running,
        getattr(getattr(scheduler, "kv_cache_manager", None), "usage", None),
    )


def _queue_lengths(scheduler: Any) -> tuple[int | None, int | None]:
    """Count requests running and waiting. Never by `make_stats`: that drains vLLM's own counters."""
    count = getattr(scheduler, "get_request_counts", None)
    if count is not None:
        num_running, num_waiting = count()
        return num_running, num_waiting
    running, waiting = getattr(scheduler, "running", None), getattr(scheduler, "waiting", None)
    return None if running is None else len(running), None if waiting is None else len(waiting)


def _num_cached(scheduler: Any, output: Any) -> int:
    began = {request.req_id for request in output.scheduled_new_reqs}
    resumed = getattr(output.scheduled_cached_reqs, "resumed_req_ids", None)
    if resumed:  # preempted before: their tokens were given up, and some of them found in the cache again
        began.update(resumed)
    if not began:
        return 0
    sizes, requests = output.num_scheduled_tokens, scheduler.requests
    return sum(requests[name].num_computed_tokens - sizes[name] for name in began)


def as_fields(step: Step) -> dict[str, Any]:
    """Give a step in the documented schema (see ``step.schema.json``)."""
    scheduled = step.scheduled
    prefill, prefill_context, decode, decode_context = _by_phase(scheduled)
    usage = scheduled.kv_cache_usage
    return {
        "batch_id": step.batch_id,
        "timestamp": round(scheduled.timestamp, 6),
        "schedule_duration_ms": _ms(scheduled.end - scheduled.begin),
        "model_run_duration_ms": _ms(step.end - step.device_begin),
        "total_step_duration_ms": _ms(step.end - scheduled.begin),
        "num_prefill_reqs": len(prefill),
        "num_decode_reqs": len(decode),
        "total_scheduled_tokens": scheduled.num_tokens,
        "prefill_chunk_sizes": prefill,
        "decode_chunk_sizes": decode,
        "avg_prefill_chunk_size": _mean(prefill),
        "max_prefill_chunk_size": max(prefill, default=0),
        "min_prefill_chunk_size": min(prefill, default=0),
        "avg_decode_chunk_size": _mean(decode),
        "num_waiting_reqs": scheduled.num_waiting,
        "num_running_reqs": scheduled.num_running,
        "kv_cache_usage": None if usage is None else round(usage, 6),
        "prefill_context_lens": prefill_context,
        "decode_context_lens": decode_context,
        "num_cached_tokens": scheduled.num_cached,
    }


def as_line(step: Step) -> bytes:
    """Give a step as one line of JSON with its end."""
    return json.dumps(as_fields(step), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _by_phase(scheduled: Scheduled) -> tuple[list[int], list[int], list[int], list[int]]:
    """Chunk sizes and context lengths of the prefill, then of the decode requests."""
    prefill: list[int] = []
    prefill_context: list[int] = []
    decode: list[int] = []
    decode_context: list[int] = []
    drafts = scheduled.speculative or (0,) * len(scheduled.sizes)
    for size, computed, prompt, num_drafts in zip(  # noqa: B905  # all of one length by construction
        scheduled.sizes, scheduled.computed, scheduled.prompts, drafts
    ):
        before = computed - size
        # Not by size: the last chunk of a prompt may be one token. Past the prompt, more tokens than a decode
        # step has are those of a preempted request that is computed again.
        if before < prompt or size > 1 + num_drafts:
            prefill.append(size)
            prefill_context.append(before)
        else:
            decode.append(size)
            decode_context.append(before)
    return prefill, prefill_context, decode, decode_context


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 4)


def _mean(sizes: list[int]) -> float:
    return round(sum(sizes) / len(sizes), 2) if sizes else 0.0
