"""Where a trace has seen steps; outside of it, a prediction is an extrapolation of the equation.

A step is covered where the trace holds at least :data:`LEAST` steps like it: of its kind (decode-only, or
with more tokens than requests), with requests and tokens each within a factor of about :data:`ALIKE`. Half an
octave either way is the smallest factor with which a sweep over powers of two leaves no holes. Beyond the
largest and the smallest seen, :data:`TOLERANCE` at most. NumPy alone is needed to ask it, for the schedulers
that do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from bayes_sched.arrays import Bools, Floats, Ints

ALIKE = math.sqrt(2.0)
"""Steps are alike where requests and tokens, each, are within this factor, known to 2 %."""
LEAST = 5
"""A step is covered where so many steps like it were seen: one may be a freak, a handful is a habit."""
TOLERANCE = 0.05
"""How far beyond the largest seen requests or tokens still counts as seen: 5 %."""

_PER_OCTAVE = 16
_REACH = _PER_OCTAVE // 2  # of a raster in which an octave has so many places: ALIKE


@dataclass(frozen=True, eq=False)
class Region:
    """The steps a trace covers; :func:`region_of` finds it.

    Attributes
    ----------
    cells : ndarray, dims (cell, 3)
        Requests, tokens and number of steps of each combination that was seen, at least one; of the number
        no more than `LEAST` is told.
    """

    cells: Floats

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        (b_low, s_low), (b_high, s_high) = self.smallest, self.largest
        if len(self.cells) == 1:
            return f"The trace covers one kind of step: {b_low:,.0f} requests, {s_low:,.0f} tokens."
        return (
            f"The trace covers {b_low:,.0f} to {b_high:,.0f} requests and {s_low:,.0f} to {s_high:,.0f} "
            "tokens a step, not in every combination."
        )

    @cached_property
    def smallest(self) -> tuple[float, float]:
        """Fewest requests, and fewest tokens, of any seen step."""
        b, s = self.cells[:, :2].min(axis=0).tolist()
        return b, s

    @cached_property
    def largest(self) -> tuple[float, float]:
        """Most requests, and most tokens, of any seen step."""
        b, s = self.cells[:, :2].max(axis=0).tolist()
        return b, s

    @cached_property
    def reach(self) -> tuple[int, int]:
        """The most requests, and the most tokens, that a covered step may have."""
        b, s = (math.floor(end * (1.0 + TOLERANCE)) for end in self.largest)
        return b, s

    def contains(self, batch_size: ArrayLike, total_tokens: ArrayLike) -> Bools:
        """Return whether steps are covered; arrays that broadcast, each value at least 1."""
        b, s = np.broadcast_arrays(np.asarray(batch_size, float), np.asarray(total_tokens, float))
        (low_b, low_s), (high_b, high_s) = self._ends
        inside = (b >= low_b) & (b <= high_b) & (s >= low_s) & (s <= high_s)
        decode, mixed = self._covered
        row, column = (
            np.minimum(_place(values), size - 1) for values, size in zip((b, s), mixed.shape, strict=True)
        )
        covered: Bools = inside & np.where(s > b, mixed[row, column], decode[row])
        return covered

    def contains_step(self, batch_size: float, total_tokens: float) -> bool:
        """Return whether one step is covered: the same in plain Python, in a microsecond."""
        (low_b, low_s), (high_b, high_s) = self._ends
        if not (low_b <= batch_size <= high_b and low_s <= total_tokens <= high_s):
            return False
        row = int(_PER_OCTAVE * math.log2(batch_size) + 0.5)
        decode, mixed = self._lists
        if total_tokens <= batch_size:
            return decode[row]
        return mixed[row][int(_PER_OCTAVE * math.log2(total_tokens) + 0.5)]

    def random_steps(self, rng: np.random.Generator, num: int) -> Floats:
        """Return steps drawn from all over the region, evenly on logarithmic scales, dims (step, 2)."""
        decode, mixed = self._covered
        kinds = np.concatenate([np.argwhere(decode) * [1, 1], np.argwhere(mixed)])
        chosen = rng.integers(len(kinds), size=num)
        points = np.exp2((kinds[chosen] + rng.uniform(-0.5, 0.5, (num, 2))) / _PER_OCTAVE)
        is_decode = chosen < decode.sum()
        points[is_decode, 1] = points[is_decode, 0]
        possible = (points[:, 0] >= 1.0) & (points[:, 1] >= points[:, 0])
        return points[possible & self.contains(*points.T)]

    @cached_property
    def _ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Requests and tokens from which and up to which a step may be covered."""
        wide = 1.0 + TOLERANCE
        (low_b, low_s), (high_b, high_s) = self.smallest, self.largest
        return (low_b / wide, low_s / wide), (high_b * wide, high_s * wide)

    @cached_property
    def _covered(self) -> tuple[Bools, Bools]:
        """Whether decode-only steps are covered, dims (b,), and others, dims (b, s), on a raster."""
        b, s, count = self.cells.T
        rows, columns = _place(b), _place(s)
        shape = (int(rows.max()) + 3, int(columns.max()) + 3)  # TOLERANCE is one place, rounded up
        decode, mixed = np.zeros(shape[0]), np.zeros(shape)
        is_decode = s <= b
        np.add.at(decode, rows[is_decode], count[is_decode])
        np.add.at(mixed, (rows[~is_decode], columns[~is_decode]), count[~is_decode])
        return _near(decode, 0) >= LEAST, _near(_near(mixed, 0), 1) >= LEAST

    @cached_property
    def _lists(self) -> tuple[list[bool], list[list[bool]]]:
        decode, mixed = self._covered
        return decode.tolist(), mixed.tolist()


def region_of(
    batch_size: NDArray[np.generic],
    total_tokens: NDArray[np.generic],
    count: NDArray[np.generic] | int = 1,
) -> Region:
    """Return the region that some steps cover, `count` of each, dims (cell,): no value below 1."""
    sizes = np.column_stack([batch_size, total_tokens]).astype(np.float64)
    distinct, cell = np.unique(sizes, axis=0, return_inverse=True)
    counts = np.bincount(cell.ravel(), weights=np.broadcast_to(count, len(sizes)))
    return Region(np.column_stack([distinct, np.minimum(counts, LEAST)]))


def _place(values: Floats) -> Ints:
    """Return where values lie on a logarithmic raster."""
    place: Ints = (_PER_OCTAVE * np.log2(values) + 0.5).astype(np.int64)
    return place


def _near(counts: Floats, axis: int) -> Floats:
    """Return the sums over the places within reach along an axis."""
    width = [(0, 0)] * counts.ndim
    width[axis] = (_REACH, _REACH)
    near: Floats = sliding_window_view(np.pad(counts, width), 2 * _REACH + 1, axis=axis).sum(axis=-1)
    return near
