"""Current figures of a server: over the last seconds of its log."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_UNIX_FROM_S = 978_307_200.0
_UNIX_TO_S = 4_102_444_800.0


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """What a server does at a moment; None where its log does not tell, or nothing happened in the window.

    Attributes
    ----------
    num_steps : int
        Batches in the window.
    steps_per_s, tokens_per_s : float
        Over the window.
    p50_ms, p99_ms : float or None
        Of the model-run time in the window.
    running, waiting : int or None
        Requests, at the last batch.
    kv_cache : float or None
        Share of the KV cache in use, at the last batch.
    """

    num_steps: int
    steps_per_s: float
    tokens_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    running: int | None
    waiting: int | None
    kv_cache: float | None

    @property
    def text(self) -> str:
        """One line of the figures."""

        def shown(value: float | None, template: str) -> str:
            return template.format(value) if value is not None else "–"

        return "  ".join(
            [
                f"{self.steps_per_s:,.1f} steps/s",
                f"{self.tokens_per_s:,.0f} tokens/s",
                f"model run p50 {shown(self.p50_ms, '{:,.1f}')} p99 {shown(self.p99_ms, '{:,.1f}')} ms",
                f"running {shown(self.running, '{:,}')}",
                f"waiting {shown(self.waiting, '{:,}')}",
                f"KV {shown(self.kv_cache, '{:.1%}')}",
            ]
        )


class LiveWindow:
    """The steps of the last seconds.

    Where the log tells the time, a step belongs to the moment at which it ran, so that what had been written
    before the watching began counts where it belongs; otherwise to the moment at which it was read. A clock
    that is not Unix time is set by the first look: its last step counts as just run.
    """

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._steps: deque[tuple[float, float, float]] = deque()
        self._last: dict[str, float] = {}
        self._offset_s: float | None = None
        self._covered_from: float | None = None

    def add(self, rows: Sequence[dict[str, float]], *, now_s: float) -> None:
        """Take the new steps of a look at the log.

        Parameters
        ----------
        rows : sequence of dict
            As `bayes_sched.analysis.following.LogFollower.look` gives them.
        now_s : float
            Unix time of the look, s.
        """
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
        if not _UNIX_FROM_S <= stamp <= _UNIX_TO_S:
            if self._offset_s is None:
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
            running=self._count("num_running_reqs"),
            waiting=self._count("num_waiting_reqs"),
            kv_cache=self._last.get("kv_cache_usage"),
        )

    def _count(self, name: str) -> int | None:
        value = self._last.get(name)
        return None if value is None else int(value)
