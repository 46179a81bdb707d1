"""Posteriors that are known exactly, as models that the sampler takes; an evaluator without a compiler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import pymc as pm
import pytensor.tensor as pt
import xarray as xr
from pytensor.compile.mode import Mode
from scipy.special import logsumexp

from bayes_sched.arrays import Floats
from bayes_sched.model.equation import Parameter
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel
from bayes_sched.sampling.sample import Sampler

#: PyTensor's interpreter: slow to run, but ready at once.
INTERPRETED = Mode(linker="py", optimizer=None)

NO_STEPS = pd.DataFrame({"batch_size": [], "total_tokens": [], "latency_ms": []})


@dataclass
class KnownPosterior:
    """A latency model whose posterior is a given density of its log parameters, whatever the steps."""

    names: tuple[str, ...]
    log_density: Callable[[Any, Any], Any]  # of the logarithms (last axis: `names`) and the backend
    name = "known"
    columns: ClassVar[tuple[str, ...]] = ()
    noises = ("none",)

    def __post_init__(self) -> None:
        low, high = float(np.exp(-6.0)), float(np.exp(6.0))  # where the search for modes looks, more or less
        self.parameters = tuple(Parameter(name, name, name, "1", low, high) for name in self.names)

    def noise_parameters(self, noise: str) -> tuple[Parameter, ...]:
        return ()

    def build(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> pm.Model:
        with pm.Model() as model:
            logs = pt.stack([pt.log(pm.HalfFlat(name)) for name in self.names])
            # The flat densities are those of the parameters; the known one is that of the logarithms.
            pm.Potential("known", self.log_density(logs, pt) - logs.sum())
        return model

    def coordinates(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> None:
        return None

    def sampler(self, *, noise: str = "none") -> Sampler:
        """Return the compiled sampler of this model, which predicts nothing."""
        return Sampler(
            cast(LatencyModel, self), NO_STEPS, Priors.from_parameters(self.parameters), noise=noise
        )


BENT_WEIGHT = 0.35
"""Mass of the bent mode of `two_modes`, at negative log a."""


def two_modes(logs: Any, backend: Any, *, distance: float = 4.0) -> Any:
    """Log density of a bent mode of unit width at -distance and a narrow one at +distance.

    Bending is a shear, which keeps volume: the weights are exact.
    """
    a, b = logs[..., 0], logs[..., 1]
    bent = -0.5 * (a + distance) ** 2 - 0.5 * (b - 0.25 * (a + distance) ** 2) ** 2
    narrow = -0.5 * ((a - distance) / 0.4) ** 2 - 0.5 * ((b - 1.0) / 0.3) ** 2 - np.log(0.4 * 0.3)
    terms = [bent + np.log(BENT_WEIGHT), narrow + np.log(1.0 - BENT_WEIGHT)]
    total = logsumexp(terms, axis=0) if backend is np else pt.logsumexp(pt.stack(terms), axis=0)
    return total - np.log(2.0 * np.pi)


TWO_MODES = KnownPosterior(("a", "b"), two_modes)


@cache
def two_mode_sampler() -> Sampler:
    """Return one compiled sampler of `TWO_MODES` for all tests of a process."""
    return TWO_MODES.sampler()


def share_at_negative_log_a(data: xr.DataTree) -> float:
    """Share of the posterior draws in the bent mode."""
    return float((data["posterior"]["a"] < 1.0).mean())


def grid_share(log_density: Callable[[Any, Any], Any], *, limit: float = 12.0, size: int = 2001) -> float:
    """Mass at negative log a of a density of (log a, log b), by the sum over a fine grid."""
    axis: Floats = np.linspace(-limit, limit, size)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    log_density_at = log_density(points, np)
    mass = np.exp(log_density_at - log_density_at.max()).sum(axis=1)
    return float(mass[axis < 0].sum() / mass.sum())
