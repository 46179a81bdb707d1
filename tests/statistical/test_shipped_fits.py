"""Fits of shipped models: the documented log-normals sampled as they stand, and a staircase that is known."""

import math

import arviz as az
import numpy as np
import nutpie
import pandas as pd
import pytest
import xarray as xr

from bayes_sched.model.equation import PARAMETERS
from bayes_sched.model.likelihood import effects_of
from bayes_sched.model.priors import Prior, Priors
from bayes_sched.model.protocol import all_parameters, load_model
from bayes_sched.posterior.diagnostics import convergence
from bayes_sched.posterior.fit import fit
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.sampling.sample import Sampler
from tests.staircase import STAIR_MS, staircase_steps, true_latency_ms
from tests.synthetic_fit import TRUTH, simulated_steps

pytestmark = pytest.mark.slow

MODEL = load_model("saturation")
NAMES = [p.name for p in PARAMETERS]
WIDTH = 4.0  # priors within this factor of the truth: wider ones stop the direct formulation from mixing
MAX_Z = 4.0  # 32 comparisons: the largest of so many normal scores passes 4 in 0.2 % of runs


@pytest.fixture(scope="module")
def informed() -> tuple[pd.DataFrame, Priors]:
    names = [p.name for p in all_parameters(MODEL, "proportional")]
    priors = Priors(Prior(name, TRUTH[name] / WIDTH, TRUTH[name] * WIDTH) for name in names)
    return simulated_steps(120, seed=11), priors


@pytest.fixture(scope="module")
def direct(informed: tuple[pd.DataFrame, Priors]) -> xr.Dataset:
    compiled = nutpie.compile_pymc_model(MODEL.build(*informed, noise="proportional"))
    tree = nutpie.sample(
        compiled, draws=4000, tune=1500, chains=4, cores=2, seed=1, target_accept=0.97, progress_bar=False
    )
    posterior: xr.Dataset = tree["posterior"].to_dataset()[NAMES]
    return posterior


@pytest.fixture(scope="module")
def ours(informed: tuple[pd.DataFrame, Priors]) -> xr.Dataset:
    sampler = Sampler(MODEL, *informed, noise="proportional")
    samples = sampler.run(SamplerSettings(draws=3000, seed=1, cores=2))
    assert convergence(samples.data).converged, convergence(samples.data).text
    return samples.data["posterior"].to_dataset()[NAMES]


def test_the_direct_run_was_long_enough_to_compare_with(direct: xr.Dataset) -> None:
    assert float(az.rhat(direct).to_array().max()) < 1.01
    assert float(az.ess(direct).to_array().min()) > 1000


@pytest.mark.parametrize("name", NAMES)
def test_means_and_quantiles_agree_within_monte_carlo_error(
    direct: xr.Dataset, ours: xr.Dataset, name: str
) -> None:
    logs = [found[name].copy(data=np.log(found[name].to_numpy())) for found in (direct, ours)]
    scores = {q: _score(logs, q=q) for q in (None, 0.05, 0.5, 0.95)}
    assert max(map(abs, scores.values())) < MAX_Z, scores


def _score(runs: list[xr.DataArray], *, q: float | None) -> float:
    """Difference of the mean, or a quantile, between two runs, in standard errors of that difference."""
    options = {"method": "mean"} if q is None else {"method": "quantile", "prob": q}
    error = [float(az.mcse(x.to_dataset(name="x"), **options)["x"]) for x in runs]
    value = [float(x.mean() if q is None else x.quantile(q)) for x in runs]
    return (value[0] - value[1]) / math.hypot(*error)


def test_the_staircase_of_a_simulated_server_is_found() -> None:
    settings = SamplerSettings(draws=500, chains=2)
    found = fit(staircase_steps(1500, seed=3), model="saturation_staircase", settings=settings).fit
    held_out = staircase_steps(2000, seed=4)
    mean = found.mean_latency(held_out, max_draws=200).mean(("chain", "draw"))
    error = mean / true_latency_ms(held_out) - 1.0
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
