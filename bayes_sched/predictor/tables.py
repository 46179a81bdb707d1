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
from math import asinh, exp, log, log1p, sinh
from typing import cast

import numpy as np
from numpy.typing import NDArray

from bayes_sched.arrays import Floats

type Column = list[float]
type Distribution = tuple[float, float, tuple[Column, Column, Column, Column], float, float]
"""Mean and width (ms), the logits at the four nodes around, and the shares of the way between them."""


class StepLookup:
    """Tables as lists, which Python reads fastest; arguments are trusted to lie in the grid."""

    def __init__(self, tables: Tables) -> None:
        end_b, end_s = (float(end) for end in tables.ends)
        moments = (*bilinear(tables.log_mean), *bilinear(tables.log_width))
        self._moments = list(zip(*(part.tolist() for part in moments), strict=True))
        self._cells_b, self._cells_s = (size - 1 for size in tables.log_mean.shape)
        self._per_log_b, self._per_log_s = self._cells_b / end_b, self._cells_s / end_s
        rows, self._nodes_s = tables.positions.shape[:2]
        self._coarse_b, self._coarse_s = rows - 1, self._nodes_s - 1
        self._coarse_per_log_b, self._coarse_per_log_s = self._coarse_b / end_b, self._coarse_s / end_s
        self._positions: list[Column] = tables.positions.reshape(-1, tables.positions.shape[2]).tolist()
        self._logits: list[Column] = tables.logits.reshape(-1, tables.logits.shape[2]).tolist()
        self._last_position, self._last_logit = tables.positions.shape[2] - 2, tables.logits.shape[2] - 2
        self._per_logit = (self._last_position + 1) / (2.0 * LOGIT_END)
        self._per_position = (self._last_logit + 1) / (2.0 * POSITION_END)

    def mean(self, batch_size: float, total_tokens: float) -> float:
        """Return the mean latency, ms."""
        return self._mean_and_width(log(batch_size), log(total_tokens))[0]

    def quantile(self, batch_size: float, total_tokens: float, q: float) -> float:
        """Return the latency that a step stays below with probability `q`, ms, at least 0."""
        log_b, log_s = log(batch_size), log(total_tokens)
        mean, width = self._mean_and_width(log_b, log_s)
        columns, share_b, share_s = self._around(self._positions, log_b, log_s)
        at = (log(q) - log1p(-q) + LOGIT_END) * self._per_logit
        return max(0.0, mean + width * sinh(_between(columns, share_b, share_s, at, self._last_position)))

    def probability_below(self, batch_size: float, total_tokens: float, latency_ms: float) -> float:
        """Return P(latency <= `latency_ms`); 0 where `latency_ms` is negative."""
        if latency_ms < 0.0:
            return 0.0
        logit = self.logit(self.distribution(batch_size, total_tokens), latency_ms)
        return 1.0 / (1.0 + exp(-logit))

    def distribution(self, batch_size: float, total_tokens: float) -> Distribution:
        """Return what :meth:`logit` needs of a step, for several latencies of it."""
        log_b, log_s = log(batch_size), log(total_tokens)
        mean, width = self._mean_and_width(log_b, log_s)
        return (mean, width, *self._around(self._logits, log_b, log_s))

    def logit(self, distribution: Distribution, latency_ms: float) -> float:
        """Return the logit of P(latency <= `latency_ms`), between -700 and 700."""
        mean, width, columns, share_b, share_s = distribution
        at = (asinh((latency_ms - mean) / width) + POSITION_END) * self._per_position
        return min(max(_between(columns, share_b, share_s, at, self._last_logit), -700.0), 700.0)

    def _mean_and_width(self, log_b: float, log_s: float) -> tuple[float, float]:
        at_b, at_s = log_b * self._per_log_b, log_s * self._per_log_s
        row, column = int(at_b), int(at_s)
        row = row if row < self._cells_b else self._cells_b - 1
        column = column if column < self._cells_s else self._cells_s - 1
        b, s = at_b - row, at_s - column
        m, m_b, m_s, m_bs, w, w_b, w_s, w_bs = self._moments[row * self._cells_s + column]
        return exp(m + b * (m_b + s * m_bs) + s * m_s), exp(w + b * (w_b + s * w_bs) + s * w_s)

    def _around(
        self, table: list[Column], log_b: float, log_s: float
    ) -> tuple[tuple[Column, Column, Column, Column], float, float]:
        at_b, at_s = log_b * self._coarse_per_log_b, log_s * self._coarse_per_log_s
        row, column = int(at_b), int(at_s)
        row = row if row < self._coarse_b else self._coarse_b - 1
        column = column if column < self._coarse_s else self._coarse_s - 1
        node = row * self._nodes_s + column
        above = node + self._nodes_s
        return (table[node], table[node + 1], table[above], table[above + 1]), at_b - row, at_s - column


def _between(
    columns: tuple[Column, Column, Column, Column], share_b: float, share_s: float, at: float, last: int
) -> float:
    """Return the value at place `at` of a blend of four columns; beyond their ends they go on straight."""
    index = min(max(int(at), 0), last)
    share = at - index
    first, second, third, fourth = columns
    one, two, three, four = first[index], second[index], third[index], fourth[index]
    index += 1
    one += share * (first[index] - one)
    two += share * (second[index] - two)
    three += share * (third[index] - three)
    four += share * (fourth[index] - four)
    low = one + share_s * (two - one)
    return low + share_b * (three + share_s * (four - three) - low)


type Bilinear = tuple[Floats, Floats, Floats, Floats]
"""Value, change along B, change along S and change of one along the other, of each cell; dims (cell,)."""

LOGIT_END = 12.0
"""Logits of the quantile tables reach from minus this to this: probabilities from 6e-6 to 1 - 6e-6."""
POSITION_END = 10.0
"""Standardised latencies of the probability tables reach as far, as arcsinh: 11,000 widths."""

_BLOCK = 2**14  # steps at a time: temporaries that stay in the cache are twice as fast


@dataclass(frozen=True, eq=False)
class Tables:
    """A fit as tables."""

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
        mean, width, positions, logits = (getattr(self, name).shape for name in list(wanted)[1:])
        if mean != width or positions[:2] != logits[:2] or min(*positions, *logits) < 2:
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
        cell = row * self.cells_s + column
        return _Places(cell, row + column + row * self.cells_s, self.cells_s + 1, at_b - row, at_s - column)


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
