"""The documented least-squares estimator."""

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from bayes_sched import InputError, ThroughputSaturationModel, clean_steps, latency_ms, read_trace
from bayes_sched.checks import optimization as least_squares
from bayes_sched.checks.optimization import NAMES, QUANTITIES, at_bound, covariance, initial_values
from bayes_sched.model.equation import PARAMETERS
from tests.baseline_server import (
    IDENTIFIED,
    RATIOS_TOO,
    TRUTH,
    predicted_ms,
    simulated,
    truth_ms,
)


@pytest.fixture(scope="module")
def fitted() -> ThroughputSaturationModel:
    return ThroughputSaturationModel().fit(simulated())


def test_known_parameters_predict_again(fitted: ThroughputSaturationModel) -> None:
    fresh = simulated(seed=2)
    off = predicted_ms(fitted, fresh) - truth_ms(fresh)
    # Seven identified parameters of 1,500 steps: the expected RMS error is noise * sqrt(7 / 1500) = 0.034 ms.
    assert np.sqrt((off**2).mean()) < 0.1
    assert fitted.metrics_.rmse_ms == pytest.approx(0.5, rel=0.1)


def test_known_parameters_are_within_their_standard_errors(fitted: ThroughputSaturationModel) -> None:
    found = fitted.parameters_ | fitted.ratios_
    scores = {q: (found[q] - RATIOS_TOO[q]) / fitted.standard_errors_[q] for q in IDENTIFIED}
    assert max(abs(score) for score in scores.values()) < 4.0, scores


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["linear", "huber"])
def test_standard_errors_are_those_of_repeated_experiments(loss: Literal["linear", "huber"]) -> None:
    scores = []
    for seed in range(100):
        steps = simulated(800, seed=seed, noise_ms=0.3, relative=0.02)
        model = ThroughputSaturationModel(loss=loss).fit(steps)
        found = model.parameters_ | model.ratios_
        scores.append([(found[q] - RATIOS_TOO[q]) / model.standard_errors_[q] for q in IDENTIFIED])
    # The median of 100 absolute standard scores has a standard error of 0.12 in units of its own.
    typical = np.nanmedian(np.abs(np.array(scores)), axis=0) / 0.6745
    assert ((typical > 0.6) & (typical < 1.4)).all(), dict(zip(IDENTIFIED, typical, strict=True))


def test_parameters_are_in_raw_units(fitted: ThroughputSaturationModel) -> None:
    steps = simulated(50, seed=3)
    by_hand = latency_ms(
        steps["batch_size"].to_numpy(), steps["total_tokens"].to_numpy(), **fitted.parameters_
    )
    np.testing.assert_array_equal(predicted_ms(fitted, steps), by_hand)
    assert fitted.ratios_["a_1"] == pytest.approx(TRUTH["w_1"] / TRUTH["P_max"], rel=0.1)


def test_the_scaling_of_the_search_does_not_matter(
    fitted: ThroughputSaturationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = simulated()
    monkeypatch.setattr(least_squares, "_medians", lambda steps: (1.0, 1.0))
    unscaled = ThroughputSaturationModel().fit(steps)
    np.testing.assert_allclose(predicted_ms(unscaled, steps), predicted_ms(fitted, steps), rtol=1e-3)


def test_the_search_starts_where_it_is_documented() -> None:
    steps = simulated()
    tokens, latency = steps["total_tokens"].to_numpy(), steps["latency_ms"].to_numpy()
    assert initial_values(steps) == pytest.approx(
        {
            "P_max": np.quantile(tokens / latency, 0.95),
            "k_B": 0.1,
            "k_S": 0.01,
            "w_0": 0.1,
            "w_1": np.polyfit(tokens, latency, 1)[0],
            "tau_0": latency.min() / 2.0,
            "tau_B": 1e-3,
            "tau_S": 1e-3,
        }
    )


def test_huber_resists_outliers_where_squares_do_not() -> None:
    steps = simulated(seed=4)
    late = np.random.default_rng(5).random(len(steps)) < 0.05
    steps.loc[late, "latency_ms"] += 120.0
    fresh = simulated(seed=6)
    error = {
        loss: np.abs(predicted_ms(ThroughputSaturationModel(loss=loss).fit(steps), fresh) - truth_ms(fresh))
        for loss in ("linear", "huber")
    }
    assert np.median(error["linear"]) > 3.0
    assert np.median(error["huber"]) < 0.2


def test_no_scale_is_claimed_that_the_data_do_not_know(fitted: ThroughputSaturationModel) -> None:
    assert all(np.isinf(fitted.standard_errors_[name]) for name in ("P_max", "w_0", "w_1"))
    assert all(np.isfinite(fitted.standard_errors_[name]) for name in IDENTIFIED)
    assert any("w_0/P_max and w_1/P_max alone" in text for text in fitted.warnings_)
    covariance = fitted.covariance_
    np.testing.assert_allclose(
        np.sqrt(np.diag(covariance.loc[list(IDENTIFIED), list(IDENTIFIED)])),
        [fitted.standard_errors_[name] for name in IDENTIFIED],
    )


def test_nothing_warns_but_in_the_attribute() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ThroughputSaturationModel().fit(simulated(tau_S=0.0))
    assert model.warnings_


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"tau_S": 0.0, "tau_B": 0.0}, {"tau_B": "0", "tau_S": "0"}),
        ({"k_B": 30.0}, {"k_B": "infinity"}),
        ({"k_S": 40.0}, {"k_S": "infinity"}),
        ({"w_0": 0.0, "tau_0": 30.0}, {"w_0": "0"}),
    ],
    ids=[
        "no latency per request and token",
        "saturated by one request",
        "saturated by one token",
        "no fixed work",
    ],
)
def test_a_parameter_at_its_bound_is_named(changes: Any, bound: dict[str, str]) -> None:
    # Without noise the optimum is the truth, which sits at the bound.
    steps = simulated(noise_ms=1e-6, **changes)
    model = ThroughputSaturationModel().fit(steps)
    assert bound.items() <= model.at_bound_.items()
    for name, place in bound.items():
        assert np.isnan(model.standard_errors_[name])
        row = model.parameter_table().set_index("name").loc[name]
        assert row["at_bound"] == place
        assert place in str(row["verdict"])
        assert any(f"{name} at {place}" in text for text in model.warnings_)


def test_no_bound_is_claimed_where_the_truth_is_inside(fitted: ThroughputSaturationModel) -> None:
    assert fitted.at_bound_ == {}
    assert (fitted.parameter_table()["at_bound"] == "").all()


def test_a_rate_at_zero_leaves_the_works_unknown() -> None:
    # With a tiny k_B the factor is k_B B, and only w_1 / (P_max k_B) is seen.
    tiny: Any = TRUTH | {"k_B": 1e-6, "P_max": 3.2e7}
    optimum = least_squares.Optimum(parameters=tiny, initial=TRUTH, huber_ms=None, num_evaluations=1)
    steps = simulated(**tiny)
    places = at_bound(steps, optimum)
    assert places["k_B"] == "0"
    variances = np.diag(covariance(steps, optimum, places))
    found = dict(zip(QUANTITIES, variances, strict=True))
    assert np.isinf(found["a_1"])
    assert all(np.isfinite(found[name]) for name in ("k_S", "tau_0", "tau_B", "tau_S"))


def test_steps_whose_work_is_nothing_leave_its_speed_undetermined() -> None:
    steps = simulated()
    steps["latency_ms"] = 5.0 + 0.1 * steps["batch_size"] + 0.02 * steps["total_tokens"]
    optimum = least_squares.Optimum(
        parameters=TRUTH | {"w_0": 0.0, "w_1": 0.0, "tau_S": 0.02},
        initial=TRUTH,
        huber_ms=None,
        num_evaluations=1,
    )
    places = at_bound(steps, optimum)
    assert {name: places[name] for name in ("P_max", "k_B", "k_S")} == dict.fromkeys(
        ("P_max", "k_B", "k_S"), "undetermined"
    )


def test_what_a_decode_only_trace_cannot_tell_apart_has_no_standard_error() -> None:
    steps = simulated()
    steps["total_tokens"] = steps["batch_size"]
    steps["latency_ms"] = truth_ms(steps) + np.random.default_rng(7).normal(0.0, 0.3, len(steps))
    model = ThroughputSaturationModel().fit(steps)
    assert np.isinf([model.standard_errors_[name] for name in ("tau_B", "tau_S")]).all()
    assert np.isfinite(model.standard_errors_["tau_0"])
    assert any(text.startswith("tau_B and tau_S: no standard error") for text in model.warnings_)
    assert np.sqrt(((predicted_ms(model, steps) - truth_ms(steps)) ** 2).mean()) < 0.1


def test_steps_outside_the_limits_are_left_out_and_said() -> None:
    steps = simulated()
    slow = steps.assign(latency_ms=np.where(steps["total_tokens"] > 1500, 400.0, steps["latency_ms"]))
    num_slow = int((slow["latency_ms"] > 300.0).sum())
    model = ThroughputSaturationModel().fit(slow)
    assert model.metrics_.num_steps == len(steps) - num_slow
    assert any(f"{num_slow:,} of {len(steps):,}" in text for text in model.warnings_)
    assert ThroughputSaturationModel(max_latency_ms=500.0).fit(slow).metrics_.num_steps == len(steps)


def test_predictions_are_numbers_or_arrays_of_the_shape_asked_for(fitted: ThroughputSaturationModel) -> None:
    assert isinstance(fitted.predict(), float)
    assert fitted.predict() == fitted.predict(batch_size=16, total_tokens=512)
    grid = fitted.predict(np.array([[1], [4]]), [16, 32, 64])
    assert isinstance(grid, np.ndarray)
    assert grid.shape == (2, 3)
    assert grid[1, 2] == fitted.predict(4, 64)


@pytest.mark.parametrize(
    ("batch_size", "total_tokens", "message"),
    [
        (0, 4, "batch_size is below 1"),
        (1, float("nan"), "not a finite number"),
        (8, 4, "every request of a step has at least one token"),
        ([1, 2], [1, 2, 3], "do not go together"),
        ("many", 4, "do not go together"),
    ],
)
def test_impossible_steps_are_refused(
    fitted: ThroughputSaturationModel, batch_size: Any, total_tokens: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fitted.predict(batch_size, total_tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: steps.drop(columns="latency_ms"), "no latency_ms"),
        (lambda steps: steps.head(10), "10 steps are too few for 8 parameters: give at least 16"),
        (lambda steps: steps.head(0), "empty"),
        (lambda steps: steps.assign(batch_size=-1.0), "batch_size is -1 in row 0"),
        (lambda steps: steps.assign(latency_ms=np.inf), "latency_ms is inf in row 0"),
        (lambda steps: steps.assign(latency_ms=0.0), "no step is left"),
        (lambda steps: steps.assign(total_tokens="many"), "steps are made of numbers"),
        (lambda steps: steps.to_numpy(), "not ndarray"),
    ],
)
def test_steps_that_cannot_be_fitted_are_refused_in_one_line(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ThroughputSaturationModel().fit(change(simulated(60)))
    assert "\n" not in str(caught.value)


def test_a_search_without_end_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "_MAX_EVALUATIONS", 2)
    with pytest.raises(InputError, match="no optimum of 1,500 steps within 2 evaluations"):
        ThroughputSaturationModel().fit(simulated())


def test_nothing_can_be_asked_before_a_fit(tmp_path: Path) -> None:
    model = ThroughputSaturationModel()
    steps = simulated(60)
    for ask in (
        model.predict,
        model.parameter_table,
        model.plausibility,
        model.plot_contour,
        lambda: model.residuals(steps),
        lambda: model.score(steps),
        lambda: model.save(tmp_path / "baseline.json"),
    ):
        with pytest.raises(InputError, match="call fit"):
            ask()
    assert not hasattr(model, "parameters_")


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(InputError, match="give linear or huber"):
        ThroughputSaturationModel(loss="cubic")  # type: ignore[arg-type]


def test_settings_are_those_it_was_made_with() -> None:
    model = ThroughputSaturationModel(loss="huber", max_latency_ms=800.0)
    twin = ThroughputSaturationModel(**model.get_params())
    assert repr(twin) == repr(model)
    assert "max_latency_ms=800.0" in repr(model)


def test_contours_have_units_and_mark_what_was_not_seen(fitted: ThroughputSaturationModel) -> None:
    figure = fitted.plot_contour(batch_range=(1, 200), token_range=(1, 4096))
    (axes,) = figure.axes
    assert "(ms)" in axes.get_title(loc="left")
    assert axes.get_xlabel() == "requests in the step, B"
    assert axes.get_ylabel() == "tokens in the step, S"
    assert "no such steps" in figure.legends[0].get_texts()[0].get_text()
    assert axes.get_xlim()[1] == pytest.approx(200)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"batch_range": (0, 64)}, "batch_range is 0 to 64"),
        ({"token_range": (100, 10)}, "token_range is 100 to 10"),
        ({"batch_range": (100, 200), "token_range": (1, 50)}, "no step is possible"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(
    fitted: ThroughputSaturationModel, ranges: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fitted.plot_contour(**ranges)


def test_every_documented_parameter_is_fitted() -> None:
    assert tuple(p.name for p in PARAMETERS) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["linear", "huber"])
def test_real_traces_are_explained_and_their_bounds_named(
    shared_traces: Path, loss: Literal["linear", "huber"]
) -> None:
    for path in sorted(shared_traces.glob("[ah]*.jsonl.gz")):
        steps = read_trace(path).steps
        model = ThroughputSaturationModel(loss=loss).fit(steps)
        assert model.score(clean_steps(steps).steps) > 0.95
        assert model.at_bound_, path.name
