"""Factors by level: they learn a staircase, and leave the equation alone where there is none."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sched.model.equation import PARAMETERS
from bayes_sched.posterior.fit import fit
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings
from tests.staircase import staircase_steps, true_latency_ms
from tests.synthetic_fit import TRUTH, simulated_steps

pytestmark = pytest.mark.slow

SETTINGS = SamplerSettings(draws=1000, cores=2)
STAIRS = {8: 1.0, 12: 1.12, 16: 0.95, 99: 1.06}
"""Factors of decode latencies up to these numbers of requests, which no smooth equation has."""
UNSEEN = (7, 18)


def fitted(steps: pd.DataFrame, model: str) -> FittedModel:
    found = fit(steps, model=model, settings=SETTINGS).fit
    assert found.converged, found.convergence.text
    return found


def decode_stairs(num_steps: int, *, seed: int) -> pd.DataFrame:
    """Return steps of a server whose decodes have a staircase in B as well; two numbers of requests lack."""
    steps = staircase_steps(num_steps, seed=seed)
    decodes = steps["num_prefill_reqs"] == 0
    position = np.searchsorted(list(STAIRS), steps["batch_size"])
    factor = np.where(decodes, np.array(list(STAIRS.values()))[position], 1.0)
    steps = steps.assign(latency_ms=steps["latency_ms"] * factor, true_ms=true_latency_ms(steps) * factor)
    return steps[~(decodes & steps["batch_size"].isin(UNSEEN))].reset_index(drop=True)


def test_the_equation_is_recovered_where_it_holds_though_levels_are_sparse() -> None:
    steps = simulated_steps(300, seed=21)
    found, plain = (fitted(steps, name).posterior for name in ("saturation_levels", "saturation"))
    for parameter in PARAMETERS:
        low, high = np.quantile(found[parameter.name], [0.005, 0.995])
        assert low < TRUTH[parameter.name] < high, parameter.name
    assert float(found["s_d"].median()) < 0.03
    assert float(found["s_p"].median()) < 0.03
    # Departures that may be there cost some certainty; they do not take the equation over.
    slope = [x["w_1"] / x["P_max"] + x["tau_S"] for x in (found, plain)]
    assert float(slope[0].std()) < 4.0 * float(slope[1].std())
    assert float(slope[0].median()) == pytest.approx(TRUTH["w_1"] / TRUTH["P_max"] + TRUTH["tau_S"], rel=0.05)


def test_a_staircase_of_decodes_is_learned_and_where_none_was_seen_the_band_says_so() -> None:
    found = fitted(decode_stairs(1500, seed=7), "saturation_levels_context")
    held_out = decode_stairs(2000, seed=8)
    decodes = held_out[held_out["num_prefill_reqs"] == 0]
    mean = found.mean_latency(decodes, max_draws=200).mean(("chain", "draw")).to_numpy()
    assert np.abs(mean / decodes["true_ms"] - 1.0).max() < 0.02
    band = found.predictive_band(held_out, max_draws=200)
    inside = (held_out["latency_ms"] >= band["lower"]) & (held_out["latency_ms"] <= band["upper"])
    assert 0.87 < float(inside.mean()) < 0.93
    for regime in (held_out["num_prefill_reqs"] == 0, held_out["num_prefill_reqs"] > 0):
        assert 0.85 < float(inside[regime].mean()) < 0.95
    table = {name: ("step", np.full(4, value)) for name, value in decodes.mean(numeric_only=True).items()}
    sizes = np.array([6.0, 8.0, *UNSEEN])
    steps = xr.Dataset(table).assign(batch_size=("step", sizes), total_tokens=("step", sizes))
    wide = found.predictive_band(steps)
    width = ((wide["upper"] - wide["lower"]) / wide["median"]).to_numpy()
    assert width[2:].min() > 1.5 * width[:2].max()
