"""Simulated servers that could be real, and what is true of their decode-only steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from bayes_sched.model import LatencyModel
from bayes_sched.priors import Priors
from bayes_sched.simulation_calibration import plausible_parameters
from bayes_sched.steps import steps_arrays

MOST_TAIL = 3.0
"""The 0.99 quantile of a step is at most so many times its mean."""
LEAST_RISE = 1.2
"""Decode-only steps of the largest batch take at least so many times as long as those of the smallest: a
server that larger batches do not slow down has no largest batch to promise."""
MOST_FALL = 0.05
"""On the way, no larger batch is quicker than a smaller one by more than this share."""

type Floats = NDArray[np.float64]
type Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueServer:
    """A server whose parameters are known.

    Attributes
    ----------
    model : LatencyModel
    parameters : Dataset
        One number each.
    """

    model: LatencyModel
    parameters: xr.Dataset

    def mean_ms(self, steps: xr.Dataset) -> Floats:
        """Return the mean latency, ms, dims (step,)."""
        return np.asarray(self.model.latency(self.parameters, steps), dtype=np.float64)

    def quantile_ms(self, steps: xr.Dataset, quantile: float) -> Floats:
        """Return the latency that a share of such steps keeps, ms, dims (step,)."""
        mean, scale = self._moments(steps)
        return mean + scale * float(special.stdtrit(float(self.parameters["nu"]), quantile))

    def exceedance(self, steps: xr.Dataset, limit_ms: Floats | float) -> Floats:
        """Return the probability that a step takes longer than its limit, dims (step,)."""
        mean, scale = self._moments(steps)
        late: Floats = special.stdtr(float(self.parameters["nu"]), (mean - limit_ms) / scale)
        return late

    def _moments(self, steps: xr.Dataset) -> tuple[Floats, Floats]:
        mean = self.model.latency(self.parameters, steps)
        mean, scale = xr.broadcast(mean, self.model.scale(self.parameters, mean, steps))
        return mean.to_numpy(), scale.to_numpy()


def plausible_server(
    model: LatencyModel,
    priors: Priors,
    design: xr.Dataset,
    *,
    batch_sizes: Ints,
    quantile: float,
    rng: np.random.Generator,
) -> TrueServer:
    """Draw a server from the priors until it could be a real one that larger batches slow down.

    Parameters
    ----------
    model : LatencyModel
    priors : Priors
    design : Dataset, dims (step,)
        The steps of its trace.
    batch_sizes : ndarray, dims (batch,)
        Of decode-only steps, increasing.
    quantile : float
        The quantile whose distance from the mean :data:`MOST_TAIL` bounds.
    rng : Generator

    Raises
    ------
    InputError
        Hardly any server of these priors is plausible.
    """
    decode = steps_arrays(batch_sizes, batch_sizes)

    def is_plausible(parameters: xr.Dataset) -> bool:
        server = TrueServer(model=model, parameters=parameters)
        mean, late = server.mean_ms(decode), server.quantile_ms(decode, quantile)
        rises = late[-1] >= LEAST_RISE * late[0]
        falls = (late < (1.0 - MOST_FALL) * np.maximum.accumulate(late)).any()
        return bool(rises and not falls and (late <= MOST_TAIL * mean).all())

    drawn = plausible_parameters(model, priors, design, rng, is_plausible=is_plausible)
    return TrueServer(model=model, parameters=drawn)


def largest_batch(late_ms: Floats, batch_sizes: Ints, limit_ms: float) -> int:
    """Return the largest batch up to which all keep a limit, 0 where not even the first does.

    Parameters
    ----------
    late_ms : ndarray, dims (batch,)
        The true quantile of decode-only steps.
    batch_sizes : ndarray, dims (batch,)
        Increasing.
    limit_ms : float
    """
    kept = int((np.maximum.accumulate(late_ms) <= limit_ms).sum())
    return int(batch_sizes[kept - 1]) if kept else 0


def limit_between(late_ms: Floats, rng: np.random.Generator) -> float:
    """Return a limit, ms, for which the true largest batch lies inside the range, any size as probable.

    The limit lies half way, on a logarithmic scale, between the latencies of that batch and of the next.
    """
    running = np.maximum.accumulate(late_ms)
    chosen = int(rng.choice(np.flatnonzero(np.diff(running) > 0.0)))
    return float(np.sqrt(running[chosen] * running[chosen + 1]))
