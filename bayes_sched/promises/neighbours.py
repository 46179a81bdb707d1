"""Steps in cells of neighbours: of one (B, S) where there are many of it, of similar ones elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

type Ints = NDArray[np.int64]
type Floats = NDArray[np.float64]


def neighbour_cells(batch_size: Floats, total_tokens: Floats, *, least: int) -> Ints:
    """Return the cell of each step, dims (step,), counted from 0.

    The steps are halved again and again, across whichever of log B and log S they spread more in, as long as
    both halves keep enough steps. Steps of one (B, S) are never parted.

    Parameters
    ----------
    batch_size, total_tokens : ndarray, dims (step,)
    least : int
        Steps of a cell; where there are fewer in all, they are one cell.
    """
    points = np.log(np.column_stack([batch_size, total_tokens]).astype(np.float64))
    cells = np.zeros(len(points), dtype=np.int64)
    waiting, number = [np.arange(len(points))], 0
    while waiting:
        rows = waiting.pop()
        halves = _halved(points[rows], least)
        if halves is None:
            cells[rows] = number
            number += 1
        else:
            waiting += [rows[~halves], rows[halves]]
    return cells


def _halved(points: Floats, least: int) -> NDArray[np.bool_] | None:
    """Return which points are in the lower half, None where there is no way to halve them."""
    for axis in np.argsort(-np.ptp(points, axis=0)) if len(points) else ():
        values, counts = np.unique(points[:, axis], return_counts=True)
        below = np.cumsum(counts)[:-1]
        smaller = np.minimum(below, len(points) - below)
        if len(smaller) and smaller.max() >= least:
            halves: NDArray[np.bool_] = points[:, axis] <= values[int(smaller.argmax())]
            return halves
    return None
