"""Posteriors with two modes of known weight: none is missed and each gets its weight, at any seed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import arviz as az
import numpy as np
import pytest

from bayes_sched.posterior.diagnostics import convergence
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.sampling.sample import Samples
from tests.simulation import BENT_WEIGHT, KnownPosterior, grid_share, share_at_negative_log_a, two_modes

pytestmark = pytest.mark.slow

type LogDensity = Callable[[Any, Any], Any]
SEEDS = range(8)
NUM_OBSERVED = 40
FURTHER = tuple(f"x{i}" for i in range(26))


def squared_given_data(logs: Any, backend: Any) -> Any:
    """Log density of log a and log b given 40 simulated observations of (log a)^2 + log b.

    The data cannot tell the sign of log a. Its prior can: normal around 0.3; log b is standard normal.
    """
    observed = np.random.default_rng(8).normal(2.0**2 + 0.5, 1.0, NUM_OBSERVED)
    a, b = logs[..., 0], logs[..., 1]
    total = -0.5 * (a - 0.3) ** 2 - 0.5 * b**2
    return total - 0.5 * NUM_OBSERVED * (observed.mean() - a**2 - b) ** 2


def wide_two_modes(logs: Any, backend: Any) -> Any:
    """The two modes of `two_modes`, and 26 further coordinates that are standard normal."""
    return two_modes(logs, backend) - 0.5 * (logs[..., 2:] ** 2).sum(axis=-1)


TARGETS: dict[str, LogDensity] = {
    "far apart": two_modes,
    "joined by a neck": partial(two_modes, distance=1.8),
    "simulated data": squared_given_data,
}


@pytest.fixture(scope="module", params=TARGETS)
def runs(request: pytest.FixtureRequest) -> tuple[float, list[Samples]]:
    """The known weight, and one run a seed."""
    sampler = KnownPosterior(("a", "b"), TARGETS[request.param]).sampler()
    samples = [sampler.run(SamplerSettings(seed=seed, cores=1)) for seed in SEEDS]
    return grid_share(TARGETS[request.param]), samples


def test_every_seed_finds_both_modes_with_the_known_weight_and_passes_the_gate(
    runs: tuple[float, list[Samples]],
) -> None:
    known, every = runs
    for samples in every:
        assert samples.info["num_modes"] == 2
        assert convergence(samples.data).problems == ()
        share = share_at_negative_log_a(samples.data)
        assert 0.05 < share < 0.95
        indicator = (samples.data["posterior"].to_dataset()["a"] < 1.0).astype(float)
        # The masses of components rest on 800 effective draws a chain, the rest on the draws themselves.
        weighted = 800 * indicator.sizes["chain"]
        effective = float(az.ess(indicator.to_dataset(name="x"))["x"])
        error = np.sqrt(known * (1 - known) * (1 / weighted + (1 / effective)))
        assert abs(share - known) < 4 * error, (share, known, error)


def test_the_seeds_average_to_the_known_weight(runs: tuple[float, list[Samples]]) -> None:
    known, every = runs
    values = np.array([share_at_negative_log_a(samples.data) for samples in every])
    error = max(values.std(ddof=1), 0.002) / np.sqrt(len(values))
    # Student-t with 7 degrees of freedom: beyond 5.4 in 0.1 % of runs.
    assert abs(values.mean() - known) < 5.4 * error, (values, known)
    assert values.std(ddof=1) < 0.02


def test_the_grid_knows_the_weight_of_the_shear() -> None:
    assert grid_share(two_modes) == pytest.approx(BENT_WEIGHT, abs=2e-4)


def test_modes_far_apart_get_their_weight_where_importance_sampling_cannot_serve() -> None:
    sampler = KnownPosterior(("a", "b", *FURTHER), wide_two_modes).sampler()
    assert sampler.is_wide
    for seed in range(3):
        samples = sampler.run(SamplerSettings(seed=seed, cores=1))
        assert share_at_negative_log_a(samples.data) == pytest.approx(BENT_WEIGHT, abs=0.02)
        assert convergence(samples.data).converged
