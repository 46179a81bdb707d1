"""Posteriors with two modes of known weight: neither is missed, and each gets its weight, whatever the seed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytensor.tensor as pt
import pytest

from bayes_sched.diagnostics import convergence
from bayes_sched.sampling import Samples, Sampler, SamplerSettings
from tests.simulation import KnownPosterior, grid_share, share_at_negative_log_a, two_modes

pytestmark = pytest.mark.slow

SEEDS = range(8)
NUM_OBSERVED = 40


def squared_given_data(logs: Any, backend: Any) -> Any:
    """Log density of log a and log b given 40 simulated observations of (log a)^2 + log b.

    The data cannot tell the sign of log a. The prior of log a can: normal around 0.3; log b is standard normal.
    """
    observed = np.random.default_rng(8).normal(2.0**2 + 0.5, 1.0, NUM_OBSERVED)
    a, b = logs[..., 0], logs[..., 1]
    total = -0.5 * (a - 0.3) ** 2 - 0.5 * b**2
    return total - 0.5 * NUM_OBSERVED * (observed.mean() - a**2 - b) ** 2


TARGETS: dict[str, Callable[[Any, Any], Any]] = {
    "far apart": two_modes,
    "joined by a neck": partial(two_modes, distance=1.8),
    "simulated data": squared_given_data,
}


@pytest.fixture(scope="module", params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> Callable[[Any, Any], Any]:
    return TARGETS[request.param]


@pytest.fixture(scope="module")
def runs(target: Callable[[Any, Any], Any]) -> list[Samples]:
    sampler: Sampler = KnownPosterior(("a", "b"), target).sampler()
    return [sampler.run(SamplerSettings(seed=seed, cores=1)) for seed in SEEDS]


def shares(runs: list[Samples]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([float((samples.data["posterior"]["a"] < 1.0).mean()) for samples in runs])
