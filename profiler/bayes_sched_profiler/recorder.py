"""The recorder of one engine: from a scheduler's calls to finished steps in a queue."""

from collections import deque
from time import perf_counter
from typing import Any

from bayes_sched_profiler.record import Scheduled, Step, copy_schedule

MAX_QUEUED = 2048
"""Steps that wait for the writer at the most: some ten megabytes, some twenty seconds of a busy server."""
MAX_IN_FLIGHT = 64
"""Steps that were scheduled and not done; vLLM has as many as pipeline stages, or two."""


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
