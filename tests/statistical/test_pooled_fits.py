"""Borrowed strength is right: a pooled trace is what a fit finds whose prior is the pool of the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import bayes_sched.pooling.pool as pooled_module
from bayes_sched.model.protocol import load_model
from bayes_sched.pooling.pool import pool
from bayes_sched.pooling.population import TraceDraws, population_model, sample_population
from bayes_sched.pooling.prior import PopulationPrior, identified
from bayes_sched.posterior.fit import fit
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings
from tests.synthetic_fit import TRUTH, simulated_steps, synthetic_fit
from tests.test_pooling import SHORT, server_fit

pytestmark = pytest.mark.slow

SETTINGS = SamplerSettings(seed=1, cores=1)
NAMES = ("L_8", "c", "tau_B")
NUM_STEPS = {"long": 600, "middle": 300, "short": 40}


def trace(name: str, number: int) -> pd.DataFrame:
    """Steps of a server some 10 % slower or faster than the others of its kind."""
    steps = simulated_steps(NUM_STEPS[name], seed=20 + number)
    return steps.assign(latency_ms=steps["latency_ms"] * (0.9, 1.0, 1.1)[number])


@pytest.fixture(scope="module")
def alone() -> dict[str, FittedModel]:
    return {
        name: fit(trace(name, i), settings=SETTINGS, name=name, labels={"gpu": "same"}).fit
        for i, name in enumerate(NUM_STEPS)
    }


def coordinates(fitted: FittedModel) -> np.ndarray:
    logs = {str(name): np.log(draws.to_numpy().ravel()) for name, draws in fitted.posterior.items()}
    found: np.ndarray = identified(logs, NAMES, np)
    return found


@pytest.mark.parametrize("name", ["short", "middle"])
def test_a_pooled_trace_is_a_fit_under_the_population_of_the_others(
    alone: dict[str, FittedModel], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ways to one posterior: weighted draws of the fit alone, and NUTS with another prior."""
    # The same coordinates, whether the short trace is among the fits or not.
    monkeypatch.setattr(pooled_module, "shared_coordinates", lambda fits: NAMES)
    pooled = pool(alone).pooled[name]
    others = {key: fitted for key, fitted in alone.items() if key != name}
    prior = pool(others).population.prior("same", documented_share=0.0)
    steps = trace(name, list(NUM_STEPS).index(name))
    refitted = fit(steps, settings=SETTINGS, population=prior, name=name).fit
    assert refitted.converged
    first, second, before = coordinates(pooled), coordinates(refitted), coordinates(alone[name])
    spread = second.std(axis=0)
    assert (abs(first.mean(axis=0) - second.mean(axis=0)) < 0.2 * spread).all()
    np.testing.assert_allclose(first.std(axis=0), spread, rtol=0.15)
    assert (spread < 0.97 * before.std(axis=0)).any()  # or the test says nothing


def test_the_short_trace_is_known_better_with_the_others(alone: dict[str, FittedModel]) -> None:
    """All coordinates together: one of them may be known a little less where another is known far better."""
    together = pool(alone)
    volume = {
        kind: np.linalg.slogdet(np.cov(coordinates(fits["short"]).T))[1]
        for kind, fits in (("alone", together.alone), ("pooled", together.pooled))
    }
    assert volume["pooled"] < volume["alone"]
    draws = xr.Dataset(TRUTH)
    truth = 1.1 * float(load_model("saturation").combinations(draws)["c"])
    lower, upper = np.exp(np.quantile(coordinates(together.pooled["short"])[:, 1], [0.005, 0.995]))
    assert lower < truth < upper


def test_a_population_of_many_known_servers_is_recovered() -> None:
    """Forty servers of two traces with normal posteriors: spreads and means lie where they were put."""
    rng = np.random.default_rng(11)
    names, servers = ("L_8", "c"), [f"s{i}" for i in range(40)]
    mean, between, within, error = np.array([1.0, -4.0]), np.array([0.8, 0.4]), 0.15, 0.05
    truth = rng.normal(mean, between, (40, 2))
    traces = []
    for server in truth.repeat(2, axis=0):
        seen = rng.normal(rng.normal(server, within), error)
        traces.append(TraceDraws(z=rng.normal(seen, error, (300, 2)), log_base=np.zeros(300)))
    model = population_model(
        traces,
        names=names,
        servers=servers,
        server_of_trace=np.arange(40).repeat(2).tolist(),
        priors=synthetic_fit().metadata.priors,
    )
    draws = sample_population(model, replace(SHORT, draws=400, tune=400))["posterior"].to_dataset()
    low, high = (draws.quantile(q, ("chain", "draw")) for q in (0.005, 0.995))
    for name, value in (("mean", mean), ("between", between), ("within", np.full(2, within))):
        assert ((low[name] < value) & (value < high[name])).all(), name
    lower, upper = (draws["server_mean"].quantile(q, ("chain", "draw")) for q in (0.05, 0.95))
    held = ((lower < truth) & (truth < upper)).mean()
    assert 0.8 < float(held) < 0.97


def test_a_trace_too_short_for_its_draws_is_fitted_again_under_the_population() -> None:
    """Its own draws lie all over the prior; those under the population's prior, divided out, do not."""
    fits = [
        server_fit("fast_256", server="fast", factor=1.0, seed=1),
        server_fit("fast_512", server="fast", factor=1.05, seed=2),
        server_fit("slow", server="slow", factor=3.0, seed=3),
    ]
    vague = server_fit("vague", server="fast", factor=1.0, seed=5, spread=1.2)
    asked: list[tuple[str, str]] = []

    def refit(name: str, prior: PopulationPrior) -> FittedModel:
        asked.append((name, prior.text))
        return server_fit(name, server="fast", factor=1.0, seed=6, spread=0.1)

    settings = replace(SHORT, draws=300, tune=300)
    without = pool([*fits, vague], settings=settings)
    assert without.population.effective_draws["vague"] < 400.0
    assert any(
        problem.startswith("vague: its pooled posterior rests on") for problem in without.population.problems
    )
    again = pool([*fits, vague], settings=settings, refit=refit)
    assert asked[0] == ("vague", "the pool pool (4 traces of 2 servers), as a further trace of fast")
    assert again.population.effective_draws["vague"] > 3.0 * without.population.effective_draws["vague"]
    assert again.alone["vague"] is vague
