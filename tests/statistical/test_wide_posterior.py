"""A posterior with more coordinates than importance sampling can serve: modes of known weight, and a fit."""

from typing import Any

import numpy as np
import pytest

from bayes_sched.model.likelihood import effects_of
from bayes_sched.posterior.diagnostics import convergence
from bayes_sched.posterior.fit import fit
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.sampling.sample import Sampler
from tests.simulation import BENT_WEIGHT, KnownPosterior, share_at_negative_log_a, two_modes
from tests.staircase import STAIR_MS, staircase_steps, true_latency_ms

pytestmark = pytest.mark.slow

FURTHER = tuple(f"x{i}" for i in range(26))


def wide_two_modes(logs: Any, backend: Any) -> Any:
    """The two modes of `two_modes`, and 26 further coordinates that are standard normal."""
    return two_modes(logs, backend) - 0.5 * (logs[..., 2:] ** 2).sum(axis=-1)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return KnownPosterior(("a", "b", *FURTHER), wide_two_modes).sampler()


@pytest.mark.parametrize("seed", range(3))
def test_modes_far_apart_get_their_weight(sampler: Sampler, seed: int) -> None:
    assert sampler.is_wide
    samples = sampler.run(SamplerSettings(seed=seed, cores=1))
    assert share_at_negative_log_a(samples.data) == pytest.approx(BENT_WEIGHT, abs=0.02)
    assert convergence(samples.data).converged


def test_the_staircase_of_a_simulated_server_is_found() -> None:
    steps = staircase_steps(1500, seed=3)
    found = fit(steps, model="saturation_staircase", settings=SamplerSettings(draws=500, chains=2)).fit
    held_out = staircase_steps(2000, seed=4)
    error = (
        found.mean_latency(held_out, max_draws=200).mean(("chain", "draw")) / true_latency_ms(held_out) - 1.0
    )
    has_many = held_out["total_tokens"].isin([*range(500, 513)]) | (held_out["num_prefill_reqs"] == 0)
    assert np.abs(error[has_many.to_numpy()]).mean() < 0.005
    band = found.predictive_band(held_out, max_draws=200)
    inside = (held_out["latency_ms"] >= band["lower"]) & (held_out["latency_ms"] <= band["upper"])
    assert 0.87 < float(inside.mean()) < 0.93
    (effect,) = effects_of(found.model)
    edge = min(STAIR_MS)
    factor = found.posterior[effect.name].mean(("chain", "draw"))
    below, above = (float(factor[effect.level([tokens])[0]]) for tokens in (edge, edge + 1))
    assert above > below
