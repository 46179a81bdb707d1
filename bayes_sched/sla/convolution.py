r"""Distributions of sums of step times, one for each posterior draw: convolved, not simulated.

Given a draw of the parameters, the steps of a request are taken as independent. Real ones are not quite:
contexts grow, so that residuals of neighbouring steps go together, and sums of 200 consecutive steps of real
traces spread two to seven times as widely as this says, by about 2 percent of their mean. The time of step k
is :math:`\max(\mu_k + \sigma_k t_\nu, 0)`. Sums of Student-t variables have no closed form, and a simulation
would add its own noise to every draw's tail, which is where promises are made. So each kind of step is put on
a grid, its exact probability in each cell, and the powers and products of the Fourier transforms give the
sums. The grid follows the width of each draw's sum (a sum of n steps is about :math:`n^{1/\alpha} \sigma`
wide, :math:`\alpha = \min(\nu, 2)`) and reaches 64 widths to either side; what a single step may do beyond is
counted as infinitely late. Probabilities are right to about a thousandth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

from bayes_sched.arrays import Floats, Ints

type CellsOf = Callable[[Floats], Floats]
"""Width of a cell, ms, dims (draw,), to the probability of each cell around the centre, dims (draw, cell)."""

_NUM_CELLS = 2048
_CELLS_PER_WIDTH = 16
_BLOCK = 64
_FEW = 8  # sums of so few steps are fine enough on the grid as they are
_BISECTIONS = 60


@dataclass(frozen=True, eq=False)
class SumDistribution:
    """The distribution of a sum of step times, for each draw."""

    first_ms: Floats  # the first place at which the distribution function is known, dims (draw,)
    cell_ms: Floats  # distance of these places, dims (draw,)
    cdf: Floats
    """P(sum <= place), dims (draw, place). Its end is below 1 by the probability that a single step is late
    beyond all bounds."""

    def scaled(self, factor: float) -> SumDistribution:
        """Return the distribution of the sum times a positive factor, such as a mean over tokens."""
        return replace(self, first_ms=self.first_ms * factor, cell_ms=self.cell_ms * factor)

    def cdf_draws(self, x_ms: Floats) -> Floats:
        """Return P(sum <= x) of each draw, dims (x,) or (draw, x) -> (draw, x)."""
        place = (x_ms - self.first_ms[:, None]) / self.cell_ms[:, None]
        last = self.cdf.shape[1] - 1
        left = np.clip(np.floor(place).astype(np.int64), 0, last - 1)
        share = np.clip(place - left, 0.0, 1.0)
        low = np.take_along_axis(self.cdf, left, axis=1)
        high = np.take_along_axis(self.cdf, left + 1, axis=1)
        return np.where(place < 0.0, 0.0, low + share * (high - low))

    def quantile_draws(self, q: float) -> Floats:
        """Return the quantile of each draw, ms, dims (draw,); infinite beyond the grid."""
        above = self.cdf >= q
        right = np.maximum(np.argmax(above, axis=1), 1)
        rows = np.arange(len(self.cdf))
        low, high = self.cdf[rows, right - 1], self.cdf[rows, right]
        rise = np.where(high > low, high - low, 1.0)
        share = np.clip((q - low) / rise, 0.0, 1.0)
        found = self.first_ms + self.cell_ms * (right - 1 + share)
        return np.where(above[:, -1], found, np.inf)

    def probability_below(self, x_ms: float) -> float:
        """Return P(sum <= x) over draws and noise together."""
        return float(self.cdf_draws(np.array([x_ms])).mean())

    def quantile(self, q: float) -> float:
        """Return the predictive quantile, draws and noise together, ms; infinite beyond the grids."""
        ends = self.quantile_draws(q)
        low, high = float(ends.min()), float(ends.max())
        if not np.isfinite(high):
            high = float((self.first_ms + self.cell_ms * (self.cdf.shape[1] - 1)).max())
            if self.probability_below(high) < q:
                return float("inf")
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.probability_below(middle) < q else (low, middle)
        return high


def sum_distribution(mean_ms: Floats, scale_ms: Floats, nu: Floats, counts: Ints) -> SumDistribution:
    """Return the distribution of a sum of independent steps of some kinds.

    Location and Student-t scale have dims (draw, kind), the degrees of freedom (draw,); `counts`, dims
    (kind,), says how many steps there are of each kind, each at least 1.
    """
    alpha = np.minimum(nu, 2.0)
    widths = scale_ms * counts ** (1.0 / alpha[:, None])
    centres = mean_ms * counts
    kinds = []
    for k, count in enumerate(counts):
        mean, scale = mean_ms[:, k], scale_ms[:, k]
        kinds.append(_power(partial(_step_cells, mean, scale, nu), mean, scale, alpha, int(count)))
    if len(kinds) == 1:
        return kinds[0]
    return _joined(kinds, centres, (widths ** alpha[:, None]).sum(axis=1) ** (1.0 / alpha))


def _joined(parts: list[SumDistribution], centres_ms: Floats, width_ms: Floats) -> SumDistribution:
    """Return the distribution of the sum of independent parts, centres dims (draw, part)."""
    cell = width_ms / _CELLS_PER_WIDTH
    product = np.ones((len(cell), _NUM_CELLS // 2 + 1), dtype=np.complex128)
    for k, part in enumerate(parts):
        product *= _transform(_sum_cells(part, centres_ms[:, k], cell))
    return _from_transform(product, centres_ms.sum(axis=1), cell)


def _power(
    cells_of: CellsOf, centre_ms: Floats, width_ms: Floats, alpha: Floats, count: int
) -> SumDistribution:
    """Return the distribution of the sum of `count` times the same, each of a centre and a width."""
    # The grid of a sum of many is too coarse for one of them, so many are summed block by block.
    if count <= _BLOCK:
        return _direct_power(cells_of, centre_ms, count ** (1.0 / alpha) * width_ms, count)
    num_blocks, rest = divmod(count, _BLOCK)
    block = _power(cells_of, centre_ms, width_ms, alpha, _BLOCK)
    centre, width = _BLOCK * centre_ms, _BLOCK ** (1.0 / alpha) * width_ms
    blocks = _power(partial(_sum_cells, block, centre), centre, width, alpha, num_blocks)
    if not rest:
        return blocks
    parts = [blocks, _power(cells_of, centre_ms, width_ms, alpha, rest)]
    centres = np.stack([num_blocks * centre, rest * centre_ms], axis=1)
    return _joined(parts, centres, count ** (1.0 / alpha) * width_ms)


def _direct_power(cells_of: CellsOf, centre_ms: Floats, width_ms: Floats, count: int) -> SumDistribution:
    """Return the distribution of a sum of `width_ms` on one grid."""
    cell = width_ms / _CELLS_PER_WIDTH
    transform = _transform(cells_of(cell))
    if count > _FEW:
        # The grid rounds each summand to the middle of its cell. In the transform that is a factor, the sinc,
        # which is taken out of all but one; beyond a quarter of the sampling rate nothing of the sum is left.
        frequency = np.arange(_NUM_CELLS // 2 + 1) / _NUM_CELLS
        transform = (transform / np.sinc(frequency)) ** count * np.sinc(frequency)
        transform = np.where(frequency > 0.25, 0.0, transform)
    else:
        transform = transform**count
    return _from_transform(transform, count * centre_ms, cell)


def _sum_cells(part: SumDistribution, centre_ms: Floats, cell_ms: Floats) -> Floats:
    """Return the probability of each cell around a centre for a sum, dims (draw, cell)."""
    places = centre_ms[:, None] + cell_ms[:, None] * _edges()
    cells: Floats = np.diff(part.cdf_draws(places), axis=1)
    return cells


def _step_cells(mean_ms: Floats, scale_ms: Floats, nu: Floats, cell_ms: Floats) -> Floats:
    """Return the probability of each cell around the mean for a single step, dims (draw, cell)."""
    half = np.arange(_NUM_CELLS // 2 + 1) - 0.5  # upper halves of a symmetric distribution, then mirrored
    survival = special.stdtr(nu[:, None], -(cell_ms / scale_ms)[:, None] * half)
    below = np.concatenate([survival[:, :1:-1], 1.0 - survival], axis=1)
    edges = np.concatenate([-half[:1:-1], half])
    # A step that would take less than no time takes none: that probability stands at 0, shared between the
    # two cells around so that the mean is right.
    at_zero = special.stdtr(nu, -mean_ms / scale_ms)[:, None]
    is_negative = edges * cell_ms[:, None] + mean_ms[:, None] < 0.0
    cells: Floats = np.diff(
        np.where(is_negative, at_zero, np.maximum(below, at_zero)), axis=1, prepend=at_zero
    )
    place = np.clip(_NUM_CELLS // 2 - mean_ms / cell_ms, 0.0, _NUM_CELLS - 1.001)[:, None]
    left = np.floor(place).astype(np.int64)
    rows = np.arange(len(cells))[:, None]
    cells[rows, left] += at_zero * (1.0 - (place - left))
    cells[rows, left + 1] += at_zero * (place - left)
    return cells


def _edges() -> Floats:
    """Return the edges of the cells, in cells from the centre, dims (edge,)."""
    edges: Floats = np.arange(_NUM_CELLS + 1, dtype=np.float64) - (_NUM_CELLS // 2 + 0.5)
    return edges


def _transform(cells: Floats) -> NDArray[np.complex128]:
    transform: NDArray[np.complex128] = fft.rfft(fft.ifftshift(cells, axes=1), axis=1)
    return transform


def _from_transform(transform: NDArray[np.complex128], centre_ms: Floats, cell_ms: Floats) -> SumDistribution:
    cells = fft.fftshift(fft.irfft(transform, n=_NUM_CELLS, axis=1), axes=1)
    cdf = np.clip(np.maximum.accumulate(np.cumsum(cells, axis=1), axis=1), 0.0, 1.0)
    return SumDistribution(centre_ms + cell_ms * _edges()[1], cell_ms, cdf)
