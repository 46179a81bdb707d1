r"""The tables of a compiled fit, and their answers for many steps at once; numpy alone.

Steps that only decode (S = B) and steps with prefill have tables of their own. Nodes are whole numbers of
requests and tokens, the last of each level and the first of the next among them, so that nothing is
interpolated across the edge of a level. Nodes are sought by bisection, and between them all is linear in
log B and log S:

- a fine grid holds the mean :math:`m` of a step's latency and its width :math:`w`. Loads of a step, such as
  its context, raise :math:`m = m_0 + \sum_k s_k c_k`, and the width with it, :math:`w^2 = f + r m^2`;
- a coarse one holds its shape, for which standardised latency is taken as
  :math:`y = \sinh^{-1}((T - m) / w)` and probability as its logit: in these two a distribution with
  power-law tails is nearly a straight line. ``positions`` are y at even logits (for quantiles), and their
  inverse the logit at even y (for probabilities).

A blend of rising columns rises, so quantiles cannot cross.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields
from functools import cached_property
from math import asinh, exp, log, log1p, sinh, sqrt
from typing import cast

import numpy as np
from numpy.typing import NDArray

from bayes_sched.arrays import Floats

type Column = list[float]
type Columns = tuple[Column, Column, Column, Column]
type Loads = tuple[float, ...]
"""What a step brings with it besides its size: the loads of the tables, all or none."""
type Distribution = tuple[float, float, Columns, float, float]
"""Mean and width (ms), the logits at the four nodes around, and the shares of the way between them."""

LOGIT_END = 12.0
"""Logits of the quantile tables reach from minus this to this: probabilities from 6e-6 to 1 - 6e-6."""
POSITION_END = 10.0
"""Standardised latencies of the probability tables reach as far, as arcsinh: 11,000 widths."""

_NUM_POSITIONS = 161
_PER_POSITION = (_NUM_POSITIONS - 1) / (2.0 * POSITION_END)
_FAR, _LARGEST_LOGIT = 1e4, 300.0
_BLOCK = 2**14  # steps at a time: temporaries that stay in the cache are twice as fast


class StepLookup:
    """Tables as lists, which Python reads fastest; arguments are trusted to lie in the grid."""

    def __init__(self, tables: Tables) -> None:
        self._fine, self._coarse = tables.fine.lists, tables.coarse.lists
        self._cells_s, self._nodes_s = tables.fine.cells_s, tables.coarse.cells_s + 1
        self._stride = tables.coarse.stride
        self._moments = _as_lists(*bilinear(tables.log_mean), *bilinear(tables.relative))
        further = (*tables.slopes, tables.floor) if len(tables.slopes) else ()
        self._further = list(zip(*(_as_lists(*bilinear(values)) for values in further), strict=True))
        self._positions: list[Column] = tables.positions.reshape(-1, tables.positions.shape[2]).tolist()
        self._logits: list[Column] = tables.logits.reshape(-1, _NUM_POSITIONS).tolist()
        self._last_logit = tables.positions.shape[2] - 2
        self._per_logit = (self._last_logit + 1) / (2.0 * LOGIT_END)

    def mean(self, batch_size: float, total_tokens: float, loads: Loads = ()) -> float:
        """Return the mean latency, ms."""
        return self._mean_and_width(log(batch_size), log(total_tokens), loads)[0]

    def quantile(self, batch_size: float, total_tokens: float, q: float, loads: Loads = ()) -> float:
        """Return the latency that a step stays below with probability `q`, ms, at least 0."""
        log_b, log_s = log(batch_size), log(total_tokens)
        mean, width = self._mean_and_width(log_b, log_s, loads)
        columns, share_b, share_s = self._around(self._positions, log_b, log_s)
        at = (log(q) - log1p(-q) + LOGIT_END) * self._per_logit
        return max(0.0, mean + width * sinh(_between(columns, share_b, share_s, at, self._last_logit)))

    def distribution(self, batch_size: float, total_tokens: float, loads: Loads = ()) -> Distribution:
        """Return what :func:`logit_below` needs of a step, for several latencies of it."""
        log_b, log_s = log(batch_size), log(total_tokens)
        mean, width = self._mean_and_width(log_b, log_s, loads)
        return (mean, width, *self._around(self._logits, log_b, log_s))

    def _mean_and_width(self, log_b: float, log_s: float, loads: Loads) -> tuple[float, float]:
        inner_b, inner_s, start_b, start_s, per_b, per_s = self._fine
        row, column = bisect_right(inner_b, log_b), bisect_right(inner_s, log_s)
        b, s = (log_b - start_b[row]) * per_b[row], (log_s - start_s[column]) * per_s[column]
        cell = row * self._cells_s + column
        m, m_b, m_s, m_bs, r, r_b, r_s, r_bs = self._moments[cell]
        mean = exp(m + b * (m_b + s * m_bs) + s * m_s)
        relative = r + b * (r_b + s * r_bs) + s * r_s
        if not loads:
            return mean, mean * sqrt(relative)
        further = self._further[cell]
        for load, (v, v_b, v_s, v_bs) in zip(loads, further, strict=False):
            mean += load * (v + b * (v_b + s * v_bs) + s * v_s)
        v, v_b, v_s, v_bs = further[-1]
        floor = v + b * (v_b + s * v_bs) + s * v_s
        return mean, sqrt(floor + relative * mean * mean)

    def _around(self, table: list[Column], log_b: float, log_s: float) -> tuple[Columns, float, float]:
        inner_b, inner_s, start_b, start_s, per_b, per_s = self._coarse
        row, column = bisect_right(inner_b, log_b), bisect_right(inner_s, log_s)
        node = row * self._nodes_s + column
        above = node + self._stride
        columns = table[node], table[node + 1], table[above], table[above + 1]
        return columns, (log_b - start_b[row]) * per_b[row], (log_s - start_s[column]) * per_s[column]


def logit_below(step: Distribution, latency_ms: float) -> float:
    """Return the logit of P(latency <= `latency_ms`), between -700 and 700."""
    mean, width, columns, share_b, share_s = step
    at = (asinh((latency_ms - mean) / width) + POSITION_END) * _PER_POSITION
    return min(max(_between(columns, share_b, share_s, at, _NUM_POSITIONS - 2), -700.0), 700.0)


def _between(columns: Columns, share_b: float, share_s: float, at: float, last: int) -> float:
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


def _as_lists(*parts: Floats) -> list[tuple[float, ...]]:
    return list(zip(*(part.tolist() for part in parts), strict=True))


NODES = ("fine_b", "fine_s", "coarse_b", "coarse_s")
"""Names of the nodes among the arrays of tables."""
type Bilinear = tuple[Floats, Floats, Floats, Floats]
"""Value, change along B, change along S and change of one along the other, of each cell; dims (cell,)."""


@dataclass(frozen=True, eq=False)
class Tables:
    """A kind of step of a fit as tables. Nodes are logarithms; one node of B: S decides alone, as S = B."""

    fine_b: Floats
    fine_s: Floats
    coarse_b: Floats
    coarse_s: Floats
    log_mean: Floats
    """Of steps without loads; dims (fine_b, fine_s), as the next two."""
    relative: Floats
    floor: Floats
    slopes: Floats
    """What a unit of each load adds to the mean, ms; dims (load, fine_b, fine_s)."""
    positions: Floats
    """dims (coarse_b, coarse_s, logit)"""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the arrays."""
        return tuple(field.name for field in fields(cls))

    def problem(self) -> str:
        """Return what makes the arrays no tables, in words; empty if nothing does."""
        for name, ndim in zip(self.names(), (1, 1, 1, 1, 2, 2, 2, 3, 3), strict=True):
            array = getattr(self, name)
            if array.dtype != np.float64 or array.ndim != ndim or not np.isfinite(array).all():
                return f"{name} is not an array of {ndim} dims of finite numbers"
        nodes = [getattr(self, name) for name in NODES]
        if not self.fine_b.size == 1 == self.coarse_b.size and min(n.size for n in nodes) < 2:
            return "the grid is empty"
        if self.fine_s.size < 2 or self.coarse_s.size < 2 or any((np.diff(n) <= 0.0).any() for n in nodes):
            return "the grid does not rise"
        fine, coarse = ((b.size, s.size) for b, s in (nodes[:2], nodes[2:]))
        if any(array.shape[-2:] != fine for array in (self.log_mean, self.relative, self.floor, self.slopes)):
            return "the tables do not go together"
        if self.positions.shape[:2] != coarse or self.positions.shape[2] < 2:
            return "the tables do not go together"
        if (self.relative < 0.0).any() or (self.floor < 0.0).any():
            return "a width is negative"
        return "a distribution function falls" if (np.diff(self.positions, axis=2) < 0).any() else ""

    def mean(self, batch_size: Floats, total_tokens: Floats, loads: Floats) -> Floats:
        """Return the mean latency, ms, dims (step,); loads, dims (load, step), are none or all."""
        result = np.empty(batch_size.shape)
        for part in _blocks(batch_size.size):
            result[part] = self._moments(
                np.log(batch_size[part]), np.log(total_tokens[part]), loads[:, part]
            )[0]
        return result

    def quantile(self, batch_size: Floats, total_tokens: Floats, q: float, loads: Floats) -> Floats:
        """Return the latency that a step stays below with probability `q`, ms, at least 0, dims (step,)."""
        at = (np.log(q) - np.log1p(-q) + LOGIT_END) * (self.positions.shape[2] - 1) / (2.0 * LOGIT_END)
        level = min(max(int(at), 0), self.positions.shape[2] - 2)
        left, right = self.positions[:, :, level], self.positions[:, :, level + 1]
        shape = bilinear(left + (at - level) * (right - left))
        result = np.empty(batch_size.shape)
        for part in _blocks(batch_size.size):
            log_b, log_s = np.log(batch_size[part]), np.log(total_tokens[part])
            mean, width = self._moments(log_b, log_s, loads[:, part])
            result[part] = mean + width * np.sinh(self.coarse.place(log_b, log_s).blend(shape))
        return np.maximum(result, 0.0, out=result)

    def probability_below(
        self, batch_size: Floats, total_tokens: Floats, latency_ms: Floats, loads: Floats
    ) -> Floats:
        """Return P(latency <= `latency_ms`), dims (step,); 0 where `latency_ms` is negative."""
        result = np.empty(batch_size.shape)
        for part in _blocks(batch_size.size):
            log_b, log_s, x = np.log(batch_size[part]), np.log(total_tokens[part]), latency_ms[part]
            mean, width = self._moments(log_b, log_s, loads[:, part])
            place = self.coarse.place(log_b, log_s)
            logit = place.between(self.logits, np.arcsinh((x - mean) / width), POSITION_END)
            result[part] = np.where(x < 0.0, 0.0, 1.0 / (1.0 + np.exp(-logit)))
        return result

    def _moments(self, log_b: Floats, log_s: Floats, loads: Floats) -> tuple[Floats, Floats]:
        place = self.fine.place(log_b, log_s)
        log_mean, relative, floor, *slopes = self._cells
        mean = np.exp(place.blend(log_mean))
        if not len(loads):
            return mean, mean * np.sqrt(place.blend(relative))
        mean += sum(place.blend(slope) * load for slope, load in zip(slopes, loads, strict=True))
        return mean, np.sqrt(place.blend(floor) + place.blend(relative) * mean * mean)

    @cached_property
    def lookup(self) -> StepLookup:
        """The same tables for one step at a time."""
        return StepLookup(self)

    @cached_property
    def fine(self) -> Grid:
        """Where mean and width are."""
        return Grid(self.fine_b, self.fine_s)

    @cached_property
    def coarse(self) -> Grid:
        """Where shapes are."""
        return Grid(self.coarse_b, self.coarse_s)

    @cached_property
    def logits(self) -> Floats:
        """Logits at even standardised latencies, dims (coarse_b, coarse_s, position)."""
        wanted = np.linspace(-POSITION_END, POSITION_END, _NUM_POSITIONS)
        logits = np.linspace(-LOGIT_END, LOGIT_END, self.positions.shape[2])
        far = _FAR * (logits[1] - logits[0])  # beyond their ends the columns go on straight
        values = np.array([logits[0] - far, *logits, logits[-1] + far])
        flat = self.positions.reshape(-1, self.positions.shape[2])
        low, high = (np.maximum(gap, 1e-3) for gap in (flat[:, 1] - flat[:, 0], flat[:, -1] - flat[:, -2]))
        whole = np.column_stack([flat[:, 0] - _FAR * low, flat, flat[:, -1] + _FAR * high])
        found = np.stack([np.interp(wanted, places, values) for places in whole])
        clipped: Floats = np.clip(found, -_LARGEST_LOGIT, _LARGEST_LOGIT)
        return clipped.reshape(*self.positions.shape[:2], -1)

    @cached_property
    def _cells(self) -> list[Bilinear]:
        return [bilinear(values) for values in (self.log_mean, self.relative, self.floor, *self.slopes)]


def bilinear(values: Floats) -> Bilinear:
    """Return the coefficients of the cells between nodes, dims (node_b, node_s) -> four of (cell,)."""
    values = np.repeat(values, 2, axis=0) if len(values) == 1 else values
    corner, next_b, next_s, both = values[:-1, :-1], values[1:, :-1], values[:-1, 1:], values[1:, 1:]
    parts = (corner, next_b - corner, next_s - corner, both - next_b - next_s + corner)
    return cast("Bilinear", tuple(np.ascontiguousarray(part).ravel() for part in parts))


def as_stored(values: Floats) -> Floats:
    """Return values with the precision that a file keeps of shapes: seven digits."""
    return values.astype(np.float32).astype(np.float64)


class Grid:
    """Nodes in log B and log S."""

    def __init__(self, *nodes: Floats) -> None:
        self._inner = [axis[1:-1] for axis in nodes]
        self._starts = [axis[: max(axis.size - 1, 1)] for axis in nodes]
        self._per = [1.0 / np.diff(axis) if axis.size > 1 else np.zeros(1) for axis in nodes]
        self.cells_s = nodes[1].size - 1
        self.stride = self.cells_s + 1 if nodes[0].size > 1 else 0

    @property
    def lists(self) -> tuple[Column, ...]:
        """Inner nodes, starts of cells and cells a unit, each for B and S."""
        return tuple(axis.tolist() for part in (self._inner, self._starts, self._per) for axis in part)

    def place(self, log_b: Floats, log_s: Floats) -> _Places:
        """Return where steps lie."""
        row, column = (
            inner.searchsorted(x, side="right") if inner.size else np.zeros(x.size, np.intp)
            for inner, x in zip(self._inner, (log_b, log_s), strict=True)
        )
        share_b, share_s = (
            (x - start.take(i)) * per.take(i)
            for x, start, per, i in zip((log_b, log_s), self._starts, self._per, (row, column), strict=True)
        )
        cell = row * self.cells_s + column
        return _Places(cell, cell + row, self.stride, share_b, share_s)


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
