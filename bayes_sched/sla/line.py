"""Lines of steps along which a limit is searched: decode-only batches, or token counts of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.region import TOLERANCE, Region
from bayes_sched.steps import steps_arrays

EXTRAPOLATION_FACTOR = 4
"""Outside the region of the data, a search goes up to so many times the largest seen requests or tokens."""

type Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Line:
    """Steps that differ in one whole number.

    Attributes
    ----------
    requests : int or None
        Requests of each step, and the number is its tokens; None: decode-only steps, and the number is both.
    """

    requests: int | None = None

    @property
    def first(self) -> int:
        """The smallest possible number."""
        return self.requests or 1

    def span(self, region: Region, *, extrapolate: bool = False) -> tuple[int, int] | None:
        """Return the first and the last number to search, None where the trace holds none.

        A convex region meets a line in one piece, so everything between the two has been seen.

        Parameters
        ----------
        region : Region
            Where the trace has steps.
        extrapolate : bool
            Whether to go outside of it.
        """
        largest = math.exp(float(region.corners[:, 0 if self.requests is None else 1].max()) + TOLERANCE)
        if extrapolate:
            return self.first, max(self.first, math.floor(EXTRAPOLATION_FACTOR * largest))
        numbers = np.arange(self.first, math.ceil(largest) + 1)
        if not len(numbers):
            return None
        steps = steps_on([self], numbers[None, :])
        seen = numbers[region.contains(steps["batch_size"], steps["total_tokens"]).to_numpy()]
        return (int(seen[0]), int(seen[-1])) if len(seen) else None


def steps_on(lines: list[Line], numbers: Ints) -> xr.Dataset:
    """Return the steps at some numbers of some lines.

    Parameters
    ----------
    lines : list of Line
    numbers : ndarray, dims (line, number)

    Returns
    -------
    Dataset, dims (step,)
        Line by line.
    """
    requests = np.array([line.requests or 0 for line in lines])[:, None]
    batch_size = np.where(requests == 0, numbers, requests)
    return steps_arrays(batch_size.ravel(), numbers.ravel())
