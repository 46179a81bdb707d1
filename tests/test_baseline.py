"""The documented least-squares estimator: its parameters, its standard errors, its scores and its file."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from bayes_sched import InputError, ThroughputSaturationModel, clean_steps, read_trace
from bayes_sched.checks import optimization
from bayes_sched.checks.optimization import NAMES, QUANTITIES, at_bound, covariance, initial_values
from bayes_sched.model.equation import PARAMETERS, latency_ms
from tests.baseline_server import IDENTIFIED, RATIOS_TOO, TRUTH, predicted_ms, simulated, truth_ms


@pytest.fixture(scope="module")
def fitted() -> ThroughputSaturationModel:
    return ThroughputSaturationModel().fit(simulated())


class TestParameters:
    def test_known_parameters_predict_again_and_are_within_their_standard_errors(
        self, fitted: ThroughputSaturationModel
    ) -> None:
        fresh = simulated(seed=2)
        off = predicted_ms(fitted, fresh) - truth_ms(fresh)
        # Seven identified parameters of 1,500 steps: expected RMS error noise * sqrt(7 / 1500) = 0.034 ms.
        assert np.sqrt((off**2).mean()) < 0.1
        assert fitted.metrics_.rmse_ms == pytest.approx(0.5, rel=0.1)
        found = fitted.parameters_ | fitted.ratios_
        scores = {q: (found[q] - RATIOS_TOO[q]) / fitted.standard_errors_[q] for q in IDENTIFIED}
        assert max(abs(score) for score in scores.values()) < 4.0, scores

    @pytest.mark.slow
    @pytest.mark.parametrize("loss", ["linear", "huber"])
    def test_standard_errors_are_those_of_repeated_experiments(
        self, loss: Literal["linear", "huber"]
    ) -> None:
        scores = []
        for seed in range(100):
            steps = simulated(800, seed=seed, noise_ms=0.3, relative=0.02)
            model = ThroughputSaturationModel(loss=loss).fit(steps)
            found = model.parameters_ | model.ratios_
            scores.append([(found[q] - RATIOS_TOO[q]) / model.standard_errors_[q] for q in IDENTIFIED])
        # The median of 100 absolute standard scores has a standard error of 0.12 in units of its own.
        typical = np.nanmedian(np.abs(np.array(scores)), axis=0) / 0.6745
        assert ((typical > 0.6) & (typical < 1.4)).all(), dict(zip(IDENTIFIED, typical, strict=True))

    def test_parameters_are_in_raw_units_and_all_are_fitted(self, fitted: ThroughputSaturationModel) -> None:
        steps = simulated(50, seed=3)
        sizes = (steps[name].to_numpy() for name in ("batch_size", "total_tokens"))
        np.testing.assert_array_equal(predicted_ms(fitted, steps), latency_ms(*sizes, **fitted.parameters_))
        assert fitted.ratios_["a_1"] == pytest.approx(TRUTH["w_1"] / TRUTH["P_max"], rel=0.1)
        assert tuple(p.name for p in PARAMETERS) == NAMES

    def test_the_scaling_of_the_search_does_not_matter(
        self, fitted: ThroughputSaturationModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = simulated()
        monkeypatch.setattr(optimization, "_medians", lambda steps: (1.0, 1.0))
        unscaled = ThroughputSaturationModel().fit(steps)
        np.testing.assert_allclose(predicted_ms(unscaled, steps), predicted_ms(fitted, steps), rtol=1e-3)

    def test_the_search_starts_where_it_is_documented(self) -> None:
        steps = simulated()
        tokens, latency = steps["total_tokens"].to_numpy(), steps["latency_ms"].to_numpy()
        documented = {"k_B": 0.1, "k_S": 0.01, "w_0": 0.1, "tau_B": 1e-3, "tau_S": 1e-3}
        documented |= {"P_max": np.quantile(tokens / latency, 0.95), "tau_0": latency.min() / 2.0}
        documented["w_1"] = np.polyfit(tokens, latency, 1)[0]
        assert initial_values(steps) == pytest.approx(documented)

    def test_huber_resists_outliers_where_squares_do_not(self) -> None:
        steps, fresh = simulated(seed=4), simulated(seed=6)
        late = np.random.default_rng(5).random(len(steps)) < 0.05
        steps.loc[late, "latency_ms"] += 120.0
        error = {
            loss: np.abs(
                predicted_ms(ThroughputSaturationModel(loss=loss).fit(steps), fresh) - truth_ms(fresh)
            )
            for loss in ("linear", "huber")
        }
        assert np.median(error["linear"]) > 3.0
        assert np.median(error["huber"]) < 0.2

    def test_no_scale_is_claimed_that_the_data_do_not_know(self, fitted: ThroughputSaturationModel) -> None:
        assert all(np.isinf(fitted.standard_errors_[name]) for name in ("P_max", "w_0", "w_1"))
        assert all(np.isfinite(fitted.standard_errors_[name]) for name in IDENTIFIED)
        assert any("w_0/P_max and w_1/P_max alone" in text for text in fitted.warnings_)
        known = fitted.covariance_.loc[list(IDENTIFIED), list(IDENTIFIED)]
        errors = [fitted.standard_errors_[name] for name in IDENTIFIED]
        np.testing.assert_allclose(np.sqrt(np.diag(known)), errors)
        assert fitted.at_bound_ == {}
        assert (fitted.parameter_table()["at_bound"] == "").all()

    @pytest.mark.parametrize(
        ("changes", "bound"),
        [
            ({"tau_S": 0.0, "tau_B": 0.0}, {"tau_B": "0", "tau_S": "0"}),
            ({"k_B": 30.0}, {"k_B": "infinity"}),
            ({"k_S": 40.0}, {"k_S": "infinity"}),
            ({"w_0": 0.0, "tau_0": 30.0}, {"w_0": "0"}),
        ],
        ids=["no latency by size", "saturated by one request", "saturated by one token", "no fixed work"],
    )
    def test_a_parameter_at_its_bound_is_named(self, changes: Any, bound: dict[str, str]) -> None:
        # Without noise the optimum is the truth, which sits at the bound.
        model = ThroughputSaturationModel().fit(simulated(300, noise_ms=1e-6, **changes))
        assert bound.items() <= model.at_bound_.items()
        for name, place in bound.items():
            assert np.isnan(model.standard_errors_[name])
            row = model.parameter_table().set_index("name").loc[name]
            assert row["at_bound"] == place
            assert place in str(row["verdict"])
            assert any(f"{name} at {place}" in text for text in model.warnings_)

    def test_a_rate_at_zero_leaves_the_works_unknown(self) -> None:
        # With a tiny k_B the factor is k_B B, and only w_1 / (P_max k_B) is seen.
        tiny: Any = TRUTH | {"k_B": 1e-6, "P_max": 3.2e7}
        steps = simulated(**tiny)
        places = at_bound(steps, tiny, None)
        assert places["k_B"] == "0"
        found = dict(zip(QUANTITIES, np.diag(covariance(steps, tiny, None, places)), strict=True))
        assert np.isinf(found["a_1"])
        assert all(np.isfinite(found[name]) for name in ("k_S", "tau_0", "tau_B", "tau_S"))

    def test_steps_whose_work_is_nothing_leave_its_speed_undetermined(self) -> None:
        steps = simulated()
        steps["latency_ms"] = 5.0 + 0.1 * steps["batch_size"] + 0.02 * steps["total_tokens"]
        places = at_bound(steps, TRUTH | {"w_0": 0.0, "w_1": 0.0, "tau_S": 0.02}, None)
        assert {places[name] for name in ("P_max", "k_B", "k_S")} == {"undetermined"}

    def test_what_a_decode_only_trace_cannot_tell_apart_has_no_standard_error(self) -> None:
        steps = simulated(800)
        steps["total_tokens"] = steps["batch_size"]
        steps["latency_ms"] = truth_ms(steps) + np.random.default_rng(7).normal(0.0, 0.3, len(steps))
        model = ThroughputSaturationModel().fit(steps)
        assert np.isinf([model.standard_errors_[name] for name in ("tau_B", "tau_S")]).all()
        assert np.isfinite(model.standard_errors_["tau_0"])
        assert any(text.startswith("tau_B and tau_S: no standard error") for text in model.warnings_)
        assert np.sqrt(((predicted_ms(model, steps) - truth_ms(steps)) ** 2).mean()) < 0.1

    @pytest.mark.slow
    @pytest.mark.parametrize("loss", ["linear", "huber"])
    def test_real_traces_are_explained_and_their_bounds_named(
        self, shared_traces: Path, loss: Literal["linear", "huber"]
    ) -> None:
        for path in sorted(shared_traces.glob("[ah]*.jsonl.gz")):
            steps = read_trace(path).steps
            model = ThroughputSaturationModel(loss=loss).fit(steps)
            assert model.score(clean_steps(steps).steps) > 0.95
            assert model.at_bound_, path.name


class TestManners:
    def test_steps_outside_the_limits_are_left_out_and_said(self) -> None:
        steps = simulated(300)
        steps.loc[steps["total_tokens"] > 1500, "latency_ms"] = 400.0
        num_slow = int((steps["latency_ms"] > 300.0).sum())
        model = ThroughputSaturationModel().fit(steps)
        assert model.metrics_.num_steps == len(steps) - num_slow
        assert any(f"{num_slow:,} of {len(steps):,}" in text for text in model.warnings_)
        assert ThroughputSaturationModel(max_latency_ms=500.0).fit(steps).metrics_.num_steps == len(steps)

    def test_predictions_are_numbers_or_arrays_of_the_shape_asked_for(
        self, fitted: ThroughputSaturationModel
    ) -> None:
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
        self, fitted: ThroughputSaturationModel, batch_size: Any, total_tokens: Any, message: str
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
    def test_steps_that_cannot_be_fitted_are_refused_in_one_line(self, change: Any, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            ThroughputSaturationModel().fit(change(simulated(60)))
        assert "\n" not in str(caught.value)

    def test_a_search_without_end_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(optimization, "_MAX_EVALUATIONS", 2)
        with pytest.raises(InputError, match="no optimum of 1,500 steps within 2 evaluations"):
            ThroughputSaturationModel().fit(simulated())

    def test_nothing_can_be_asked_before_a_fit(self, tmp_path: Path) -> None:
        model, steps = ThroughputSaturationModel(), simulated(60)
        without_steps = (model.predict, model.parameter_table, model.physical_checks, model.plot_contour)
        with_steps = (lambda: model.residuals(steps), lambda: model.score(steps))
        for ask in (*without_steps, *with_steps, lambda: model.save(tmp_path / "baseline.json")):
            with pytest.raises(InputError, match="call fit"):
                ask()
        assert not hasattr(model, "parameters_")

    def test_settings_are_those_it_was_made_with(self) -> None:
        model = ThroughputSaturationModel(loss="huber", max_latency_ms=800.0)
        assert repr(ThroughputSaturationModel(**model.get_params())) == repr(model)
        assert "max_latency_ms=800.0" in repr(model)
        with pytest.raises(InputError, match="give linear or huber"):
            ThroughputSaturationModel(loss="cubic")  # type: ignore[arg-type]

    def test_contours_have_units_and_mark_what_was_not_seen(self, fitted: ThroughputSaturationModel) -> None:
        figure = fitted.plot_contour(batch_range=(1, 200), token_range=(1, 4096))
        (axes,) = figure.axes
        assert "(ms)" in axes.get_title(loc="left")
        assert (axes.get_xlabel(), axes.get_ylabel()) == (
            "requests in the step, B",
            "tokens in the step, S",
        )
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
        self, fitted: ThroughputSaturationModel, ranges: Any, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            fitted.plot_contour(**ranges)


class TestScores:
    def test_scores_are_what_their_names_say(self, fitted: ThroughputSaturationModel) -> None:
        steps = simulated(300, seed=8)
        observed, predicted = steps["latency_ms"].to_numpy(), predicted_ms(fitted, steps)
        scores, error = fitted.metrics(steps), predicted - observed
        assert scores.rmse_ms == pytest.approx(np.sqrt((error**2).mean()))
        assert scores.mae_ms == pytest.approx(np.abs(error).mean())
        assert scores.mape == pytest.approx((np.abs(error) / observed).mean())
        assert scores.r2 == pytest.approx(1.0 - (error**2).sum() / ((observed - observed.mean()) ** 2).sum())
        assert fitted.score(steps) == scores.r2
        assert "Over 300 steps" in scores.text
        assert scores.table["num_steps"].item() == 300
        steps.loc[3, ["batch_size", "total_tokens"]] = 0.0
        with pytest.raises(InputError, match="clean_steps removes idle steps"):
            fitted.score(steps)

    def test_residuals_of_the_right_model_are_unremarkable(self, fitted: ThroughputSaturationModel) -> None:
        found = fitted.residuals(simulated(seed=9))
        assert len(found.residual_ms) == 1500
        assert found.table.groupby("by")["num_steps"].sum().tolist() == [1500, 1500]
        # Each class has 200 steps or more: its mean residual is known to 0.5 / sqrt(200) = 0.035 ms.
        assert found.table["mean_ms"].abs().max() < 0.15
        assert min(found.jarque_bera_p, found.ljung_box_p) > 0.001
        assert abs(found.skewness) < 0.3
        assert "standard errors are too small" not in found.text

    def test_residuals_show_what_the_model_does_not_know(self, fitted: ThroughputSaturationModel) -> None:
        steps = simulated(seed=9)
        drift = 3.0 * np.sin(np.arange(len(steps)) / 50.0)
        slow = np.where(steps["total_tokens"] > 1000, 6.0, 0.0)
        found = fitted.residuals(steps.assign(latency_ms=steps["latency_ms"] + drift + slow))
        assert found.autocorrelation.loc[1] > 0.4
        assert found.ljung_box_p < 1e-6
        assert "standard errors are too small" in found.text
        worst = found.table.iloc[int(np.argmax(found.table["mean_ms"].to_numpy(float)))]
        assert (worst["by"], worst["high"]) == ("total_tokens", steps["total_tokens"].max())


def _changed(**changes: Any) -> Any:
    return lambda saved: json.dumps(saved | changes)


class TestFile:
    def test_a_saved_model_predicts_the_same_to_the_last_digit(self, tmp_path: Path) -> None:
        steps = simulated(300, tau_B=0.0)
        model = ThroughputSaturationModel(loss="huber", max_latency_ms=900.0).fit(steps)
        model.save(tmp_path / "baseline.json")
        again = ThroughputSaturationModel.load(tmp_path / "baseline.json")
        np.testing.assert_array_equal(predicted_ms(again, steps), predicted_ms(model, steps))
        assert repr(again) == repr(model)
        for name in ("at_bound_", "metrics_", "warnings_", "huber_ms_", "initial_"):
            assert getattr(again, name) == getattr(model, name)
        np.testing.assert_array_equal(again.covariance_, model.covariance_)
        np.testing.assert_array_equal(again.region_.cells, model.region_.cells)
        pd.testing.assert_frame_equal(again.parameter_table(), model.parameter_table())

    def test_a_failed_save_leaves_the_file_before(
        self, fitted: ThroughputSaturationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "baseline.json"
        fitted.save(path)
        before = path.read_bytes()

        def fail(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", fail)
        with pytest.raises(InputError, match="No space left"):
            fitted.save(path)
        assert path.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["baseline.json"]

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda saved: "", "the file is empty"),
            (lambda saved: json.dumps(saved)[:400], "damaged, perhaps cut short"),
            (lambda saved: "T = 4 S", "not JSON"),
            (lambda saved: "[1, 2]", "a JSON file, but no saved baseline"),
            (lambda saved: json.dumps({"format": "something else"}), "no saved baseline"),
            (_changed(version=99), "upgrade with pip"),
            (_changed(version="one"), "no format version"),
            (_changed(parameters={"P_max": 1.0}), "parameters are not"),
            (_changed(parameters=TRUTH | {"k_B": 0.0}), "parameters: k_B is 0"),
            (_changed(parameters=TRUTH | {"k_B": -1.0}), "parameters: k_B is -1"),
            (_changed(parameters=TRUTH | {"k_B": "fast"}), "damaged"),
            (_changed(settings={"loss": "cubic"}), "damaged"),
            (_changed(covariance=[[1.0]]), "the covariance is not 10 by 10"),
            (_changed(scores={"r2": 1.0}), "the scores are not those of a fit"),
            (_changed(region=[]), "the region makes no sense"),
            (_changed(at_bound={"q": "0"}), "at_bound names"),
        ],
    )
    def test_a_damaged_or_foreign_file_is_refused_in_one_line(
        self, fitted: ThroughputSaturationModel, tmp_path: Path, damage: Any, message: str
    ) -> None:
        path = tmp_path / "baseline.json"
        fitted.save(path)
        path.write_text(damage(json.loads(path.read_text("utf-8"))), encoding="utf-8")
        with pytest.raises(InputError, match=message) as caught:
            ThroughputSaturationModel.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_place_that_holds_no_file_is_refused(
        self, fitted: ThroughputSaturationModel, tmp_path: Path
    ) -> None:
        for place, message in ((tmp_path / "none.json", "no such file"), (tmp_path, "is a folder")):
            with pytest.raises(InputError, match=message):
                ThroughputSaturationModel.load(place)
        for place, message in ((tmp_path, "is a folder"), (tmp_path / "missing" / "b.json", "cannot write")):
            with pytest.raises(InputError, match=message):
                fitted.save(place)
