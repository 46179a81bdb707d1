"""Joint draws of several servers: independent posteriors, paired at random.

The fits of different traces share neither data nor parameters, so given both traces the posterior of the pair
is the product of the two. A draw from a product is a draw of each factor, chosen independently: to pair the
draws of one posterior with a random permutation of those of the other gives draws of the pair, whatever was
paired before. The order in which a sampler left them will not do: two fits with the same seed share their
random numbers, and their draws may follow each other from index to index. Posteriors of different lengths
are thinned to the shorter one, evenly over the chains, before they are permuted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel
from bayes_sched.model import LatencyModel
from bayes_sched.prediction import Evaluator
from bayes_sched.steps import Steps

DEFAULT_PAIRED_DRAWS = 4000
"""Draws of each posterior that a comparison uses at most, unless told otherwise."""


def paired_posteriors(
    posteriors: Sequence[xr.Dataset], *, max_draws: int = DEFAULT_PAIRED_DRAWS, seed: int = 0
) -> tuple[xr.Dataset, ...]:
    """Return as many draws of each posterior, in random order.

    Parameters
    ----------
    posteriors : sequence of Dataset, dims (chain, draw)
        Of different lengths if need be.
    max_draws : int
    seed : int
        Of the order.

    Returns
    -------
    tuple of Dataset, dims (draw,)
        The draws of one index belong together.

    Raises
    ------
    InputError
        `max_draws` is below 2.
    """
    if max_draws < 2:
        raise InputError(f"max_draws = {max_draws}: give at least 2")
    sizes = [posterior.sizes["chain"] * posterior.sizes["draw"] for posterior in posteriors]
    num = min(max_draws, *sizes)
    paired = []
    for number, (posterior, size) in enumerate(zip(posteriors, sizes, strict=True)):
        chosen = ((np.arange(num) + 0.5) * size / num).astype(np.int64)
        order = np.random.default_rng([seed, number]).permutation(chosen)
        paired.append(
            xr.Dataset(
                {
                    name: ("draw", draws.transpose("chain", "draw").to_numpy().ravel()[order])
                    for name, draws in posterior.data_vars.items()
                },
                coords={"draw": np.arange(num)},
            )
        )
    return tuple(paired)


class Servers:
    """Several servers with joint draws of their parameters.

    Parameters
    ----------
    labels : sequence of str
    fits : sequence of FittedModel
    max_draws : int
    seed : int
    """

    def __init__(
        self, labels: Sequence[str], fits: Sequence[FittedModel], *, max_draws: int, seed: int
    ) -> None:
        self.labels = tuple(labels)
        self.fits = tuple(fits)
        self.models: tuple[LatencyModel, ...] = tuple(fit.model for fit in fits)
        names = [[p for p in fit.posterior.data_vars if fit.posterior[p].ndim == 2] for fit in fits]
        self.posteriors = paired_posteriors(
            [fit.posterior[kept] for fit, kept in zip(fits, names, strict=True)],
            max_draws=max_draws,
            seed=seed,
        )
        self._evaluators = tuple(
            Evaluator(model, posterior.expand_dims(chain=[0]), max_draws=None)
            for model, posterior in zip(self.models, self.posteriors, strict=True)
        )

    def mean_latency_ms(self, steps: Steps) -> xr.DataArray:
        """Return draws of the mean latency, ms, dims (gpu, draw, *steps)."""
        parts = [
            e.per_draw(steps, lambda mean, scale, nu, x: mean).isel(chain=0, drop=True)
            for e in self._evaluators
        ]
        return self._joined(parts).rename("mean_latency_ms").assign_attrs(units="ms")

    def scale_ms(self, steps: Steps) -> xr.DataArray:
        """Return draws of the noise scale, ms, dims (gpu, draw, *steps)."""
        parts = [
            e.per_draw(steps, lambda mean, scale, nu, x: scale).isel(chain=0, drop=True)
            for e in self._evaluators
        ]
        return self._joined(parts).rename("scale_ms").assign_attrs(units="ms")

    def nu(self) -> xr.DataArray:
        """Return draws of the degrees of freedom, dims (gpu, draw)."""
        return self._joined([posterior["nu"] for posterior in self.posteriors])

    def noise_quantile_ms(self, number: int, steps: Steps, q: float) -> xr.DataArray:
        """Return each draw's noise quantile of one server, ms, dims (draw, *steps)."""
        result = self._evaluators[number].quantile_draws(steps, np.array([q]))
        return result.isel(quantile=0, chain=0, drop=True)

    def server_latency_ms(self, number: int, steps: Steps) -> xr.DataArray:
        """Return draws of the mean latency of one server, ms, dims (draw, *steps)."""
        evaluator = self._evaluators[number]
        return evaluator.per_draw(steps, lambda mean, scale, nu, x: mean).isel(chain=0, drop=True)

    def in_regions(self, steps: Steps) -> xr.DataArray:
        """Return whether the trace of each server covers each step: bool, dims (gpu, *steps)."""
        return self._joined([fit.in_region(steps) for fit in self.fits]).rename("in_region")

    def _joined(self, parts: Sequence[xr.DataArray]) -> xr.DataArray:
        return xr.concat(parts, dim=pd.Index(self.labels, name="gpu"), join="exact")
