"""Follows a log that another process writes, every line once, and says what its server does at the moment."""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Self

import numpy as np

from bayes_sched.errors import InputError
from bayes_sched.trace.formats import FIELDS, TORN, YEAR_2001_S, YEAR_2100_S, LineError, parse_line
from bayes_sched.trace.opening import MAX_LINE_BYTES

TAIL_BYTES = 256 * 2**10
"""Of a log that exists at the beginning, only so much of its end is read."""
_BLOCK_BYTES = 256 * 2**10
_MARK_BYTES = 4096
"""So many of the last bytes read tell a file that was written anew from one that grew."""


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """What a server does at a moment; None where its log does not tell, or nothing happened in the window."""

    num_steps: int
    steps_per_s: float
    tokens_per_s: float
    p50_ms: float | None  # of the model run, in the window
    p99_ms: float | None
    running: int | None  # requests at the last batch
    waiting: int | None
    kv_cache: float | None  # share in use


class LiveWindow:
    """The steps of the last seconds: by when they ran where the log tells it, else when they were read."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._steps: deque[tuple[float, float, float]] = deque()
        self._last: dict[str, float] = {}
        self._offset_s: float | None = None
        self._covered_from: float | None = None

    def add(self, rows: Sequence[dict[str, float]], *, now_s: float) -> None:
        """Take the new steps of a :meth:`LogFollower.look` at a moment (Unix time, s)."""
        if self._covered_from is None:
            self._covered_from = now_s
        for row in rows:
            ran_at = self._moment(row, rows[-1], now_s)
            self._steps.append((ran_at, row["total_tokens"], row["latency_ms"]))
            self._covered_from = min(self._covered_from, ran_at)
        if rows:
            self._last = rows[-1]

    def _moment(self, row: dict[str, float], latest: dict[str, float], now_s: float) -> float:
        stamp = row.get("timestamp")
        if stamp is None:
            return now_s
        if not YEAR_2001_S <= stamp <= YEAR_2100_S:
            if self._offset_s is None:  # the last step of the first look counts as just run
                self._offset_s = now_s - latest.get("timestamp", stamp)
            stamp += self._offset_s
        return min(stamp, now_s)

    def figures(self, *, now_s: float) -> LiveFigures:
        """Return the figures of the window that ends at a moment (Unix time, s)."""
        begin_s = now_s - self.window_s
        while self._steps and self._steps[0][0] < begin_s:
            self._steps.popleft()
        covered_from = now_s if self._covered_from is None else self._covered_from
        # Right after the beginning the log covers less than a window; a whole second smooths the first look.
        span_s = min(self.window_s, max(now_s - covered_from, 1.0))
        latencies_ms = np.array([latency for at, _, latency in self._steps if at >= begin_s])
        tokens = sum(tokens for at, tokens, _ in self._steps if at >= begin_s)
        p50_ms = p99_ms = None
        if len(latencies_ms):
            p50_ms, p99_ms = (float(q) for q in np.quantile(latencies_ms, [0.5, 0.99]))
        return LiveFigures(
            num_steps=len(latencies_ms),
            steps_per_s=len(latencies_ms) / span_s,
            tokens_per_s=tokens / span_s,
            p50_ms=p50_ms,
            p99_ms=p99_ms,
            running=None if (running := self._last.get("num_running_reqs")) is None else int(running),
            waiting=None if (waiting := self._last.get("num_waiting_reqs")) is None else int(waiting),
            kv_cache=self._last.get("kv_cache_usage"),
        )


@dataclass(slots=True)
class NewSteps:
    """What a look at the log brought."""

    rows: list[dict[str, float]] = field(default_factory=list)  # not idle, with the columns the line holds
    events: list[str] = field(default_factory=list)  # what became of the file, such as truncated or gone


class LogFollower:
    """Reads what was appended to a log since the last look; it may be replaced or not yet exist."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.num_steps = self.num_idle = self.num_bytes = 0
        self.bad: Counter[str] = Counter()  # lines that could not be used, by reason
        self.is_there = False  # at the last look
        self._file: BinaryIO | None = None
        self._rest = self._mark = b""
        self._skips_line = False
        self._has_looked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def look(self) -> NewSteps:
        """Read what is new; :class:`InputError` if the file exists and cannot be read."""
        new = NewSteps()
        try:
            self._open_if_replaced(new)
            if self._file is not None:
                self._rewind_if_rewritten(new)
                self._read(new)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}") from None
        self._has_looked = True
        return new

    def _open_if_replaced(self, new: NewSteps) -> None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            if self.is_there:
                new.events.append(f"{self.path} is gone: waiting for it to come back")
            self.is_there = False
            return  # a file that is removed while a server holds it open may still grow
        self_status = None if self._file is None else os.fstat(self._file.fileno())
        if self_status is not None and os.path.samestat(status, self_status):
            if not self.is_there:
                new.events.append(f"{self.path} is back")
            self.is_there = True
            return
        if self._file is not None:
            self._read(new)  # what was written between the last look and the replacement
            self._drop_rest()
            new.events.append(f"{self.path} was replaced: going on with the new file")
            self.close()
        elif self._has_looked:
            new.events.append(f"{self.path} is there")
        self._file = open(self.path, "rb")  # noqa: SIM115 - it stays open between looks
        self.is_there = True
        self._mark = b""
        size = os.fstat(self._file.fileno()).st_size
        if not self._has_looked and size > TAIL_BYTES:
            self._file.seek(size - TAIL_BYTES)
            self._skips_line = True

    def _rewind_if_rewritten(self, new: NewSteps) -> None:
        """Begin anew if the file became shorter, or holds other bytes where the last ones were read."""
        assert self._file is not None
        place = self._file.tell()
        size = os.fstat(self._file.fileno()).st_size
        if size >= place:
            self._file.seek(place - len(self._mark))
            if self._file.read(len(self._mark)) == self._mark:
                return
        self._drop_rest()
        self._file.seek(0)
        self._mark = b""
        new.events.append(f"{self.path} was truncated: reading it from its beginning")

    def _drop_rest(self) -> None:
        if self._rest and not self._skips_line:
            self.bad[TORN] += 1
        self._rest, self._skips_line = b"", False

    def _read(self, new: NewSteps) -> None:
        assert self._file is not None
        while block := self._file.read(_BLOCK_BYTES):
            self.num_bytes += len(block)
            self._mark = (self._mark + block[-_MARK_BYTES:])[-_MARK_BYTES:]
            new.rows.extend(self._steps(block))

    def _steps(self, block: bytes) -> Iterator[dict[str, float]]:
        *lines, rest = (self._rest + block).split(b"\n")
        self._rest = rest
        if lines and self._skips_line:
            del lines[0]  # the look began somewhere within it
            self._skips_line = False
        for line in lines:
            yield from self._step(line)
        if len(rest) > MAX_LINE_BYTES:
            if not self._skips_line:
                self.bad["longer than any step"] += 1
            self._rest, self._skips_line = b"", True

    def _step(self, line: bytes) -> Iterator[dict[str, float]]:
        try:
            step = parse_line(line)
        except LineError as error:
            if not error.is_noise:
                self.bad[error.reason] += 1
            return
        if step is None:
            return
        self.num_steps += 1
        row = dict(zip(FIELDS, step.row, strict=True))
        if row["batch_size"] > 0 and row["total_tokens"] > 0:
            yield {name: value for name, value in row.items() if not math.isnan(value)}
        else:
            self.num_idle += 1
