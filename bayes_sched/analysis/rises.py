"""Sudden rises of the schedule time that the load does not explain.

Scheduling takes longer for more requests and when requests are admitted, so a step is compared with its like:
its time is divided by what steps of the file with about as many requests and prefills (powers of two) take.
That is found by Tukey's median polish, which takes the logarithm of the time for the sum of an effect of the
kind of step and a level of its stretch of time, so that a kind which is frequent only after a rise is not
taken for a slow one. On these ratios, a rise is a place where

1. the median of the 100 steps after it is at least `factor` times the median of the 100 steps before it, and
   the median of the times themselves is higher, too,
2. the lower quartile after it lies above the upper quartile before it, which a few stray steps cannot bring
   about, however slow they are, and
3. the rise is worth a look: at least 1% of a median step.

Both windows are made of blocks of 50 steps, and the block in which the rise lies belongs to neither. Of
neighbouring places that qualify the one with the largest rise counts, and the step is found within its
surroundings by the best fit of two medians (least absolute deviations).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

BLOCK_STEPS = 50
NUM_BLOCKS = 2
"""Blocks in each of the two windows."""
MIN_SHARE_OF_STEP = 0.01
_POLISH_ROUNDS = 40
_WINDOW = NUM_BLOCKS * BLOCK_STEPS

type Floats = NDArray[np.float64]


class Rise(NamedTuple):
    """A sudden rise: the first step after it, its factor, and medians of the windows around it."""

    step: int
    factor: float
    before_ms: float
    after_ms: float
    requests_before: float
    requests_after: float


def schedule_rises(steps: pd.DataFrame, *, factor: float) -> list[Rise]:
    """Find the sudden rises of the schedule time in the steps of one file.

    Parameters
    ----------
    steps : DataFrame
        ``schedule_ms``, ``latency_ms``, ``batch_size``, ``num_prefill_reqs``, in the order of the file.
    factor : float
        Smallest rise, above 1.

    Returns
    -------
    list of Rise
        In the order of the steps, which are counted from 0.
    """
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
