"""One short line a step on the console, as many as it takes."""

import os
import select
import sys
import time

from bayes_sched_profiler.record import Step, as_fields

PERIOD_S = 0.05
"""At most one line in this time: a person reads no more, and a terminal must not slow the server."""


class Console:
    """Shows steps. Only the writer's thread uses it.

    Parameters
    ----------
    fd : int
        Where to; standard error by default.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._fd = sys.stderr.fileno() if fd is None else fd
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._next_time = 0.0
        self._num_hidden = 0

    def show(self, step: Step) -> None:
        """Show a step, unless the last line is too recent or the console does not take one."""
        time_s = time.monotonic()
        if time_s < self._next_time or not self._is_free():
            self._num_hidden += 1
            return
        self._next_time = time_s + PERIOD_S
        os.write(self._fd, self._line(step).encode())
        self._num_hidden = 0

    def _is_free(self) -> bool:
        """Tell whether a line would go through: a pipe that nobody reads, or a halted terminal, blocks."""
        return any(event & select.POLLOUT for _, event in self._poll.poll(0))

    def _line(self, step: Step) -> str:
        fields = as_fields(step)
        usage = fields["kv_cache_usage"]
        return (
            f"step {fields['batch_id']}: {fields['num_prefill_reqs']} prefill + {fields['num_decode_reqs']} "
            f"decode, {fields['total_scheduled_tokens']} tokens, "
            f"schedule {fields['schedule_duration_ms']:.2f} ms, "
            f"model {fields['model_run_duration_ms']:.2f} ms, waiting {fields['num_waiting_reqs']}"
            + (f", KV cache {usage:.1%}" if usage is not None else "")
            + (f" (+{self._num_hidden} steps not shown)" if self._num_hidden else "")
            + "\n"
        )
