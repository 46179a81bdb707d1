"""What an operator looks for in a trace, each with its place, its moment and its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError

type Moment = Callable[[float], str]
"""Writes a timestamp of one file as a person reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From where on something is a finding."""

    slow_schedule_ms: float = 10.0
    """A step whose scheduling took longer, ms."""
    schedule_rise: float = 2.0
    """Factor by which the schedule time of like steps rises suddenly, above 1."""
    long_queue: int = 10
    """More waiting requests than this, requests."""
    full_kv_cache: float = 0.95
    """Share of the KV cache in use, above 0 and at most 1."""
    num_slowest: int = 10
    """So many slowest steps are listed."""

    def __post_init__(self) -> None:
        for name, is_sound, asked in (
            ("slow_schedule_ms", 0 < self.slow_schedule_ms < math.inf, "a positive number of milliseconds"),
            ("schedule_rise", 1 < self.schedule_rise < math.inf, "a factor above 1"),
            ("long_queue", self.long_queue >= 1, "at least 1 waiting request"),
            ("full_kv_cache", 0 < self.full_kv_cache <= 1, "a share above 0 and at most 1"),
            ("num_slowest", self.num_slowest >= 0, "a number of steps"),
        ):
            if not is_sound:
                raise InputError(f"{name} is {getattr(self, name)}: give {asked}")


STILL_WAITING = "still waiting at the end of the trace"
"""The end of the text of a queue that never drained."""

SLOW_SCHEDULING = "slow scheduling"
SCHEDULE_RISE = "schedule time rose"
QUEUE_BUILD_UP = "queue build-up"
KV_CACHE_FULL = "KV cache near full"

MIN_EPISODE_STEPS = 20
MIN_EPISODE_S = 1.0
"""A queue or a KV cache above its limit for fewer steps and less time passes by itself."""
JOINED_STEPS = 10
"""Slow schedules so many steps apart are one finding."""
_EMPTIER = 0.05
"""A KV cache counts as near full until its use has fallen this far below the limit."""

BLOCK_STEPS = 50
NUM_BLOCKS = 2
"""Blocks in each of the two windows around a rise."""
MIN_SHARE_OF_STEP = 0.01
_POLISH_ROUNDS = 40
_WINDOW = NUM_BLOCKS * BLOCK_STEPS

NEEDS = {
    SLOW_SCHEDULING: ("schedule_ms",),
    SCHEDULE_RISE: ("schedule_ms",),
    QUEUE_BUILD_UP: ("num_waiting_reqs",),
    KV_CACHE_FULL: ("kv_cache_usage",),
}
"""Columns that each kind of finding needs; without them it is not looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something in a trace that a person should look at."""

    kind: str
    """One of the keys of `NEEDS`."""
    source: str
    """The file."""
    first_line: int
    last_line: int
    peak_line: int
    """1-based lines of the first and the last step of it, and of the one with the highest value."""
    num_steps: int
    """Steps of it that are above the limit."""
    start: str
    end: str
    peak: str
    """Moments of the first step, the last one, and the one with the highest value: a date, or seconds since
    the beginning of the file where its clock tells no date; empty without timestamps."""
    start_s: float | None
    duration_s: float | None
    """Seconds since the beginning of the trace, and from the first to the last step."""
    value: float
    """How bad it was: the highest value, or the factor of a rise."""
    unit: str
    """Of the value."""
    text: str
    """The same in words."""


def find_all(steps: pd.DataFrame, moments: Sequence[Moment], limits: Limits) -> tuple[Finding, ...]:
    """Look for everything that the columns allow, kind by kind in the order of `NEEDS`.

    The steps are those that are not idle, in the order of the files, with ``time_s``; the moments are those
    of the files, in the order of the categories of ``source``.
    """
    codes = steps["source"].cat.codes.to_numpy()
    files = [
        _File(steps[codes == code] if len(moments) > 1 else steps, moment, str(name))
        for code, (name, moment) in enumerate(zip(steps["source"].cat.categories, moments, strict=True))
    ]
    return tuple(
        finding
        for kind, search in _SEARCHES.items()
        if set(NEEDS[kind]) <= set(steps)
        for file in files
        for finding in search(file, limits)
    )


class Episode(NamedTuple):
    """Steps `start` to `stop` - 1 of one file, of which `peak` holds the highest value."""

    start: int
    stop: int
    peak: int
    num_above: int


def episodes(values: Floats, *, above: float, below: float | None = None, join: int = 0) -> list[Episode]:
    """Find the stretches in which a value is too high, in their order; NaN is neither high nor low.

    One begins with a value greater than `above` and ends before the first less than `below`, so that a value
    which swings around the limit is one stretch; without `below`, with the last of those above that have
    another one at most `join` steps before them.
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
        # From one that is over to the next that is under: what decides is the latest of either kind.
        latest = np.maximum.accumulate(np.where(over | (values < below), np.arange(len(over)), -1))
        inside = (latest >= 0) & over[latest]
        edges = np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8))
        starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    pairs = zip(starts.tolist(), stops.tolist(), strict=True)
    return [
        Episode(start, stop, start + int(np.nanargmax(values[start:stop])), int(over[start:stop].sum()))
        for start, stop in pairs
    ]


class _File:
    """The steps of one file, with columns ``time_s`` (s, on the axis of the trace) and ``line``."""

    def __init__(self, steps: pd.DataFrame, moment: Moment, name: str) -> None:
        self.steps, self.moment, self.name = steps, moment, name
        self.lines = steps["line"].to_numpy(int)
        self._time_s = steps["time_s"].to_numpy(float)
        self._stamps = steps["timestamp"].to_numpy(float) if "timestamp" in steps else self._time_s * np.nan

    def finding(self, kind: str, span: Episode, value: float, unit: str, text: str) -> Finding:
        first, last = span.start, span.stop - 1
        start, end, peak = (self.moment(float(self._stamps[at])) for at in (first, last, span.peak))
        return Finding(
            kind=kind,
            source=self.name,
            first_line=int(self.lines[first]),
            last_line=int(self.lines[last]),
            peak_line=int(self.lines[span.peak]),
            num_steps=span.num_above,
            start=start,
            end=end,
            peak=peak,
            start_s=_known(float(self._time_s[first])),
            duration_s=self.duration_s(span),
            value=value,
            unit=unit,
            text=text,
        )

    def duration_s(self, span: Episode) -> float | None:
        return _known(float(self._time_s[span.stop - 1] - self._time_s[span.start]))

    def is_lasting(self, span: Episode) -> bool:
        """Tell whether something lasted long enough to count."""
        return span.num_above >= MIN_EPISODE_STEPS or (self.duration_s(span) or 0.0) >= MIN_EPISODE_S


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _slow_scheduling(file: _File, limits: Limits) -> Iterator[Finding]:
    schedule_ms = file.steps["schedule_ms"].to_numpy(float)
    for span in episodes(schedule_ms, above=limits.slow_schedule_ms, join=JOINED_STEPS):
        worst = float(schedule_ms[span.peak])
        if span.num_above > 1:
            text = (
                f"{span.num_above:,} steps of {span.stop - span.start:,} scheduled for more than "
                f"{limits.slow_schedule_ms:g} ms, at most {worst:,.4g} ms in line {file.lines[span.peak]:,}"
            )
        else:
            columns = ("num_prefill_reqs", "num_decode_reqs", "total_tokens")
            num_prefill, num_decode, tokens = (file.steps[name].to_numpy()[span.peak] for name in columns)
            text = (
                f"scheduling took {worst:,.4g} ms ({num_prefill:.0f} prefill, {num_decode:.0f} decode "
                f"requests, {tokens:,.0f} tokens)"
            )
        yield file.finding(SLOW_SCHEDULING, span, worst, "ms", text)


def _schedule_rises(file: _File, limits: Limits) -> Iterator[Finding]:
    """Find sudden rises of the schedule time of like steps by a factor above 1."""
    steps, factor = file.steps, limits.schedule_rise
    schedule_ms = steps["schedule_ms"].to_numpy(float)
    rows = np.flatnonzero(schedule_ms > 0)
    num_blocks = len(rows) // BLOCK_STEPS
    if num_blocks < 2 * NUM_BLOCKS + 1:
        return
    schedule_ms = schedule_ms[rows]
    requests, prefills = (steps[name].to_numpy(float)[rows] for name in ("batch_size", "num_prefill_reqs"))
    ratio = _ratio_to_like(schedule_ms, requests, prefills)
    smallest_ms = MIN_SHARE_OF_STEP * float(steps["latency_ms"].median())
    for block in _candidates(ratio[: num_blocks * BLOCK_STEPS], factor):
        begin = (block - 1) * BLOCK_STEPS
        place = begin + _best_split(ratio[begin : begin + 3 * BLOCK_STEPS])
        around = slice(max(0, place - _WINDOW), place), slice(place, place + _WINDOW)
        before, after = (ratio[window] for window in around)
        rise = float(np.median(after) / np.median(before))
        before_ms, after_ms = (float(np.median(schedule_ms[window])) for window in around)
        is_apart = np.quantile(after, 0.25) > np.quantile(before, 0.75)
        is_large = rise >= factor and after_ms * (1.0 - 1.0 / rise) >= smallest_ms
        if is_apart and is_large and after_ms > before_ms:
            batch, batch_after = (float(np.median(requests[window])) for window in around)
            text = (
                f"{rise:.2g} times as long for like steps: median {before_ms:,.3g} ms before, "
                f"{after_ms:,.3g} ms after (requests a batch {batch:,.0f} and {batch_after:,.0f})"
            )
            step = int(rows[place])
            yield file.finding(SCHEDULE_RISE, Episode(step, step + 1, step, 1), rise, "times", text)


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


def _queue_build_ups(file: _File, limits: Limits) -> Iterator[Finding]:
    waiting = file.steps["num_waiting_reqs"].to_numpy(float)
    emptied = limits.long_queue / 2
    quiet = np.maximum.accumulate(np.where(waiting < emptied, np.arange(len(waiting)), -1))
    for span in episodes(waiting, above=limits.long_queue, below=emptied):
        if not file.is_lasting(span):
            continue
        # A build-up begins with the last step that still had a short queue.
        begun = span._replace(start=max(int(quiet[span.start]), 0))
        grown = f"from {waiting[begun.start]:,.0f} to {waiting[span.peak]:,.0f}"
        lasted = "" if (seconds := file.duration_s(begun)) is None else f" ({seconds:,.3g} s)"
        text = (
            f"waiting requests grew {grown} in line {file.lines[span.peak]:,} and stayed many for "
            f"{begun.stop - begun.start:,} steps{lasted}, "
            f"{STILL_WAITING if span.stop == len(waiting) else 'then drained'}"
        )
        yield file.finding(QUEUE_BUILD_UP, begun, float(waiting[span.peak]), "requests", text)


def _full_caches(file: _File, limits: Limits) -> Iterator[Finding]:
    usage = file.steps["kv_cache_usage"].to_numpy(float)
    # At the limit counts as near full, whatever the last digit says.
    above = float(np.nextafter(limits.full_kv_cache, 0.0))
    for span in episodes(usage, above=above, below=limits.full_kv_cache - _EMPTIER):
        if not file.is_lasting(span):
            continue
        peak = float(usage[span.peak])
        text = (
            f"KV cache {peak:.1%} full at most, at least {limits.full_kv_cache:.0%} in {span.num_above:,} of "
            f"{span.stop - span.start:,} steps"
        )
        yield file.finding(KV_CACHE_FULL, span, peak, "share", text)


_SEARCHES: dict[str, Callable[[_File, Limits], Iterator[Finding]]] = {
    SLOW_SCHEDULING: _slow_scheduling,
    SCHEDULE_RISE: _schedule_rises,
    QUEUE_BUILD_UP: _queue_build_ups,
    KV_CACHE_FULL: _full_caches,
}
