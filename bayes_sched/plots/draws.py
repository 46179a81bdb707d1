"""Posterior and prior draws as figures use them."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from arviz_stats.base import array_stats  # type: ignore[attr-defined]

from bayes_sched.equation import Parameter
from bayes_sched.fitted import FittedModel
from bayes_sched.model import all_parameters
from bayes_sched.plots.points import Floats


def thin(draws: xr.Dataset, max_draws: int) -> xr.Dataset:
    """Return at most about `max_draws` draws over all chains, evenly spaced along ``draw``."""
    num_draws = math.prod(draws.sizes[dim] for dim in ("chain", "draw") if dim in draws.sizes)
    return draws.isel(draw=slice(None, None, max(1, math.ceil(num_draws / max_draws))))


def parameters_of(fit: FittedModel) -> tuple[Parameter, ...]:
    """Return the documented and the noise parameters of a fit."""
    return all_parameters(fit.model, fit.metadata.noise)


def log10_density(draws: xr.DataArray | Floats) -> tuple[Floats, Floats]:
    """Return a kernel density of the decimal logarithm of positive draws: points, densities; dims (point,).

    The bandwidth is the one of ArviZ, which does not smear two modes into one.
    """
    x, density, _ = array_stats.kde(  # type: ignore[no-untyped-call]
        np.log10(np.ravel(draws))
    )
    return np.asarray(x, float), np.asarray(density, float)
