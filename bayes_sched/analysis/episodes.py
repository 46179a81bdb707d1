"""Stretches of steps in which a value is too high."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Episode(NamedTuple):
    """Steps `start` to `stop` - 1 of one file, of which `peak` holds the highest value."""

    start: int
    stop: int
    peak: int
    num_above: int


def episodes(
    values: NDArray[np.float64], *, above: float, below: float | None = None, join: int = 0
) -> list[Episode]:
    """Find the stretches in which a value is too high.

    A stretch begins with a value greater than `above`. It ends before the first value less than `below`, so
    that a value which swings around the limit is one stretch and not many; without `below`, it ends with the
    last value above the limit that has another one at most `join` steps before it.

    Parameters
    ----------
    values : ndarray, dims (step,)
        NaN is neither above nor below.
    above, below : float
        `below` is at most `above`.
    join : int
        Steps.

    Returns
    -------
    list of Episode
        In the order of the steps.
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
    counts = np.concatenate([[0], np.cumsum(over)])
    return [
        Episode(
            int(start),
            int(stop),
            int(start + np.nanargmax(values[start:stop])),
            int(counts[stop] - counts[start]),
        )
        for start, stop in zip(starts, stops, strict=True)
    ]


def _between(over: NDArray[np.bool_], under: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the starts and stops of the stretches from one that is over to the next that is under."""
    decides = over | under
    latest = np.maximum.accumulate(np.where(decides, np.arange(len(over)), -1))
    inside = np.zeros(len(over), bool)
    known = latest >= 0
    inside[known] = over[latest[known]]
    edges = np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
