"""The side-car ``LOG.meta.json``: what the steps of a log were measured on, and what is missing from it."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from bayes_sched_profiler.notices import warn

PERIOD_S = 5.0
"""Counts that grow by themselves are brought up to date this often."""


class Sidecar:
    """Keeps the side-car of a log up to date. Only the writer's thread uses it.

    Parameters
    ----------
    describe : callable
        Gives what stays: called once.
    """

    def __init__(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        self._describe: Callable[[], Mapping[str, Any]] | None = describe
        self._description: dict[str, Any] = {"started_at": _utc_now()}
        self._last: tuple[object, ...] = ()
        self._next_time = 0.0
        self._is_failing = False

    def update(self, log: str, *, state: str, num_recorded: int, num_dropped: int, num_errors: int) -> None:
        """Write the side-car of `log` where it is due: at once where something happened.

        Parameters
        ----------
        log : str
            Path of the log.
        state : str
            ``recording``, ``paused``, ``off`` after too many errors, or ``closed``.
        num_recorded, num_dropped : int
            Steps in the log, and steps that are missing from it.
        num_errors : int
            The profiler's own.
        """
        if self._describe is not None:
            describe, self._describe = self._describe, None
            self._description |= describe()
        happened = (log, state, num_dropped, num_errors)
        if happened == self._last and time.monotonic() < self._next_time:
            return
        self._last, self._next_time = happened, time.monotonic() + PERIOD_S
        counts = {
            "state": state,
            "num_recorded_steps": num_recorded,
            "num_dropped_steps": num_dropped,
            "num_profiler_errors": num_errors,
            "updated_at": _utc_now(),
        }
        try:
            _write(f"{log}.meta.json", self._description | counts)
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                warn("cannot write the side-car of %s: %s.", log, error.strerror or error)
            self._is_failing = True


def _write(path: str, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
