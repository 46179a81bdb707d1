"""Steps of requests and tokens alone meet the contexts of steps like them, not one typical context."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.posterior.contexts import Contexts
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.steps import steps_arrays
from tests.comparison_fits import with_groups
from tests.richer_fit import richer_fit

COLUMNS = ("batch_size", "total_tokens", "context_tokens", "prefill_pairs", "num_prefill_reqs")
NUM = 2000


def varied_steps(seed: int) -> pd.DataFrame:
    """Decode and prefill steps whose contexts differ by a factor of thirty."""
    rng = np.random.default_rng(seed)
    batch_size = rng.integers(4, 9, NUM)
    prefill = rng.random(NUM) < 0.4
    chunk = np.where(prefill, rng.integers(90, 110, NUM), 0)
    cached = np.where(prefill, rng.integers(0, 500, NUM), 0)
    each = np.exp(rng.uniform(np.log(1e3), np.log(3e4), NUM))
    return pd.DataFrame(
        {
            "batch_size": batch_size,
            "total_tokens": batch_size - prefill + chunk,
            "num_prefill_reqs": prefill.astype(int),
            "context_tokens": each * (batch_size - prefill) + cached * prefill,
            "prefill_pairs": chunk * cached + chunk * (chunk + 1) / 2,
        }
    )


STEPS = varied_steps(0)


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    return with_groups(
        richer_fit("saturation_context"), observed=xr.Dataset.from_dataframe(STEPS.assign(latency_ms=1.0))
    )


def test_a_step_that_the_trace_holds_gets_back_what_it_had() -> None:
    contexts = Contexts.of(STEPS.iloc[[0]], COLUMNS)
    assert contexts is not None
    sizes = STEPS.iloc[[0]][["batch_size", "total_tokens"]].to_xarray().rename(index="cell").drop_vars("cell")
    found = contexts.mean(sizes)
    for name in COLUMNS:
        assert found[name].item() == pytest.approx(STEPS[name].iloc[0])


def test_contexts_are_those_of_the_kind_at_that_size_and_ordered() -> None:
    contexts = Contexts.of(STEPS, COLUMNS)
    assert contexts is not None
    table = xr.Dataset({"batch_size": ("cell", [6.0, 6.0]), "total_tokens": ("cell", [6.0, 105.0])})
    found = contexts.at(table, np.array([0.0, 0.5, 0.999])).transpose("sample", "cell")
    assert found["num_prefill_reqs"].to_numpy().tolist() == [[0.0, 1.0]] * 3
    assert (found["context_tokens"].diff("sample") > 0.0).all()
    alike = STEPS[(STEPS["batch_size"] == 6) & (STEPS["total_tokens"] == 6)]
    assert found["context_tokens"][1, 0].item() == pytest.approx(alike["context_tokens"].median(), rel=0.25)


def test_bands_hold_the_steps_that_are_to_come_and_at_one_typical_context_they_do_not(
    fit: FittedModel,
) -> None:
    future = varied_steps(1)
    drawn = fit.sample_latency(future, seed=3).transpose("step", ...).to_numpy().reshape(NUM, -1)
    latency = drawn[np.arange(NUM), np.arange(NUM) % drawn.shape[1]]
    sizes = steps_arrays(future["batch_size"], future["total_tokens"])

    def coverage(band: xr.Dataset) -> float:
        return float(((band["lower"] <= latency) & (latency <= band["upper"])).mean())

    assert 0.87 < coverage(fit.predictive_band(sizes)) < 0.93
    assert coverage(fit.predictive_band(fit.completed(sizes))) < 0.6
    late = 1.0 - fit.probability_below_draws(sizes, pd.Series(latency)).mean(("chain", "draw"))
    assert float((late < 0.1).mean()) == pytest.approx(0.1, abs=0.03)


def test_a_draw_s_quantile_is_of_noise_and_contexts_together(fit: FittedModel) -> None:
    sizes = steps_arrays([4, 6], [4, 105])
    quantile = fit.quantile_draws(sizes, 0.95)
    assert fit.probability_below_draws(sizes, quantile.mean(("chain", "draw"))).mean(
        ("chain", "draw")
    ).to_numpy() == pytest.approx(0.95, abs=0.01)
    whole = fit.completed(sizes)  # where nothing is lacking it is that of the noise alone
    below = fit.probability_below_draws(
        whole, fit.quantile_draws(whole, 0.95).isel(chain=0, draw=0, drop=True)
    )
    assert below.isel(chain=0, draw=0).to_numpy() == pytest.approx(0.95)


def test_the_mean_is_at_the_mean_context_and_a_context_may_be_given(fit: FittedModel) -> None:
    sizes = steps_arrays([6], [6])
    alike = STEPS[STEPS["total_tokens"] == 6].assign(batch_size=6)
    expected = fit.mean_latency(alike).mean().item()
    assert fit.mean_latency(sizes).mean().item() == pytest.approx(expected, rel=0.01)
    given = fit.with_context(5000)
    exact = fit.mean_latency(
        sizes.assign(
            context_tokens=("step", [3e4]),
            prefill_pairs=0 * sizes["batch_size"],
            num_prefill_reqs=0 * sizes["batch_size"],
        )
    )
    np.testing.assert_allclose(given.mean_latency(sizes), exact)
    assert "5,000 tokens of context" in given.context_text
    assert "nearest to it" in fit.context_text


def test_without_steps_that_tell_it_a_column_cannot_be_had(fit: FittedModel) -> None:
    bare = with_groups(fit, observed=xr.Dataset.from_dataframe(STEPS.head(0)), typical=xr.Dataset())
    with pytest.raises(InputError, match="the steps have no context_tokens"):
        bare.predictive_band(steps_arrays([2], [9]))
