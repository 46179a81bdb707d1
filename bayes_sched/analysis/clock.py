"""Which clock wrote a trace, its steps on one axis, and moments as a person reads them.

========= ============================================= ===================================================
kind      recognised by                                 a moment is shown as
========= ============================================= ===================================================
unix      seconds (or ms, us, ns) since 1970 that lie   a date, UTC
          in the years 2001 to 2100
log       lines of vLLM's own log                       a date without a year, as in the log
monotonic any other numbers                             seconds since the beginning of its file
none      no timestamps                                 nothing: the number of the step is the axis
========= ============================================= ===================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.trace.formats import VLLM_LOG

type Kind = Literal["unix", "log", "monotonic", "none"]
type Floats = NDArray[np.float64]

_YEAR_2001, _YEAR_2100 = 978_307_200.0, 4_102_444_800.0
_UNITS = (1.0, 1e3, 1e6, 1e9)
_FELL_BACK_S = 1.0
"""A clock that goes back by more began anew, with another start of the server say."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of one file.

    Attributes
    ----------
    kind : str
        See the table of the module.
    per_second : float
        Units of the timestamps in a second.
    first : float
        First timestamp of the file, in its own units; NaN without any.
    """

    kind: Kind
    per_second: float
    first: float

    def moment(self, timestamp: float) -> str:
        """Write a timestamp of the file as a person reads it; empty where there is none."""
        if self.kind == "none" or not np.isfinite(timestamp):
            return ""
        seconds = timestamp / self.per_second
        if self.kind == "unix":
            return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"
        if self.kind == "log":
            return f"{datetime(2000, 1, 1) + timedelta(seconds=seconds):%m-%d %H:%M:%S}"
        return f"{(timestamp - self.first) / self.per_second:,.3f} s"


@dataclass(frozen=True, eq=False, slots=True)
class Timeline:
    """All steps of a trace on one axis.

    Attributes
    ----------
    clocks : tuple of Clock
        Of the files, in their order.
    kind : str
        The kind that all clocks share; ``monotonic`` where they differ; ``none`` if any file has none.
    time_s : ndarray, dims (step,)
        Seconds since the beginning of the trace; NaN where a step has no timestamp.
    elapsed_s : float
        Seconds during which some file was being written; NaN without timestamps.
    start : str
        The first moment, empty where the axis has no date.
    unix_start_s : float
        The same as Unix time, s; NaN where the axis is not Unix time.
    """

    clocks: tuple[Clock, ...]
    kind: Kind
    time_s: Floats
    elapsed_s: float
    start: str
    unix_start_s: float


def timeline(steps: pd.DataFrame, formats: list[str]) -> Timeline:
    """Put the steps of a trace on one axis.

    Unix time, and the clock of a log, order all files on their own. Files of monotonic clocks share the axis
    where they overlap, as those of the ranks of one server do; otherwise one follows the other without a gap.

    Parameters
    ----------
    steps : DataFrame
        ``source`` (categorical) and, where there is one, ``timestamp``.
    formats : list of str
        Format of each file, in the order of the categories of ``source``.
    """
    codes = steps["source"].cat.codes.to_numpy()
    stamps = steps["timestamp"].to_numpy(float) if "timestamp" in steps else np.full(len(steps), np.nan)
    files = [np.flatnonzero(codes == code) for code in range(len(formats))]
    clocks = tuple(_clock(stamps[rows], name) for rows, name in zip(files, formats, strict=True))
    used = {clock.kind for clock, rows in zip(clocks, files, strict=True) if len(rows)}
    if not used or "none" in used:
        return Timeline(clocks, "none", np.full(len(steps), np.nan), np.nan, "", np.nan)
    seconds = stamps / np.array([clock.per_second for clock in clocks])[codes]
    kind: Kind = used.pop() if len(used) == 1 else "monotonic"
    spans = [span for rows in files for span in _spans(rows, seconds)]
    groups = _overlapping(spans)
    time_s = np.full(len(steps), np.nan)
    if kind in {"unix", "log"}:
        origin = float(np.nanmin(seconds))
        time_s = seconds - origin
    else:
        end = 0.0
        for group in groups:
            begin = min(span.first for span in group)
            for span in group:
                time_s[span.rows] = seconds[span.rows] - begin + end
            end += max(span.last for span in group) - begin
    elapsed_s = sum(max(s.last for s in group) - min(s.first for s in group) for group in groups)
    start, unix_start_s = "", np.nan
    if kind in {"unix", "log"}:
        unit = next(clock for clock in clocks if clock.kind == kind)
        start = Clock(kind, 1.0, unit.first).moment(origin)
        unix_start_s = origin if kind == "unix" else np.nan
    return Timeline(clocks, kind, time_s, elapsed_s, start, unix_start_s)


def _clock(stamps: Floats, format_name: str) -> Clock:
    known = stamps[np.isfinite(stamps)]
    if not len(known):
        return Clock("none", 1.0, np.nan)
    first, middle = float(known[0]), float(np.median(known))
    if VLLM_LOG in format_name.split("+"):
        return Clock("log" if format_name == VLLM_LOG else "monotonic", 1.0, first)
    for unit in _UNITS:
        if _YEAR_2001 <= middle / unit <= _YEAR_2100:
            return Clock("unix", unit, first)
    return Clock("monotonic", 1.0, first)


@dataclass(frozen=True, slots=True)
class _Span:
    """Steps of one file between two restarts of its clock."""

    rows: NDArray[np.intp]
    first: float
    last: float


def _spans(rows: NDArray[np.intp], seconds: Floats) -> list[_Span]:
    rows = rows[np.isfinite(seconds[rows])]
    if not len(rows):
        return []
    restarts = np.flatnonzero(np.diff(seconds[rows]) < -_FELL_BACK_S) + 1
    pieces = np.split(rows, restarts)
    return [_Span(piece, float(seconds[piece].min()), float(seconds[piece].max())) for piece in pieces]


def _overlapping(spans: list[_Span]) -> list[list[_Span]]:
    """Group spans that overlap; the groups stand in the order in which their first file was given."""
    groups: list[list[_Span]] = []
    for span in spans:
        touching = [
            group for group in groups if any(span.first < o.last and o.first < span.last for o in group)
        ]
        merged = [*(member for group in touching for member in group), span]
        groups = [group for group in groups if not any(group is other for other in touching)]
        groups.append(merged)
    return groups
