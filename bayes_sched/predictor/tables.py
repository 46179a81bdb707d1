r"""The tables of a compiled fit, and their answers for many steps at once; numpy alone.

Everything lies on uniform grids over (log B, log S), so that a place is arithmetic and not a search:

- a fine grid holds the logarithms of the mean :math:`m` and of the width :math:`w` of a step's latency;
- a coarse one holds its shape, for which standardised latency is taken as
  :math:`y = \sinh^{-1}((T - m) / w)` and probability as its logit: in these two a distribution with
  power-law tails is nearly a straight line. ``positions`` are y at even logits (for quantiles), ``logits``
  the logit at even y (for probabilities).

Between nodes everything is linear. A blend of rising columns rises, so quantiles cannot cross.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

type Floats = NDArray[np.float64]
type Bilinear = tuple[Floats, Floats, Floats, Floats]
"""Value, change along B, change along S and change of one along the other, of each cell; dims (cell,)."""

LOGIT_END = 12.0
"""Logits of the quantile tables reach from minus this to this: probabilities from 6e-6 to 1 - 6e-6."""
POSITION_END = 10.0
"""Standardised latencies of the probability tables reach as far, as arcsinh: 11,000 widths."""

_BLOCK = 2**14  # steps at a time: temporaries that stay in the cache are twice as fast


@dataclass(frozen=True, eq=False)
class Tables:
    """A fit as tables.

    Attributes
    ----------
    ends : ndarray, dims (axis,)
        Greatest log B and log S of the grids; they begin at 0, one request and one token.
    log_mean, log_width : ndarray, dims (node_b, node_s)
        Logarithms of the mean latency and of the width of its distribution, both in ms.
    positions : ndarray, dims (coarse_b, coarse_s, logit)
    logits : ndarray, dims (coarse_b, coarse_s, position)
    """

    ends: Floats
    log_mean: Floats
    log_width: Floats
    positions: Floats
    logits: Floats

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the arrays."""
        return tuple(field.name for field in fields(cls))

    def problem(self) -> str:
        """Return what makes the arrays no tables, in words; empty if nothing does."""
        wanted = {"ends": 1, "log_mean": 2, "log_width": 2, "positions": 3, "logits": 3}
        for name, ndim in wanted.items():
            array = getattr(self, name)
            if array.dtype != np.float64 or array.ndim != ndim or not np.isfinite(array).all():
                return f"{name} is not an array of {ndim} dims of finite numbers"
        if self.ends.shape != (2,) or self.ends.min() <= 0.0 or min(self.log_mean.shape) < 2:
            return "the grid is empty"
        if self.log_mean.shape != self.log_width.shape or min(*self.positions.shape, *self.logits.shape) < 2:
            return "the tables do not go together"
        if self.positions.shape[:2] != self.logits.shape[:2]:
            return "the tables do not go together"
        if (np.diff(self.positions, axis=2) < 0).any() or (np.diff(self.logits, axis=2) < 0).any():
            return "a distribution function falls"
        return ""

    def mean(self, batch_size: Floats, total_tokens: Floats) -> Floats:
        """Return the mean latency, ms, dims (step,)."""
        result = np.empty(batch_size.shape)
        for part in _blocks(batch_size.size):
            fine = self._fine.place(np.log(batch_size[part]), np.log(total_tokens[part]))
            result[part] = np.exp(fine.blend(self._mean_cells))
        return result

    def quantile(self, batch_size: Floats, total_tokens: Floats, q: float) -> Floats:
        """Return the latency that a step stays below with probability `q`, ms, at least 0, dims (step,)."""
        at = (np.log(q) - np.log1p(-q) + LOGIT_END) * (self.positions.shape[2] - 1) / (2.0 * LOGIT_END)
        level = min(max(int(at), 0), self.positions.shape[2] - 2)
        left, right = self.positions[:, :, level], self.positions[:, :, level + 1]
        shape = bilinear(left + (at - level) * (right - left))
        result = np.empty(batch_size.shape)
        for part in _blocks(batch_size.size):
            log_b, log_s = np.log(batch_size[part]), np.log(total_tokens[part])
            fine, coarse = self._fine.place(log_b, log_s), self._coarse.place(log_b, log_s)
            width = np.exp(fine.blend(self._width_cells))
            result[part] = np.exp(fine.blend(self._mean_cells)) + width * np.sinh(coarse.blend(shape))
        return np.maximum(result, 0.0, out=result)

    def probability_below(self, batch_size: Floats, total_tokens: Floats, latency_ms: Floats) -> Floats:
        """Return P(latency <= `latency_ms`), dims (step,); 0 where `latency_ms` is negative."""
        result = np.empty(batch_size.shape)
        for part in _blocks(batch_size.size):
            log_b, log_s, x = np.log(batch_size[part]), np.log(total_tokens[part]), latency_ms[part]
            fine, coarse = self._fine.place(log_b, log_s), self._coarse.place(log_b, log_s)
            z = (x - np.exp(fine.blend(self._mean_cells))) * np.exp(-fine.blend(self._width_cells))
            logit = coarse.between(self.logits, np.arcsinh(z), POSITION_END)
            result[part] = np.where(x < 0.0, 0.0, 1.0 / (1.0 + np.exp(-logit)))
        return result

    @cached_property
    def _fine(self) -> _Grid:
        return _Grid(self.ends, self.log_mean.shape)

    @cached_property
    def _coarse(self) -> _Grid:
        return _Grid(self.ends, self.positions.shape[:2])

    @cached_property
    def _mean_cells(self) -> Bilinear:
        return bilinear(self.log_mean)

    @cached_property
    def _width_cells(self) -> Bilinear:
        return bilinear(self.log_width)


def bilinear(values: Floats) -> Bilinear:
    """Return the coefficients of the cells between nodes, dims (node_b, node_s) -> four of (cell,)."""
    corner, next_b, next_s, both = values[:-1, :-1], values[1:, :-1], values[:-1, 1:], values[1:, 1:]
    parts = (corner, next_b - corner, next_s - corner, both - next_b - next_s + corner)
    return cast("Bilinear", tuple(np.ascontiguousarray(part).ravel() for part in parts))


def as_stored(values: Floats) -> Floats:
    """Return values with the precision that a file keeps of shapes: seven digits."""
    return values.astype(np.float32).astype(np.float64)


class _Grid:
    """A uniform grid of nodes from 0 to `ends` in (log B, log S)."""

    def __init__(self, ends: Floats, shape: tuple[int, ...]) -> None:
        self.cells_b, self.cells_s = shape[0] - 1, shape[1] - 1
        self.per_log_b, self.per_log_s = self.cells_b / float(ends[0]), self.cells_s / float(ends[1])

    def place(self, log_b: Floats, log_s: Floats) -> _Places:
        at_b, at_s = log_b * self.per_log_b, log_s * self.per_log_s
        # Indices of numpy's own width: any other is converted at each access.
        row = np.minimum(at_b.astype(np.intp), self.cells_b - 1)
        column = np.minimum(at_s.astype(np.intp), self.cells_s - 1)
        return _Places(
            row * self.cells_s + column,
            row + column + row * self.cells_s,
            self.cells_s + 1,
            at_b - row,
            at_s - column,
        )


@dataclass(frozen=True, slots=True)
class _Places:
    """Where steps lie in a grid: cell, node at its corner, nodes of a row, and the shares of the way."""

    cell: NDArray[np.intp]
    node: NDArray[np.intp]
    stride: int
    share_b: Floats
    share_s: Floats

    def blend(self, cells: Bilinear) -> Floats:
        """Return values between the nodes of a cell."""
        corner, along_b, along_s, both = (part.take(self.cell) for part in cells)
        return corner + self.share_b * (along_b + self.share_s * both) + self.share_s * along_s

    def between(self, table: Floats, value: Floats, end: float) -> Floats:
        """Return values between nodes in B, S and a third axis, even from -`end` to `end`."""
        size = table.shape[2]
        at = (value + end) * ((size - 1) / (2.0 * end))
        index = np.clip(at, 0.0, size - 2.0).astype(np.intp)
        share = at - index
        index += self.node * size
        flat = table.reshape(-1)
        corners: list[Floats] = []
        for step in (0, size, self.stride * size, (self.stride + 1) * size):
            place = index + step
            left = flat.take(place)
            place += 1
            corners.append(left + share * (flat.take(place) - left))
        low = corners[0] + self.share_s * (corners[1] - corners[0])
        high = corners[2] + self.share_s * (corners[3] - corners[2])
        return low + self.share_b * (high - low)


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, size, _BLOCK)]
