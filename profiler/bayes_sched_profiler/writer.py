"""The writer: a thread that takes finished steps from a recorder to the log, the side-car and the console."""

import os
import threading
import time

from bayes_sched_profiler.console import Console
from bayes_sched_profiler.fuse import Fuse
from bayes_sched_profiler.log_file import LogFile
from bayes_sched_profiler.notices import inform, warn
from bayes_sched_profiler.record import Step, as_line
from bayes_sched_profiler.recorder import Recorder
from bayes_sched_profiler.sidecar import Sidecar

PERIOD_S = 0.05
"""Steps reach the file within this time: a server may kill its engine without a word."""
BACK_OFF_S = 1.0
MAX_BACK_OFF_S = 30.0
YIELD_S = 0.0003
"""The writer lets go of the interpreter this often: the engine's thread need not wait for a whole queue. Not
for each step: an engine that never waits gives the interpreter back only after `sys.getswitchinterval`."""


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
        self._sidecar.update(
            self._log.path,
            state="off" if self._fuse.is_blown else state,
            num_recorded=self._num_recorded,
            num_dropped=self._recorder.num_dropped,
            num_errors=self._fuse.num_errors,
        )
