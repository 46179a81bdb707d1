"""Who competes: what each competitor learns, and that all of them fulfil the protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bayes_sched.checks.scores import LEVELS, at_level, coverage, crps
from bayes_sched.errors import InputError
from bayes_sched.model.equation import PARAMETERS, latency_ms
from bayes_sched.model.protocol import load_model, load_model_file, shipped_models
from bayes_sched.posterior.prediction import StudentTMixture
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.competitors import (
    Baseline,
    Bayesian,
    LightGBM,
    Line,
    competitors_by_name,
    log_density,
    student_t_noise,
)
from bayes_sched.studies.forecasts import Competitor
from bayes_sched.studies.names import competitor_names
from bayes_sched.studies.splits import CONTEXT_COLUMNS
from tests.stub_sampling import stub_sample
from tests.synthetic_fit import TRUTH

SETTINGS = SamplerSettings(draws=50, tune=50, chains=2)


def linear_steps(num: int, *, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    b, s = rng.integers(1, 40, num), rng.integers(40, 1000, num)
    latency = 5.0 + 0.2 * b + 0.03 * s + rng.normal(0.0, 0.7, num)
    return pd.DataFrame({"batch_size": b, "total_tokens": s, "latency_ms": latency})


def test_a_line_through_linear_steps_is_calibrated_and_as_wide_as_their_noise() -> None:
    test = linear_steps(2000, seed=1)
    forecast = Line().fit(linear_steps(2000), seed=0)(test)
    observed = test["latency_ms"].to_numpy()
    width = at_level(forecast.quantiles_ms, 0.95) - at_level(forecast.quantiles_ms, 0.05)
    assert width.mean() == pytest.approx(2 * 1.645 * 0.7, rel=0.05)
    assert coverage(observed, forecast.quantiles_ms, probability=0.9) == pytest.approx(0.9, abs=0.02)
    assert crps(observed, forecast.quantiles_ms).mean() == pytest.approx(0.7 / np.sqrt(np.pi), rel=0.05)
    assert forecast.log_density is not None
    assert forecast.log_density.mean() == pytest.approx(-0.5 * np.log(2 * np.pi * np.e * 0.49), abs=0.03)


@pytest.mark.parametrize("competitor", [Baseline(), Baseline("baseline-huber", "huber")])
def test_the_baseline_predicts_a_server_that_follows_the_equation_better_than_a_line(
    competitor: Baseline,
) -> None:
    train, test = saturating_steps(800, seed=1), saturating_steps(800, seed=2)
    scores = [
        crps(test["latency_ms"].to_numpy(), c.fit(train, seed=0)(test).quantiles_ms).mean()
        for c in (competitor, Line())
    ]
    assert scores[0] < 0.8 * scores[1]


def test_student_t_noise_recovers_tails_and_scale() -> None:
    residuals = stats.t.ppf((np.arange(4000) + 0.5) / 4000, 2.5, scale=3.0)
    assert student_t_noise(residuals)(np.zeros(1)).args[0] == pytest.approx(2.5, rel=0.05)
    assert student_t_noise(residuals)(np.zeros(1)).std() > 3.0
    assert np.isfinite(student_t_noise(np.zeros(20))(np.zeros(2)).ppf(0.99)).all()


def saturating_steps(num: int, *, seed: int) -> pd.DataFrame:
    """Steps of a server that follows the equation with parameters `TRUTH`."""
    steps = linear_steps(num, seed=seed)
    mean = latency_ms(
        steps["batch_size"].to_numpy(float),
        steps["total_tokens"].to_numpy(float),
        **{parameter.name: TRUTH[parameter.name] for parameter in PARAMETERS},
    )
    noise = np.random.default_rng(seed + 50).normal(0.0, 0.1, num)
    return steps.assign(latency_ms=np.asarray(mean) + noise)


def stepped_steps(num: int, *, seed: int) -> pd.DataFrame:
    steps = linear_steps(num, seed=seed)
    rng = np.random.default_rng(seed + 100)
    context = rng.integers(0, 10_000, num)
    steps["context_tokens"] = context
    steps["latency_ms"] = np.where(steps["total_tokens"] > 512, 60.0, 30.0) + context / 500.0
    steps["latency_ms"] += rng.normal(0.0, 0.3, num)
    return steps


def test_boosted_quantiles_find_a_staircase_use_context_and_come_again() -> None:
    pytest.importorskip("lightgbm", reason="LightGBM, an optional dependency, is not installed")
    train, test = stepped_steps(400, seed=0), stepped_steps(300, seed=1)
    observed = test["latency_ms"].to_numpy()
    plain = LightGBM(num_trees=40)
    context = LightGBM("lightgbm-context", optional=CONTEXT_COLUMNS, num_trees=40)
    scores = {
        c.name: crps(observed, c.fit(train, seed=0)(test).quantiles_ms).mean()
        for c in (plain, context, Line())
    }
    assert scores["lightgbm-context"] < 0.5 * scores["lightgbm"]
    assert scores["lightgbm"] < scores["line"]
    again = [plain.fit(train, seed=3)(test).quantiles_ms for _ in range(2)]
    assert (again[0] == again[1]).all()
    assert (np.diff(again[0], axis=1) >= 0.0).all()


def test_boosting_takes_fifty_rows() -> None:
    pytest.importorskip("lightgbm", reason="LightGBM, an optional dependency, is not installed")
    forecast = LightGBM(num_trees=10).fit(stepped_steps(50, seed=0), seed=0)(stepped_steps(30, seed=1))
    assert at_level(forecast.quantiles_ms, 0.5).std() > 5.0


def test_the_density_is_that_of_the_mixture_over_draws() -> None:
    nu, mean, scale = (
        np.array([2.0, 8.0]),
        np.array([[10.0, 20.0], [11.0, 22.0]]),
        np.array([[1.0, 2.0], [0.5, 3.0]]),
    )
    x = np.array([10.3, 40.0])
    expected = np.log(np.asarray(stats.t.pdf(x, nu[:, None], mean, scale)).mean(axis=0))
    assert log_density(StudentTMixture(nu), mean, scale, x) == pytest.approx(expected)


def test_a_model_of_the_project_forecasts_with_its_posterior_and_tells_of_its_gate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bayes_sched.sampling.sample.sample", stub_sample)
    (competitor,), _ = competitors_by_name(["saturation"], settings=SETTINGS)
    test = saturating_steps(60, seed=2)
    forecast = competitor.fit(saturating_steps(100, seed=1), seed=5)(test)
    assert forecast.quantiles_ms.shape == (60, len(LEVELS))
    assert forecast.converged in (True, False)
    assert forecast.log_density is not None
    below = (test["latency_ms"].to_numpy()[:, None] > forecast.quantiles_ms).sum(axis=1)
    edges = np.concatenate(([0.0], LEVELS, [1.0]))
    assert (forecast.cdf >= edges[below] - 1e-3).all()
    assert (forecast.cdf <= edges[below + 1] + 1e-3).all()


def test_everything_a_forecast_depends_on_is_in_the_name_of_its_competitor() -> None:
    loaded = load_model_file("saturation")
    one = Bayesian.of(loaded, name="saturation", noise="proportional", settings=SETTINGS)
    others: list[Any] = [
        replace(one, noise="constant"),
        replace(one, sha256="0" * 64),
        replace(one, settings=replace(SETTINGS, draws=51)),
    ]
    assert len({repr(competitor) for competitor in (one, *others)}) == 4


def test_every_shipped_model_takes_part_and_boosting_is_given_every_column_they_use() -> None:
    assert set(shipped_models()) <= set(competitor_names())
    known = {"batch_size", "total_tokens", *CONTEXT_COLUMNS}
    assert {column for name in shipped_models() for column in load_model(name).columns} <= known


def test_competitors_are_found_by_name_noise_and_file() -> None:
    path = str(load_model_file("saturation").path)
    names = ["line", "baseline-huber", "saturation:constant", path]
    found: tuple[Competitor, ...]
    found, missing = competitors_by_name(names, settings=SETTINGS)
    assert [competitor.name for competitor in found] == names
    assert getattr(found[2], "noise", None) == "constant"
    assert missing == ()


def test_without_lightgbm_its_competitors_are_left_out_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bayes_sched.studies.competitors.find_spec", lambda name: None)
    found, missing = competitors_by_name(["line", "lightgbm", "lightgbm-context"], settings=SETTINGS)
    assert [competitor.name for competitor in found] == ["line"]
    assert missing == (
        "lightgbm and lightgbm-context left out: LightGBM is not installed "
        "(pip install 'bayes-sched[validate]')",
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lin"], "lin: no such contender; give some of line, baseline"),
        (["line", "line"], "line: given twice"),
        (["saturation:loud"], "noise 'loud': the model saturation has proportional, constant"),
        (["nothing.py:constant"], "nothing.py: no such file"),
    ],
)
def test_a_competitor_that_does_not_exist_is_refused(names: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        competitors_by_name(names, settings=SETTINGS)
