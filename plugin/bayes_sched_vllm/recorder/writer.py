"""The writer: a thread that takes finished steps from a recorder to the log, the side-car and the console."""

import os
import select
import sys
import threading
import time

from bayes_sched_vllm.recorder.hook import Fuse, inform, warn
from bayes_sched_vllm.recorder.log_file import LogFile
from bayes_sched_vllm.recorder.sidecar import Sidecar
from bayes_sched_vllm.recorder.steps import Recorder, Step, as_fields, as_line

PERIOD_S = 0.05
"""Steps reach the file within this time: a server may kill its engine without a word."""
BACK_OFF_S = 1.0
MAX_BACK_OFF_S = 30.0
YIELD_S = 0.0003
"""The writer lets go of the interpreter this often: the engine's thread need not wait for a whole queue. Not
for each step: an engine that never waits gives the interpreter back only after `sys.getswitchinterval`."""
CONSOLE_PERIOD_S = 0.05
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
        self._next_time = time_s + CONSOLE_PERIOD_S
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


class Writer:
    """Writes what a recorder records. Everything runs on its own thread, save `start` and `close`.

    Parameters
    ----------
    recorder : Recorder
        Whose queue is emptied.
    log : LogFile
        Where the lines go.
    sidecar : Sidecar
        The log's.
    fuse : Fuse
        Where errors are counted.
    pause_path : str
        While this file exists, nothing is recorded.
    console : Console, optional
        Where each step is shown.
    """

    def __init__(
        self,
        recorder: Recorder,
        log: LogFile,
        *,
        sidecar: Sidecar,
        fuse: Fuse,
        pause_path: str,
        console: Console | None = None,
    ) -> None:
        self._recorder = recorder
        self._log = log
        self._sidecar = sidecar
        self._fuse = fuse
        self._pause_path = pause_path
        self._console = console
        self._lines: list[bytes] = []
        self._num_recorded = 0
        self._is_sidecar_failing = False
        self._back_off_s = 0.0
        self._retry_time = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler-profiling", daemon=True)

    def start(self) -> None:
        """Start the thread. It is a daemon: it never keeps a process alive."""
        self._look_for_pause()
        self._thread.start()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is there and end the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closing.wait(PERIOD_S) or self._fuse.is_blown
            try:
                self._turn(is_last)
            except Exception as error:
                self._fuse.count(error, "writer")
        self._log.close()

    def _turn(self, is_last: bool) -> None:
        self._look_for_pause()
        if time.monotonic() >= self._retry_time or is_last:
            self._render()
            self._write()
        self._update_sidecar(is_last)

    def _look_for_pause(self) -> None:
        self._recorder.is_paused = os.path.exists(self._pause_path)

    def _render(self) -> None:
        queue = self._recorder.queue
        begin = time.perf_counter()
        while queue:
            step = queue.popleft()
            try:
                self._lines.append(as_line(step))
            except Exception as error:
                self._recorder.num_dropped += 1
                self._fuse.count(error, "writer")
            self._show(step)
            if time.perf_counter() - begin > YIELD_S:
                time.sleep(0)
                begin = time.perf_counter()

    def _show(self, step: Step) -> None:
        if self._console is None:
            return
        try:
            self._console.show(step)
        except Exception as error:  # such as a terminal that is gone
            self._console = None
            warn("no steps are shown on the console any more: %s.", error)

    def _write(self) -> None:
        if not self._lines:
            return
        num_written, error = self._log.write(self._lines)
        del self._lines[:num_written]
        if num_written and not self._num_recorded:
            inform("steps are written to %s.", self._log.path)
        self._num_recorded += num_written
        if error is not None:
            self._stand_back(error)
        elif self._back_off_s:
            inform("%s is written again; %d steps are lost.", self._log.path, self._recorder.num_dropped)
            self._back_off_s = 0.0

    def _stand_back(self, error: OSError) -> None:
        if not self._back_off_s:
            warn(
                "cannot write %s: %s. Serving goes on; steps wait, and once too many do they are dropped.",
                self._log.path,
                error.strerror or error,
            )
        self._back_off_s = min(max(BACK_OFF_S, 2 * self._back_off_s), MAX_BACK_OFF_S)
        self._retry_time = time.monotonic() + self._back_off_s

    def _update_sidecar(self, is_last: bool) -> None:
        if not self._num_recorded:
            return
        state = "closed" if is_last else "paused" if self._recorder.is_paused else "recording"
        error = self._sidecar.update(
            self._log.path,
            state="off" if self._fuse.is_blown else state,
            num_recorded=self._num_recorded,
            num_dropped=self._recorder.num_dropped,
            num_errors=self._fuse.num_errors,
        )
        if error is not None and not self._is_sidecar_failing:
            warn("cannot write the side-car of %s: %s.", self._log.path, error.strerror or error)
        self._is_sidecar_failing = error is not None
