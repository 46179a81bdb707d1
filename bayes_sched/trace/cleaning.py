"""Chooses the steps of a fit: without those that are no work, and not more than are worth their time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bayes_sched.arrays import Bools, Ints
from bayes_sched.errors import InputError

LIMITS_MS = (1.0, 300.0)
"""The documented limits: shorter and longer steps are removed, unless that would hide the server."""
WARN_SHARE = 0.01
"""A rule that removes more than this share of the trace is reported, of a kind of step no longer applied."""
FREAKS = 2
"""So few steps of a kind are no habit of the server, whatever their share."""
MIN_SYSTEMATIC = 10
"""Fewer removed steps than this are no system, however large their S."""
DEFAULT_MAX_ROWS = 20_000
"""Rows of a fit unless told otherwise. A gradient costs about 35 ns a row, so that these take 0.7 ms and a
fit about a minute; they already narrow every quantity that data identify far below what a decision needs."""

_CELL = ["batch_size", "total_tokens"]
_NEEDED = (*_CELL, "latency_ms")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What `clean_steps` left."""

    steps: pd.DataFrame
    """The steps that are left, with the columns they came with and rows counted from 0."""
    table: pd.DataFrame
    """One row a rule in the order of application: ``rule``, ``removed`` (steps), ``share`` (of the steps
    before cleaning), ``min_total_tokens`` and ``median_total_tokens`` of the removed steps (NaN if there are
    none)."""
    warnings: tuple[str, ...]
    """One sentence for each rule that removed a systematic part of the trace."""
    num_before: int
    num_after: int
    """Steps before and after."""
    limits_ms: tuple[float, float] = LIMITS_MS
    """The limits that were applied."""

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        rules = zip(self.table["rule"], self.table["removed"], strict=True)
        removed = ", ".join(f"{count:,} ({rule})" for rule, count in rules if count)
        return f"{self.num_after:,} of {self.num_before:,} steps are used; removed: {removed or 'none'}."


def clean_steps(
    steps: pd.DataFrame,
    *,
    min_latency_ms: float | None = None,
    max_latency_ms: float | None = None,
) -> Cleaned:
    """Remove idle, too short and too long steps.

    Parameters
    ----------
    steps : DataFrame
        One row a step, with ``batch_size``, ``total_tokens`` and ``latency_ms`` (ms).
    min_latency_ms, max_latency_ms : float, optional
        Steps below the one and above the other are removed; the limits themselves are kept. By default the
        documented 1 and 300 ms, but moved, with a warning, where that would remove more than 1 % of the steps
        of a kind (decode-only, or with prefill): these are what the server does.

    Returns
    -------
    Cleaned
        The steps that are left and the account of the others.

    Raises
    ------
    InputError
        If a limit makes no sense, a column is missing, or no step is left.
    """
    given = (min_latency_ms, max_latency_ms)
    _check_limits(*(usual if ms is None else ms for ms, usual in zip(given, LIMITS_MS, strict=True)))
    missing = [name for name in _NEEDED if name not in steps]
    if missing:
        raise InputError(f"the steps table lacks {', '.join(missing)}: it needs {', '.join(_NEEDED)}")
    if not len(steps):
        raise InputError("there are no steps to clean")
    batch_size, total_tokens, latency_ms = (steps[name].to_numpy(dtype=float) for name in _NEEDED)
    is_idle = ~((batch_size > 0) & (total_tokens > 0) & (latency_ms > 0) & np.isfinite(latency_ms))
    (min_ms, lowered), (max_ms, raised) = (
        (ms, "") if ms is not None else _moved(steps[~is_idle], usual, is_long=is_long)
        for ms, usual, is_long in zip(given, LIMITS_MS, (False, True), strict=True)
    )
    is_short = ~is_idle & (latency_ms < min_ms)
    is_long = ~is_idle & (latency_ms > max_ms)
    rules = {
        "idle: B, S or T not above 0": is_idle,
        f"T below {min_ms:g} ms": is_short,
        f"T above {max_ms:g} ms": is_long,
    }
    keep = ~(is_idle | is_short | is_long)
    table = _account(steps, rules)
    if not keep.any():
        raise InputError(_nothing_left(steps, table))
    _, short, long = rules
    idle = f"{is_idle.sum():,} of {len(steps):,} steps ({is_idle.mean():.2%}) are idle"
    warnings = (
        f"{idle} (B, S or T not above 0): removed" if is_idle.mean() > WARN_SHARE else "",
        lowered,
        raised,
        _warning(steps, short, is_short, ~is_idle, is_long=False),
        _warning(steps, long, is_long, ~is_idle, is_long=True),
    )
    return Cleaned(
        steps=steps[keep].reset_index(drop=True),
        table=table,
        warnings=tuple(filter(None, warnings)),
        num_before=len(steps),
        num_after=int(keep.sum()),
        limits_ms=(min_ms, max_ms),
    )


def _moved(steps: pd.DataFrame, limit_ms: float, *, is_long: bool) -> tuple[float, str]:
    """Return a limit that removes no more than 1 % of a kind of step, and what there is to say of it."""
    latency_ms, found_ms, text = steps["latency_ms"], limit_ms, ""
    is_decode = steps["batch_size"] == steps["total_tokens"]
    for kind, of_kind in {"decode-only steps": is_decode, "steps with prefill": ~is_decode}.items():
        gone = latency_ms[of_kind & ((latency_ms > limit_ms) if is_long else (latency_ms < limit_ms))]
        if len(gone) <= max(WARN_SHARE * of_kind.sum(), FREAKS):
            continue
        needed_ms = _round_outward(float(gone.quantile(0.99 if is_long else 0.01)), up=is_long)
        if (needed_ms > found_ms) == is_long:
            name, found_ms = f"{'max' if is_long else 'min'}_latency_ms", needed_ms
            text = (
                f"{name} is {needed_ms:g} in place of {limit_ms:g}, which would remove {len(gone):,} of "
                f"{of_kind.sum():,} {kind} ({len(gone) / of_kind.sum():.2%}): that is what this server does; "
                f"to remove them all the same, give {name} {limit_ms:g}"
            )
    return found_ms, text


def _check_limits(min_latency_ms: float, max_latency_ms: float) -> None:
    for name, value in (("min_latency_ms", min_latency_ms), ("max_latency_ms", max_latency_ms)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}: give a positive, finite number of milliseconds")
    if min_latency_ms >= max_latency_ms:
        raise InputError(
            f"min_latency_ms {min_latency_ms:g} is not below max_latency_ms {max_latency_ms:g}: "
            "no step could stay"
        )


def _account(steps: pd.DataFrame, rules: dict[str, Bools]) -> pd.DataFrame:
    tokens = [steps["total_tokens"][removed] for removed in rules.values()]
    return pd.DataFrame(
        {
            "rule": list(rules),
            "removed": [len(removed) for removed in tokens],
            "share": [len(removed) / max(len(steps), 1) for removed in tokens],
            "min_total_tokens": [float(removed.min()) for removed in tokens],
            "median_total_tokens": [float(removed.median()) for removed in tokens],
        }
    )


def _nothing_left(steps: pd.DataFrame, table: pd.DataFrame) -> str:
    rules = zip(table["rule"], table["removed"], strict=True)
    removed = "; ".join(f"{count:,} {rule}" for rule, count in rules if count)
    latency_ms = steps["latency_ms"]
    return (
        f"no step is left of {len(steps):,}: {removed}; the latencies run from {latency_ms.min():.4g} to "
        f"{latency_ms.max():.4g} ms: check their unit, or move min_latency_ms and max_latency_ms"
    )


def _warning(steps: pd.DataFrame, rule: str, removed: Bools, is_work: Bools, *, is_long: bool) -> str:
    """Say that a limit removes many steps, or those of a range of S."""
    share = int(removed.sum()) / len(steps)
    where = _mostly_removed(steps["total_tokens"].to_numpy()[is_work], removed[is_work], above=is_long)
    if not where and share <= WARN_SHARE:
        return ""
    gone = steps[removed]
    tokens = gone["total_tokens"]
    limit_ms = _round_outward(float(gone["latency_ms"].quantile(0.99 if is_long else 0.01)), up=is_long)
    return (
        f"{len(gone):,} of {len(steps):,} steps ({share:.2%}) have {rule} and are removed "
        f"(S from {tokens.min():,} to {tokens.max():,}, median {tokens.median():,.0f}){where}: "
        f"if they are real work, keep them with {'max' if is_long else 'min'}_latency_ms {limit_ms:g}"
    )


def _mostly_removed(total_tokens: Ints, removed: Bools, *, above: bool) -> str:
    """Find the widest range of S, from its upper or lower end on, in which more than half of the steps go."""
    order = np.argsort(-total_tokens if above else total_tokens, kind="stable")
    tokens, num_removed = total_tokens[order], np.cumsum(removed[order])
    is_last_of_its_kind = np.append(tokens[1:] != tokens[:-1], True)[: len(tokens)]
    num_all = np.arange(1, len(tokens) + 1)
    hits = np.flatnonzero(is_last_of_its_kind & (num_removed > num_all / 2) & (num_removed >= MIN_SYSTEMATIC))
    if not len(hits):
        return ""
    widest = hits[-1]
    limit = f"{tokens[widest]:,} or {'more' if above else 'fewer'} tokens"
    return f"; of the {num_all[widest]:,} steps with {limit} {num_removed[widest]:,} go"


def _round_outward(value: float, *, up: bool) -> float:
    """Round to two digits, away from the steps that are to be kept."""
    nearest = float(f"{value:.2g}")
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    if up and nearest < value:
        nearest += unit
    if not up and nearest > value:
        nearest -= unit
    return float(f"{nearest:.2g}")


@dataclass(frozen=True, slots=True)
class Thinned:
    """What `thin_steps` kept."""

    steps: pd.DataFrame
    """The chosen steps in their order, rows counted from 0."""
    text: str | None = None
    """What was left out and how, a sentence; None if nothing was."""


def thin_steps(steps: pd.DataFrame, max_rows: int, *, seed: int = 0) -> Thinned:
    """Keep at most so many steps, the rare ones first.

    A trace repeats itself: a few combinations of requests and tokens, such as the decode steps of a steady
    load, make up most of it. So the number of steps of each combination (B, S) is capped: rare combinations
    stay whole, of a crowded one a random choice stays. The choice looks at B and S and never at the latency,
    so it does not bias a model of the latency given B and S; it costs precision where there is plenty.

    Parameters
    ----------
    steps : DataFrame
        One row a step: ``batch_size`` and ``total_tokens``, and whatever else.
    max_rows : int
        Steps to keep at most, at least 1.
    seed : int
        Of the random choice.

    Returns
    -------
    Thinned

    Raises
    ------
    InputError
        If `max_rows` is less than 1.
    """
    if max_rows < 1:
        raise InputError(f"max_rows is {max_rows:,}: give at least 1")
    if len(steps) <= max_rows:
        return Thinned(steps.reset_index(drop=True))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(steps))
    cell_of_step = steps.groupby(_CELL, sort=False).ngroup().to_numpy()
    cap = _cap(np.bincount(cell_of_step), max_rows)
    rank = np.empty(len(steps), dtype=np.int64)
    rank[order] = pd.Series(cell_of_step[order]).groupby(cell_of_step[order]).cumcount()
    kept = np.flatnonzero(rank < max(cap, 1))
    if not cap:  # more combinations than rows: one step of each is too many already
        kept = np.sort(rng.choice(kept, max_rows, replace=False))
    return Thinned(steps.iloc[kept].reset_index(drop=True), _text(len(steps), len(kept), cap, max_rows))


def _cap(counts: Ints, max_rows: int) -> int:
    """Return the most rows a cell may keep such that all cells together keep at most `max_rows`."""
    low, high = 0, int(counts.max())  # `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        fits = int(np.minimum(counts, middle).sum()) <= max_rows
        low, high = (middle, high) if fits else (low, middle)
    return low


def _text(num_before: int, num_kept: int, cap: int, max_rows: int) -> str:
    if cap > 1:
        how = f"at most {cap:,} steps of each (B, S), chosen at random; rarer combinations are whole"
    else:
        how = f"one step of {'each' if cap else 'some of the'} (B, S), chosen at random"
    return f"{num_kept:,} of {num_before:,} cleaned steps are used for the fit (max_rows {max_rows}): {how}"


def choose_rows(steps: pd.DataFrame, rows: int, *, seed: int) -> pd.DataFrame:
    """Return a random choice of steps in the order of the trace; all of them if there are not more."""
    if len(steps) <= rows:
        return steps.reset_index(drop=True)
    chosen = np.random.default_rng(seed).choice(len(steps), rows, replace=False)
    return steps.iloc[np.sort(chosen)].reset_index(drop=True)
