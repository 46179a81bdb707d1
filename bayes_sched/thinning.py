"""Chooses the steps of a fit where a trace holds more than are worth their time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.errors import InputError

DEFAULT_MAX_ROWS = 20_000
"""Rows of a fit unless told otherwise. A gradient costs about 35 ns a row, so that these take 0.7 ms and a
fit about a minute; they already narrow every quantity that data identify far below what a decision needs."""

_CELL = ["batch_size", "total_tokens"]


@dataclass(frozen=True, slots=True)
class Thinned:
    """What `thin_steps` kept.

    Attributes
    ----------
    steps : DataFrame
        The chosen steps in their order, rows counted from 0.
    text : str or None
        What was left out and how, a sentence; None if nothing was.
    """

    steps: pd.DataFrame
    text: str | None = None


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
        raise InputError(f"--max-rows is {max_rows:,}: give at least 1")
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


def _cap(counts: NDArray[np.int64], max_rows: int) -> int:
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
    return f"{num_kept:,} of {num_before:,} cleaned steps are used for the fit (--max-rows {max_rows}): {how}"


def choose_rows(steps: pd.DataFrame, rows: int, *, seed: int) -> pd.DataFrame:
    """Return a random choice of steps in the order of the trace; all of them if there are not more."""
    if len(steps) <= rows:
        return steps.reset_index(drop=True)
    chosen = np.random.default_rng(seed).choice(len(steps), rows, replace=False)
    return steps.iloc[np.sort(chosen)].reset_index(drop=True)
