"""Posteriors with two modes of known weight: neither is missed and each gets its weight, at any seed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import arviz as az
import numpy as np
import pytest

from bayes_sched.arrays import Floats
from bayes_sched.posterior.diagnostics import convergence
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.sampling.sample import Sampler, Samples
from tests.simulation import BENT_WEIGHT, KnownPosterior, grid_share, share_at_negative_log_a, two_modes

pytestmark = pytest.mark.slow

SEEDS = range(8)
NUM_OBSERVED = 40


def squared_given_data(logs: Any, backend: Any) -> Any:
    """Log density of log a and log b given 40 simulated observations of (log a)^2 + log b.

    The data cannot tell the sign of log a. Its prior can: normal around 0.3; log b is standard normal.
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


def shares(runs: list[Samples]) -> Floats:
    return np.array([share_at_negative_log_a(samples.data) for samples in runs])


def test_no_seed_misses_a_mode(runs: list[Samples]) -> None:
    assert [samples.info["num_modes"] for samples in runs] == [2] * len(runs)
    assert shares(runs).min() > 0.05
    assert shares(runs).max() < 0.95


def test_each_seed_has_the_known_weight_within_monte_carlo_error(
    target: Callable[[Any, Any], Any], runs: list[Samples]
) -> None:
    known = grid_share(target)
    for samples, share in zip(runs, shares(runs), strict=True):
        indicator = (samples.data["posterior"].to_dataset()["a"] < 1.0).astype(float)
        # The masses of parts rest on 800 effective draws a chain, the rest on the draws themselves.
        weighted = 800 * indicator.sizes["chain"]
        effective = float(az.ess(indicator.to_dataset(name="x"))["x"])
        error = np.sqrt(known * (1 - known) * (1 / weighted + (1 / effective)))
        assert abs(share - known) < 4 * error, (share, known, error)


def test_the_seeds_average_to_the_known_weight(
    target: Callable[[Any, Any], Any], runs: list[Samples]
) -> None:
    values = shares(runs)
    error = max(values.std(ddof=1), 0.002) / np.sqrt(len(values))
    # Student-t with 7 degrees of freedom: beyond 5.4 in 0.1 % of runs.
    assert abs(values.mean() - grid_share(target)) < 5.4 * error, (values, grid_share(target))
    assert values.std(ddof=1) < 0.02


def test_every_run_passes_the_gate(runs: list[Samples]) -> None:
    assert [convergence(samples.data).problems for samples in runs] == [()] * len(runs)


def test_the_grid_knows_the_weight_of_the_shear() -> None:
    assert grid_share(two_modes) == pytest.approx(BENT_WEIGHT, abs=2e-4)
