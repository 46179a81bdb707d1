"""Where a trace has seen steps; outside of it, a prediction is an extrapolation of the equation.

The region is the convex hull of the seen (log B, log S), widened by :data:`TOLERANCE`. Logarithms, because a
factor of two means the same at 4 requests and at 400. A decode-only trace (S = B) has a segment for a hull, a
trace of one kind of step a point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bayes_sched.arrays import Floats

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

TOLERANCE = 0.05
"""How far outside the hull still counts as seen: about 5 % in B or in S."""


@dataclass(frozen=True, eq=False)
class Region:
    """The steps a trace covers.

    Attributes
    ----------
    corners : ndarray, dims (corner, axis)
        (log B, log S) of the hull's corners, counter-clockwise; two for a segment, one for a point.
    equations : ndarray, dims (side, 3)
        Outer normals and offsets of the hull's sides; empty for a segment or a point.
    """

    corners: Floats
    equations: Floats

    @classmethod
    def of(cls, batch_size: NDArray[np.generic], total_tokens: NDArray[np.generic]) -> Region:
        """Return the region that some steps cover.

        Parameters
        ----------
        batch_size, total_tokens : ndarray, dims (cell,)
            Requests and tokens of the seen steps, at least one, each at least 1.
        """
        points = np.unique(np.log(np.column_stack([batch_size, total_tokens]).astype(np.float64)), axis=0)
        centre = points.mean(axis=0)
        _, _, axes = np.linalg.svd(points - centre, full_matrices=True)
        along, across = (points - centre) @ axes.T[:, 0], (points - centre) @ axes.T[:, 1]
        # A hull much thinner than the tolerance is a segment; Qhull would refuse an exact one.
        if len(points) < 3 or np.ptp(across) < 1e-3 * TOLERANCE:
            ends = points[[int(np.argmin(along)), int(np.argmax(along))]]
            return cls(np.unique(ends, axis=0), np.empty((0, 3)))
        from scipy.spatial import ConvexHull

        hull = ConvexHull(points)
        return cls(points[hull.vertices], hull.equations)

    @property
    def hull(self) -> pd.DataFrame:
        """The hull's corners in order, to draw it: ``batch_size``, ``total_tokens``; not closed."""
        import pandas as pd  # here: a compiled predictor asks for the region without the library

        return pd.DataFrame(np.exp(self.corners), columns=["batch_size", "total_tokens"])

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        (b_low, s_low), (b_high, s_high) = np.exp(self.corners.min(axis=0)), np.exp(self.corners.max(axis=0))
        if len(self.corners) == 1:
            return f"The trace covers one kind of step: {b_low:,.0f} requests, {s_low:,.0f} tokens."
        return (
            f"The trace covers {b_low:,.0f} to {b_high:,.0f} requests and {s_low:,.0f} to {s_high:,.0f} "
            "tokens a step, not in every combination."
        )

    def contains(self, batch_size: xr.DataArray, total_tokens: xr.DataArray) -> xr.DataArray:
        """Return whether steps lie in the region.

        Parameters
        ----------
        batch_size, total_tokens : DataArray
            Requests and tokens, at least 1; any dims that broadcast.

        Returns
        -------
        DataArray of bool
            The dims of both.
        """
        import xarray as xr

        batch_size, total_tokens = xr.broadcast(batch_size, total_tokens)
        inside = self.contains_arrays(
            batch_size.to_numpy().astype(np.float64), total_tokens.to_numpy().astype(np.float64)
        )
        return batch_size.copy(data=inside)

    def contains_arrays(self, batch_size: Floats, total_tokens: Floats) -> NDArray[np.bool_]:
        """Return whether steps lie in the region; arrays of one shape, each value at least 1."""
        inside: NDArray[np.bool_] = (
            self._distance(np.log(np.stack([batch_size, total_tokens], axis=-1))) <= TOLERANCE
        )
        return inside

    def contains_step(self, batch_size: float, total_tokens: float) -> bool:
        """Return whether one step lies in the region: the same in plain Python, in a microsecond."""
        log_b, log_s = math.log(batch_size), math.log(total_tokens)
        if self._sides:
            for normal_b, normal_s, limit in self._sides:  # a generator would double the time
                if normal_b * log_b + normal_s * log_s > limit:
                    return False
            return True
        start_b, start_s, side_b, side_s, length = self._segment
        log_b, log_s = log_b - start_b, log_s - start_s
        share = min(max((log_b * side_b + log_s * side_s) / length, 0.0), 1.0) if length else 0.0
        return math.hypot(log_b - share * side_b, log_s - share * side_s) <= TOLERANCE

    @cached_property
    def _sides(self) -> list[tuple[float, float, float]]:
        """Normal and limit of each side, as Python's own numbers."""
        return [(b, s, TOLERANCE - offset) for b, s, offset in self.equations.tolist()]

    @cached_property
    def _segment(self) -> tuple[float, float, float, float, float]:
        """Start, side and squared length of a hull that is a segment, as Python's own numbers."""
        (start_b, start_s), (end_b, end_s) = self.corners[0].tolist(), self.corners[-1].tolist()
        side_b, side_s = end_b - start_b, end_s - start_s
        return start_b, start_s, side_b, side_s, side_b**2 + side_s**2

    def _distance(self, points: Floats) -> Floats:
        """Return how far points lie outside, at most 0 inside; dims (..., axis) -> (...)."""
        if len(self.equations):
            outside: Floats = np.max(points @ self.equations[:, :2].T + self.equations[:, 2], axis=-1)
            return outside
        start, end = self.corners[0], self.corners[-1]
        side = end - start
        length = float(side @ side)
        share = np.clip((points - start) @ side / length, 0.0, 1.0) if length else np.zeros(points.shape[:-1])
        nearest: Floats = np.linalg.norm(points - start - share[..., None] * side, axis=-1)
        return nearest
