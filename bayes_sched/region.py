"""Where a trace has seen steps; outside of it, a prediction is an extrapolation of the equation.

The region is the convex hull of the seen (log B, log S), widened by :data:`TOLERANCE`. Logarithms, because a
factor of two means the same at 4 requests and at 400. A decode-only trace (S = B) has a segment for a hull, a
trace of one kind of step a point. NumPy alone is needed to ask it, for the schedulers that do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from bayes_sched.arrays import Bools, Floats

TOLERANCE = 0.05
"""How far outside the hull still counts as seen: about 5 % in B or in S."""


@dataclass(frozen=True, eq=False)
class Region:
    """The steps a trace covers; :func:`~bayes_sched.steps.region_of` finds it.

    Attributes
    ----------
    corners : ndarray, dims (corner, axis)
        (log B, log S) of the hull's corners, counter-clockwise; two for a segment, one for a point.
    equations : ndarray, dims (side, 3)
        Outer normals and offsets of the hull's sides; empty for a segment or a point.
    """

    corners: Floats
    equations: Floats

    @property
    def hull(self) -> Floats:
        """Requests and tokens of the corners, dims (corner, axis); not closed."""
        hull: Floats = np.exp(self.corners)
        return hull

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

    def contains(self, batch_size: ArrayLike, total_tokens: ArrayLike) -> Bools:
        """Return whether steps lie in the region; arrays that broadcast, each value at least 1."""
        arrays = np.broadcast_arrays(np.asarray(batch_size, float), np.asarray(total_tokens, float))
        inside: Bools = self._distance(np.log(np.stack(arrays, axis=-1))) <= TOLERANCE
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
