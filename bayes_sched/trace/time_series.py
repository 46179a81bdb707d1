"""The steps of a trace along its time: which clock wrote them, what lasts, what rises, equal pieces.

===============  ==================================================================================
``unix``         seconds, or thousandths, millionths, billionths of them, since 1970
``log``          the dates of a vLLM log, which lack the year
``monotonic``    a clock of its own beginning; also where files of one trace have different clocks
``none``         no timestamps
===============  ==================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.arrays import Bools, Floats
from bayes_sched.trace.formats import VLLM_LOG, YEAR_2001_S, YEAR_2100_S

type Kind = Literal["unix", "log", "monotonic", "none"]
_UNITS = (1.0, 1e3, 1e6, 1e9)
_FELL_BACK_S = 1.0
"""A clock that goes back by more began anew, with another start of the server say."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of one file."""

    kind: Kind
    per_second: float
    """Units of the timestamps in a second."""
    first: float
    """First timestamp of the file, in its own units; NaN without any."""

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
    """All steps of a trace on one axis."""

    clocks: tuple[Clock, ...]
    """Of the files, in their order."""
    kind: Kind
    """That all clocks share; ``monotonic`` where they differ; ``none`` if any file has none."""
    time_s: Floats
    """Seconds since the beginning of the trace, dims (step,); NaN where a step has no timestamp."""
    elapsed_s: float
    """Seconds during which some file was being written; NaN without timestamps."""
    start: str
    """The first moment, empty where the axis has no date."""
    unix_start_s: float
    """The same as Unix time, s; NaN where the axis is not Unix time."""


def timeline(steps: pd.DataFrame, formats: list[str]) -> Timeline:
    """Put the steps of a trace on one axis.

    Unix time, and the clock of a log, order all files on their own. Files of monotonic clocks share the axis
    where they overlap, as those of the ranks of one server do; otherwise one follows the other without a gap.
    `formats` are those of the files, in the order of the categories of ``source``.
    """
    codes = steps["source"].cat.codes.to_numpy()
    stamps = steps["timestamp"].to_numpy(float) if "timestamp" in steps else np.full(len(steps), np.nan)
    files = [np.flatnonzero(codes == code) for code in range(len(formats))]
    clocks = tuple(_clock(stamps[rows], name) for rows, name in zip(files, formats, strict=True))
    used = {clock.kind for clock, rows in zip(clocks, files, strict=True) if len(rows)}
    time_s = np.full(len(steps), np.nan)
    if not used or "none" in used:
        return Timeline(clocks, "none", time_s, np.nan, "", np.nan)
    seconds = stamps / np.array([clock.per_second for clock in clocks])[codes]
    groups = _overlapping([span for rows in files for span in _spans(rows, seconds)])
    spans_s = [(min(s.first for s in group), max(s.last for s in group)) for group in groups]
    elapsed_s = sum(last - first for first, last in spans_s)
    kind: Kind = used.pop() if len(used) == 1 else "monotonic"
    if kind == "monotonic":
        end = 0.0
        for group, (first, last) in zip(groups, spans_s, strict=True):
            for span in group:
                time_s[span.rows] = seconds[span.rows] - first + end
            end += last - first
        return Timeline(clocks, kind, time_s, elapsed_s, "", np.nan)
    origin = float(np.nanmin(seconds))
    start = Clock(kind, 1.0, origin).moment(origin)
    return Timeline(clocks, kind, seconds - origin, elapsed_s, start, origin if kind == "unix" else np.nan)


def _clock(stamps: Floats, format_name: str) -> Clock:
    known = stamps[np.isfinite(stamps)]
    if not len(known):
        return Clock("none", 1.0, np.nan)
    first, middle = float(known[0]), float(np.median(known))
    if VLLM_LOG in format_name.split("+"):
        return Clock("log" if format_name == VLLM_LOG else "monotonic", 1.0, first)
    for unit in _UNITS:
        if YEAR_2001_S <= middle / unit <= YEAR_2100_S:
            return Clock("unix", unit, first)
    return Clock("monotonic", 1.0, first)


@dataclass(frozen=True, eq=False, slots=True)
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
        near = [group for group in groups if any(span.first < o.last and o.first < span.last for o in group)]
        groups = [group for group in groups if group not in near]
        groups.append([*(member for group in near for member in group), span])
    return groups


class Episode(NamedTuple):
    """Steps `start` to `stop` - 1 of one file, of which `peak` holds the highest value."""

    start: int
    stop: int
    peak: int
    num_above: int


def episodes(values: Floats, *, above: float, below: float | None = None, join: int = 0) -> list[Episode]:
    """Find the stretches in which a value is too high, in their order; NaN is neither high nor low.

    A stretch begins with a value greater than `above`. It ends before the first value less than `below`, so
    that a value which swings around the limit is one stretch and not many; without `below`, it ends with the
    last value above the limit that has another one at most `join` steps before it.
    """
    over = values > above
    hits = np.flatnonzero(over)
    if not len(hits):
        return []
    if below is None:
        breaks = np.flatnonzero(np.diff(hits) > join + 1) + 1
        starts = hits[np.concatenate([[0], breaks])]
        stops = hits[np.concatenate([breaks - 1, [len(hits) - 1]])] + 1
    else:
        starts, stops = _between(over, values < below)
    pairs = zip(starts.tolist(), stops.tolist(), strict=True)
    return [
        Episode(start, stop, start + int(np.nanargmax(values[start:stop])), int(over[start:stop].sum()))
        for start, stop in pairs
    ]


def _between(over: Bools, under: Bools) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the starts and stops of the stretches from one that is over to the next that is under."""
    decides = over | under
    latest = np.maximum.accumulate(np.where(decides, np.arange(len(over)), -1))
    inside = np.zeros(len(over), bool)
    known = latest >= 0
    inside[known] = over[latest[known]]
    edges = np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


BLOCK_STEPS = 50
NUM_BLOCKS = 2
"""Blocks in each of the two windows."""
MIN_SHARE_OF_STEP = 0.01
_POLISH_ROUNDS = 40
_WINDOW = NUM_BLOCKS * BLOCK_STEPS


class Rise(NamedTuple):
    """A sudden rise: the first step after it, its factor, and medians of the windows around it."""

    step: int
    factor: float
    before_ms: float
    after_ms: float
    requests_before: float
    requests_after: float


def schedule_rises(steps: pd.DataFrame, *, factor: float) -> list[Rise]:
    """Find sudden rises of the schedule time by a factor above 1 in the steps of one file, in their order."""
    schedule_ms = steps["schedule_ms"].to_numpy(float)
    rows = np.flatnonzero(schedule_ms > 0)
    num_blocks = len(rows) // BLOCK_STEPS
    if num_blocks < 2 * NUM_BLOCKS + 1:
        return []
    schedule_ms = schedule_ms[rows]
    requests = steps["batch_size"].to_numpy(float)[rows]
    ratio = _ratio_to_like(schedule_ms, requests, steps["num_prefill_reqs"].to_numpy(float)[rows])
    smallest_ms = MIN_SHARE_OF_STEP * float(steps["latency_ms"].median())
    places = [
        (block - 1) * BLOCK_STEPS + _best_split(ratio[(block - 1) * BLOCK_STEPS : (block + 2) * BLOCK_STEPS])
        for block in _candidates(ratio[: num_blocks * BLOCK_STEPS], factor)
    ]
    rises = [_rise(place, ratio, schedule_ms, requests) for place in places]
    return [
        rise._replace(step=int(rows[rise.step]))
        for rise in rises
        if rise.factor >= factor
        and rise.after_ms > rise.before_ms
        and rise.after_ms * (1.0 - 1.0 / rise.factor) >= smallest_ms
    ]


def _rise(step: int, ratio: Floats, schedule_ms: Floats, requests: Floats) -> Rise:
    """Compare the windows around a step; a factor of 0 where they overlap."""
    before, after = slice(max(0, step - _WINDOW), step), slice(step, step + _WINDOW)
    is_apart = np.quantile(ratio[after], 0.25) > np.quantile(ratio[before], 0.75)
    return Rise(
        step,
        float(np.median(ratio[after]) / np.median(ratio[before])) if is_apart else 0.0,
        *(float(np.median(ms)) for ms in (schedule_ms[before], schedule_ms[after])),
        *(float(np.median(batch)) for batch in (requests[before], requests[after])),
    )


def _ratio_to_like(schedule_ms: Floats, requests: Floats, prefills: Floats) -> Floats:
    """Divide each time by that of steps with about as many requests and prefills, dims (step,)."""
    kind = np.floor(np.log2(np.maximum(requests, 1))) * 64 + np.floor(np.log2(prefills + 1))
    steps = pd.DataFrame({"log": np.log(schedule_ms), "kind": kind.astype(int)})
    steps["block"] = np.arange(len(steps)) // BLOCK_STEPS
    cells = steps.groupby(["block", "kind"], as_index=False)["log"].median()
    level = pd.Series(0.0, index=cells.index)
    for _ in range(_POLISH_ROUNDS):
        effect = (cells["log"] - level).groupby(cells["kind"]).median()
        rest = cells["log"] - cells["kind"].map(effect)
        level = rest.groupby(cells["block"]).transform("median")
    ratio: Floats = np.exp((steps["log"] - steps["kind"].map(effect)).to_numpy(float))
    return ratio


def _candidates(ratio: Floats, factor: float) -> list[int]:
    """Blocks that hold a rise: those that stand out most among their neighbours."""
    blocks = ratio.reshape(-1, BLOCK_STEPS)
    windows = np.lib.stride_tricks.sliding_window_view(blocks, NUM_BLOCKS, axis=0)
    windows = windows.transpose(0, 2, 1).reshape(len(windows), -1)
    low, middle, high = np.quantile(windows, [0.25, 0.5, 0.75], axis=1)
    ahead = NUM_BLOCKS + 1
    rise = middle[ahead:] / middle[:-ahead]
    qualifies = (rise >= factor) & (low[ahead:] > high[:-ahead])
    score = np.where(qualifies, rise, 0.0)
    chosen: list[int] = []
    for place in np.flatnonzero(qualifies):
        near = score[max(0, place - ahead) : place + ahead + 1]
        if score[place] == near.max() and (not chosen or place - chosen[-1] > ahead):
            chosen.append(int(place))
    return [place + NUM_BLOCKS for place in chosen]


def _best_split(values: Floats) -> int:
    """Where the first third's median best gives way to the last third's."""
    third = len(values) // 3
    before, after = np.median(values[:third]), np.median(values[-third:])
    gain = np.abs(values - before) - np.abs(values - after)
    cost = np.concatenate([[0.0], np.cumsum(gain)])
    return int(np.argmin(cost[1:-1])) + 1


MAX_BINS = 120
_STEPS_A_BIN = 30

QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}
_TIMES = ("schedule_ms", "latency_ms")
_LEVELS = ("num_waiting_reqs", "num_running_reqs", "kv_cache_usage")


def over_time(steps: pd.DataFrame) -> pd.DataFrame:
    """Sum up the steps in equal pieces of time, or of the number of steps where the trace tells no time.

    One row a piece that holds steps, at most `MAX_BINS`: ``from`` and ``to`` (s since the beginning of the
    trace, or numbers of steps), ``steps``, ``tokens`` and, where the trace holds them, ``prefill_tokens``
    (sums); of the schedule time and the model run (``schedule_ms``, ``latency_ms``) ``NAME_p5``,
    ``NAME_p50``, ``NAME_p95``, ``NAME_max``, and the medians of the steps that only decode, ``NAME_decode``,
    and of those that prefill, ``NAME_prefill`` (NaN where there are none); of the waiting and running
    requests and the KV-cache use ``NAME_mean``, ``NAME_max``.
    """
    place = axis_of(steps).to_numpy(float)
    known = np.isfinite(place)
    steps, place = steps[known], place[known]
    num_bins = int(np.clip(len(steps) // _STEPS_A_BIN, 1, MAX_BINS))
    edges = np.linspace(place.min(), place.max(), num_bins + 1)
    codes = np.searchsorted(edges[1:-1], place, side="right")
    groups = steps.groupby(codes)
    columns = {"steps": groups.size(), "tokens": groups["total_tokens"].sum()}
    if "prefill_tokens" in steps:
        columns["prefill_tokens"] = groups["prefill_tokens"].sum()
    is_prefill = steps["num_prefill_reqs"].to_numpy(float) > 0
    kinds = {"decode": ~is_prefill, "prefill": is_prefill}
    for name in filter(steps.__contains__, _TIMES):
        for short, q in QUANTILES.items():
            columns[f"{name}_{short}"] = groups[name].quantile(q)
        columns[f"{name}_max"] = groups[name].max()
        for kind, chosen in kinds.items():
            columns[f"{name}_{kind}"] = steps.loc[chosen, name].groupby(codes[chosen]).median()
    for name in filter(steps.__contains__, _LEVELS):
        columns |= {f"{name}_mean": groups[name].mean(), f"{name}_max": groups[name].max()}
    table = pd.DataFrame(columns)
    bins = table.index.to_numpy()
    table.insert(0, "from", edges[bins])
    table.insert(1, "to", edges[bins + 1])
    return table.reset_index(drop=True)


def axis_of(steps: pd.DataFrame) -> pd.Series:
    """Return where each step lies: seconds, or the numbers of the steps where the trace tells no time."""
    if steps["time_s"].notna().any():
        return steps["time_s"]
    return pd.Series(np.arange(1.0, len(steps) + 1.0), index=steps.index)
