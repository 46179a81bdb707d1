"""A fitted model: what it predicts, with what uncertainty, and where it has seen nothing."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from bayes_sched.errors import InputError
from bayes_sched.model.equation import latency_ms
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters
from bayes_sched.posterior.diagnostics import verdict
from bayes_sched.posterior.fit import observed_steps
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import thin
from bayes_sched.posterior.provenance import FitMetadata
from bayes_sched.steps import as_steps, steps_arrays, steps_grid
from tests.comparison_fits import with_groups
from tests.richer_fit import STEPS, richer_fit
from tests.synthetic_fit import TRUTH, simulated_steps, synthetic_fit, synthetic_metadata


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    return synthetic_fit()


@pytest.fixture(scope="module")
def certain() -> FittedModel:
    """A fit that knows the server all but exactly."""
    return synthetic_fit(spread=1e-4)


GRID = steps_grid(batch_size=[1, 8, 64], total_tokens=[4, 64, 2048])
ARRAYS = steps_arrays([1, 8, 64], [4, 64, 2048])


class TestSteps:
    def test_arrays_numbers_tables_and_grids_give_the_same_predictions(self, fit: FittedModel) -> None:
        table = pd.DataFrame({"batch_size": [1, 8, 64], "total_tokens": [4, 64, 2048]}, index=[7, 7, 9])
        from_arrays = fit.predictive_band(ARRAYS)
        assert from_arrays["median"].dims == ("step",)
        xr.testing.assert_equal(from_arrays["median"], fit.predictive_band(table)["median"])
        diagonal = [fit.predictive_band(GRID)["median"].to_numpy()[i, i] for i in range(3)]
        np.testing.assert_allclose(diagonal, from_arrays["median"])
        alone = fit.predictive_band(steps_arrays(8, 64))["median"]
        np.testing.assert_allclose(alone, from_arrays["median"][[1]])

    def test_results_keep_dims_and_coordinates_of_the_steps(self, fit: FittedModel) -> None:
        band = fit.mean_band(GRID)
        assert band["lower"].dims == ("batch_size", "total_tokens")
        np.testing.assert_array_equal(band["total_tokens"], [4, 64, 2048])
        steps = xr.Dataset({"batch_size": (("b",), [1, 2]), "total_tokens": (("s", "b"), [[5, 6], [7, 8]])})
        assert set(fit.quantile(steps, 0.5).dims) == {"b", "s"}
        np.testing.assert_array_equal(fit.quantile(ARRAYS, 0.5)["batch_size"], [1, 8, 64])

    def test_a_grid_is_nan_where_no_step_is_possible(self, fit: FittedModel) -> None:
        for found in (
            fit.mean_band(GRID)["lower"],
            fit.quantile(GRID, 0.9),
            fit.probability_below(GRID, 20.0),
        ):
            np.testing.assert_array_equal(np.isnan(found), ~GRID["possible"])
        assert bool(fit.extrapolation(GRID).sel(batch_size=64, total_tokens=4))

    @pytest.mark.parametrize(
        ("batch_size", "total_tokens", "message"),
        [
            ([1, 8], [5, 5], "5 tokens for 8 requests (step 1; 1 of 2 steps): every request of a step has"),
            ([0, 1], [5, 5], "batch_size is below 1: 0 (step 0; 1 of 2 values)"),
            ([1, 1], [5, -3], "total_tokens is below 1: -3 (step 1; 1 of 2 values)"),
            ([1, np.nan], [5, 5], "batch_size is not a finite number: nan (step 1; 1 of 2 values)"),
            ([1, 1], [5, np.inf], "total_tokens is not a finite number: inf (step 1; 1 of 2 values)"),
            ([1, 2, 3], [5, 5], "batch_size and total_tokens do not go together"),
            ([[1]], [[5]], "have 2 dims: give one"),
            ([], [], "there is no step to predict for"),
            (["many"], [5], "steps are made of numbers"),
        ],
    )
    def test_impossible_steps_are_refused(
        self, batch_size: list[float], total_tokens: list[float], message: str
    ) -> None:
        with pytest.raises(InputError) as raised:
            steps_arrays(batch_size, total_tokens)
        assert message in str(raised.value)

    def test_a_table_is_checked_like_arrays(self, fit: FittedModel) -> None:
        with pytest.raises(InputError, match="5 tokens for 8 requests"):
            fit.mean_latency(pd.DataFrame({"batch_size": [8], "total_tokens": [5]}))
        with pytest.raises(
            InputError, match="the steps have no total_tokens; the model needs batch_size, total"
        ):
            fit.mean_latency(pd.DataFrame({"batch_size": [8]}))
        with pytest.raises(InputError, match="use steps_arrays or steps_grid"):
            as_steps([1, 2])  # type: ignore[arg-type]
        with pytest.raises(InputError, match="batch_size is below 1: 0"):
            steps_grid(batch_size=[0, 1], total_tokens=[1])
        with pytest.raises(InputError, match="total_tokens of a grid has 2 dims"):
            steps_grid(batch_size=[1], total_tokens=[[1]])


class TestUncertainty:
    def test_mean_latency_is_the_equation_for_each_draw(self, fit: FittedModel) -> None:
        mean = fit.mean_latency(ARRAYS, max_draws=None)
        assert mean.dims == ("chain", "draw", "step")
        theta = {
            name: float(fit.posterior[name][2, 17]) for name in TRUTH if not name.startswith(("nu", "sig"))
        }
        expected = latency_ms(np.array([1, 8, 64]), np.array([4, 64, 2048]), **theta)
        np.testing.assert_allclose(mean[2, 17], expected)

    def test_the_mean_band_is_the_quantile_of_the_mean_draws(self, fit: FittedModel) -> None:
        band = fit.mean_band(ARRAYS, probability=0.8)
        draws = fit.mean_latency(ARRAYS).quantile([0.1, 0.5, 0.9], dim=("chain", "draw"))
        np.testing.assert_allclose(np.stack([band[k] for k in ("lower", "median", "upper")]), draws)
        assert band.attrs == {"kind": "mean", "probability": 0.8}
        assert band["lower"].attrs["units"] == "ms"

    def test_the_predictive_band_is_wider_than_the_mean_band(self, fit: FittedModel) -> None:
        mean, predictive = fit.mean_band(ARRAYS), fit.predictive_band(ARRAYS)
        assert bool((predictive["lower"] < mean["lower"]).all())
        assert bool((predictive["upper"] > mean["upper"]).all())

    def test_without_parameter_uncertainty_only_the_noise_is_left(self, certain: FittedModel) -> None:
        mean, predictive = certain.mean_band(ARRAYS), certain.predictive_band(ARRAYS)
        assert float(((mean["upper"] - mean["lower"]) / mean["median"]).max()) < 2e-3
        scale = np.sqrt(TRUTH["sigma_floor"] ** 2 + (TRUTH["sigma_rel"] * mean["median"]) ** 2)
        expected = mean["median"] + scale * stats.t.ppf(0.95, TRUTH["nu"])
        np.testing.assert_allclose(predictive["upper"], expected, rtol=1e-3)

    def test_noise_of_a_constant_scale_is_the_same_for_every_step(self) -> None:
        fit = synthetic_fit(spread=1e-4)
        priors = Priors.from_parameters(all_parameters(fit.model, "constant"))
        data = fit.data.copy()
        posterior = fit.posterior.drop_vars(["sigma_rel", "sigma_floor"])
        data["posterior"] = xr.DataTree(posterior.assign(sigma=xr.full_like(posterior["nu"], 0.5)))
        metadata = synthetic_metadata(noise="constant", priors=priors)
        constant = FittedModel(data=data, model=fit.model, metadata=metadata)
        band = constant.predictive_band(ARRAYS)
        np.testing.assert_allclose(
            band["upper"] - band["median"], 0.5 * stats.t.ppf(0.95, TRUTH["nu"]), rtol=0.01
        )
        assert constant.sample_latency(ARRAYS, seed=1).sizes["step"] == 3

    def test_the_default_probability_is_the_documented_one(self, fit: FittedModel) -> None:
        assert fit.predictive_band(ARRAYS).attrs["probability"] == DEFAULT_PROBABILITY == 0.9
        xr.testing.assert_equal(
            fit.predictive_band(ARRAYS)["upper"], fit.quantile(ARRAYS, 0.95).drop_vars("quantile")
        )

    def test_new_steps_fall_into_the_bands_and_have_a_uniform_integral_transform(
        self, certain: FittedModel
    ) -> None:
        steps = simulated_steps(4000, seed=11)
        latency_ms = steps["latency_ms"].to_numpy()
        for probability in (0.5, 0.9, 0.99):
            band = certain.predictive_band(steps, probability=probability)
            inside = (latency_ms >= band["lower"].values) & (latency_ms <= band["upper"].values)
            error = np.sqrt(probability * (1 - probability) / len(steps))
            assert abs(inside.mean() - probability) < 4 * error
        pit = certain.probability_below(steps, steps["latency_ms"])
        assert pit.dims == ("step",)
        assert stats.kstest(pit.to_numpy(), "uniform").pvalue > 1e-3

    def test_sampled_latencies_follow_the_predictive_distribution(self, fit: FittedModel) -> None:
        steps = steps_arrays(np.full(60, 8), np.full(60, 64))
        samples = fit.sample_latency(steps, seed=5).to_numpy().ravel()
        for q in (0.05, 0.5, 0.95):
            limit = float(fit.quantile(steps, q)[0])
            assert abs((samples <= limit).mean() - q) < 5 * np.sqrt(q * (1 - q) / samples.size)

    def test_a_seed_fixes_the_samples_and_equal_steps_are_drawn_independently(self, fit: FittedModel) -> None:
        steps = steps_arrays([8, 8], [64, 64])
        samples = fit.sample_latency(steps, seed=5)
        xr.testing.assert_identical(samples, fit.sample_latency(steps, seed=5))
        assert samples.dims == ("chain", "draw", "step")
        assert bool((samples[..., 0] != samples[..., 1]).all())
        assert bool((samples >= 0).all())


class TestQuantilesAndProbabilities:
    def test_they_are_inverse_to_each_other(self, fit: FittedModel) -> None:
        for q in (0.05, 0.5, 0.99):
            np.testing.assert_allclose(fit.probability_below(ARRAYS, fit.quantile(ARRAYS, q)), q, atol=1e-6)

    def test_several_levels_and_limits_become_dims(self, fit: FittedModel) -> None:
        quantiles = fit.quantile(GRID, [0.5, 0.9])
        assert quantiles.dims == ("quantile", "batch_size", "total_tokens")
        np.testing.assert_array_equal(quantiles["quantile"], [0.5, 0.9])
        below = fit.probability_below(GRID, [10.0, 20.0, 40.0])
        assert below.dims == ("batch_size", "total_tokens", "latency_ms")
        xr.testing.assert_allclose(below.sel(latency_ms=20.0), fit.probability_below(GRID, 20.0))
        assert fit.probability_below(ARRAYS, xr.DataArray([5.0, 6.0], dims="slo")).dims == ("step", "slo")

    def test_the_average_over_draws_is_the_predictive_probability(self, fit: FittedModel) -> None:
        draws = fit.probability_below_draws(ARRAYS, 12.0)
        assert draws.dims == ("chain", "draw", "step")
        np.testing.assert_allclose(
            draws.mean(("chain", "draw")), fit.probability_below(ARRAYS, 12.0), atol=1e-7
        )

    def test_the_quantile_of_each_draw_is_that_of_its_noise(self, fit: FittedModel) -> None:
        found = fit.quantile_draws(ARRAYS, [0.5, 0.99])
        assert found.dims == ("quantile", "chain", "draw", "step")
        np.testing.assert_allclose(found.sel(quantile=0.5), fit.mean_latency(ARRAYS), rtol=1e-9)
        assert fit.quantile_draws(ARRAYS, 0.99).dims == ("chain", "draw", "step")
        limit = found.sel(quantile=0.99)[1, 3]
        below = fit.probability_below_draws(ARRAYS, limit.drop_vars(["quantile", "chain", "draw"]))
        np.testing.assert_allclose(below[1, 3], 0.99)

    def test_limits_that_do_not_fit_the_steps_are_refused(self, fit: FittedModel) -> None:
        with pytest.raises(InputError, match="differ in the length or the labels"):
            fit.probability_below(ARRAYS, xr.DataArray([1.0, 2.0], dims="step"))
        with pytest.raises(InputError, match="holds NaN"):
            fit.probability_below(ARRAYS, float("nan"))
        with pytest.raises(InputError, match="a number, a sequence"):
            fit.probability_below(ARRAYS, "soon")  # type: ignore[arg-type]

    def test_levels_outside_of_0_to_1_are_refused(self, fit: FittedModel) -> None:
        with pytest.raises(InputError, match="q = 99: give a probability"):
            fit.quantile(ARRAYS, 99)
        with pytest.raises(InputError, match="probability = 95: give a probability"):
            fit.predictive_band(ARRAYS, probability=95)
        with pytest.raises(InputError, match="probability = 0: give a probability"):
            fit.parameter_table(probability=0)

    def test_repeated_steps_and_chunks_change_nothing(
        self, fit: FittedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng = np.random.default_rng(0)
        batch_size = rng.integers(1, 5, 200)
        steps = steps_arrays(batch_size, batch_size + rng.integers(0, 5, 200))
        whole = fit.predictive_band(steps)
        monkeypatch.setattr("bayes_sched.posterior.prediction.MAX_CHUNK_VALUES", 1)
        in_chunks = fit.predictive_band(steps)
        xr.testing.assert_allclose(whole, in_chunks)
        one = fit.quantile(steps.isel(step=[42]), 0.95)
        np.testing.assert_allclose(one, whole["upper"][[42]])


class TestThinning:
    def test_draws_are_taken_evenly_from_every_chain_and_none_takes_all(self, fit: FittedModel) -> None:
        thinned = thin(fit.posterior, max_draws=100)
        assert dict(thinned.sizes) == {"chain": 4, "draw": 25}
        np.testing.assert_array_equal(np.diff(thinned["draw"]), 10)
        long = synthetic_fit(draws=1000)
        some, every = long.predictive_band(ARRAYS), long.predictive_band(ARRAYS, max_draws=None)
        np.testing.assert_allclose(some["upper"], every["upper"], rtol=0.01)
        assert long.mean_latency(ARRAYS, max_draws=None).sizes["draw"] == 1000
        assert long.mean_latency(ARRAYS).sizes["draw"] == 250
        with pytest.raises(InputError, match="max_draws = 0: give a positive number, or None"):
            fit.mean_band(ARRAYS, max_draws=0)


class TestExtrapolation:
    def test_bands_mark_the_steps_that_the_trace_does_not_cover(self, fit: FittedModel) -> None:
        steps = steps_arrays([1, 64, 64, 128], [1, 64, 8192, 4096])
        for band in (fit.mean_band(steps), fit.predictive_band(steps)):
            assert band["extrapolation"].dtype == bool
            np.testing.assert_array_equal(band["extrapolation"], [False, False, True, True])
        np.testing.assert_array_equal(fit.in_region(steps), ~fit.extrapolation(steps))


class TestParameterTable:
    def test_every_quantity_has_a_row_with_all_columns(self, fit: FittedModel) -> None:
        table = fit.parameter_table()
        assert list(table.columns) == [
            *("name", "meaning", "unit", "mean", "median", "lower", "upper", "ess_bulk", "ess_tail", "r_hat"),
            *("prior_median", "contraction", "verdict", "kind"),
        ]
        assert list(table["name"][:8]) == [p.name for p in fit.model.parameters]
        assert set(table["kind"]) == {"parameter", "noise", "combination"}
        assert not table.isna().any(axis=None)

    def test_numbers_are_those_of_the_draws(self, fit: FittedModel) -> None:
        row = fit.parameter_table(probability=0.5).set_index("name").loc["tau_0"]
        draws = fit.posterior["tau_0"]
        assert row["mean"] == pytest.approx(float(draws.mean()))
        assert row["lower"] == pytest.approx(float(draws.quantile(0.25)))
        assert row["upper"] == pytest.approx(float(draws.quantile(0.75)))
        assert row["prior_median"] == pytest.approx(fit.metadata.priors["tau_0"].median)
        sigma = fit.metadata.priors["tau_0"].sigma
        assert row["contraction"] == pytest.approx(1 - float(np.log(draws).var(ddof=1)) / sigma**2)

    def test_a_posterior_that_is_its_prior_is_called_so(self) -> None:
        fit = synthetic_fit()
        prior = fit.metadata.priors["P_max"]
        rng = np.random.default_rng(1)
        draws = np.exp(prior.mu + prior.sigma * rng.standard_normal((4, 250)))
        fit.data["posterior"]["P_max"] = fit.posterior["P_max"].copy(data=draws)
        row = fit.parameter_table().set_index("name").loc["P_max"]
        assert abs(row["contraction"]) < 0.1
        assert row["verdict"] == "the data say nothing about P_max: its posterior is its prior"

    def test_a_posterior_beyond_its_prior_is_called_so(self) -> None:
        fit = synthetic_fit()
        fit.data["posterior"]["tau_S"] = fit.posterior["tau_S"] * 1000.0
        row = fit.parameter_table().set_index("name").loc["tau_S"]
        assert row["verdict"] == (
            "well identified by the data; outside the prior's central 95 %, 0.0001 - 0.1 ms/token"
        )

    @pytest.mark.parametrize(
        ("contraction", "shift", "words"),
        [
            (0.95, 0.0, "well identified by the data"),
            (0.9, 0.0, "well identified by the data"),
            (0.7, 0.0, "partly identified by the data"),
            (0.2, 0.0, "weakly identified: the prior matters"),
            (0.05, 0.1, "the data say nothing about k_B: its posterior is its prior"),
            (0.05, -1.3, "the data move k_B below its prior by 1.3 prior standard deviations"),
            (-0.5, 0.1, "the data do not narrow k_B: its posterior is wider than its prior"),
        ],
    )
    def test_verdicts_follow_contraction_and_shift(
        self, contraction: float, shift: float, words: str
    ) -> None:
        assert verdict("k_B", contraction=contraction, shift=shift).startswith(words)


class TestDescription:
    def test_metadata_survives_a_round_trip_through_json(self) -> None:
        bare = synthetic_metadata(command=None, traces=(), bad_lines={}, labels={}, thinned_to=100)
        for metadata in (bare, synthetic_metadata()):
            assert FitMetadata.from_attrs(metadata.to_attrs()) == metadata

    def test_a_description_says_what_results_need_of_a_fit(self, fit: FittedModel) -> None:
        found = fit.description
        assert (found.name, found.labels["gpu"], found.converged) == ("synthetic", "H100", True)
        assert found.region is fit.region
        assert found.cautions == fit.warnings
        failed = synthetic_fit(draws=10, converged=False).description
        assert failed.cautions == ("The fit has not converged.", *fit.warnings)

    def test_convergence_is_that_of_the_draws_and_found_once(self, fit: FittedModel) -> None:
        assert fit.converged
        assert fit.convergence.num_draws == 1000
        assert fit.convergence is fit.convergence
        assert fit.evaluator(None) is fit.evaluator(None)

    def test_a_posterior_without_a_parameter_of_the_model_is_refused(self, fit: FittedModel) -> None:
        data = fit.data.copy()
        data["posterior"] = xr.DataTree(fit.posterior.drop_vars(["k_S", "nu"]))
        with pytest.raises(
            InputError, match="the posterior of synthetic has no k_S, nu: another model made it"
        ):
            FittedModel(data=data, model=fit.model, metadata=fit.metadata)


def test_a_step_with_a_context_that_was_never_seen_is_extrapolation() -> None:
    fit = with_groups(richer_fit(), observed=observed_steps(STEPS))
    assert fit.in_region(STEPS).mean() > 0.9
    typical = fit.completed(steps_arrays([8, 8], [8, 8]))
    assert fit.in_region(typical).all()
    far = typical.assign(context_tokens=typical["context_tokens"] * [1.0, 100.0])
    assert fit.in_region(far).to_numpy().tolist() == [True, False]
    assert fit.in_region(far.drop_vars(["context_tokens", "prefill_pairs"])).all()
