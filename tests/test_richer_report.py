"""The report of a fit whose model knows more of a step than its requests and tokens."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

from bayes_sched.comparison.compare import compare
from bayes_sched.errors import InputError
from bayes_sched.model.likelihood import effects_of
from bayes_sched.planning.next_step import StepBudgets
from bayes_sched.planning.settings import optimize_steps
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.predictor.compile import compile_predictor
from bayes_sched.reports import fit as figures
from bayes_sched.reports import fit as writing
from bayes_sched.reports.fit import render_page, summary, write_report
from bayes_sched.reports.page import ReportFigure
from bayes_sched.reports.plots.calibration import residuals
from bayes_sched.reports.plots.fit import latency_by_batch, latency_contours, prior_predictive
from bayes_sched.reports.plots.posterior import effect_factors, effect_table, ranks
from bayes_sched.sla.steps import step_sla
from tests.richer_fit import STEPS, richer_fit, true_factors
from tests.synthetic_fit import simulated_steps, synthetic_fit


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    return richer_fit()


@pytest.mark.parametrize("draw", [latency_by_batch, latency_contours, prior_predictive, residuals])
def test_figures_over_requests_and_tokens_are_drawn_for_typical_context(
    draw: Callable[..., Figure], fit: FittedModel
) -> None:
    figure = draw(fit, STEPS)
    assert figure.axes[0].has_data()


def test_the_report_shows_the_effects_and_keeps_their_table(
    tmp_path: Path, fit: FittedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = figures.report_figures

    def effects_alone(*given: Any) -> tuple[ReportFigure, ...]:  # the others take their time
        return tuple(f for f in all_of_them(*given) if f.name == "effect_factors")

    monkeypatch.setattr(writing, "report_figures", effects_alone)
    written = write_report(fit, STEPS, tmp_path)
    assert list(written.figures) == ["effect_factors"]
    effects = pd.read_csv(written.tables["effects"])
    assert len(effects) == sum(effect.num_levels for effect in effects_of(fit.model))
    page = written.page.read_text(encoding="utf-8")
    assert "Factors of the levels that have steps" in page
    assert html.escape(fit.typical.text(fit.model.columns)) in page


def test_the_report_says_for_what_context_its_bands_are(fit: FittedModel) -> None:
    found = summary(fit, STEPS)
    sentence = fit.typical.text(fit.model.columns)
    assert sentence
    assert sentence in found.text
    assert found.to_dict()["typical_load"] == sentence
    captions = {figure.name: figure.caption for figure in figures.report_figures(fit, STEPS, found)}
    for name in ("latency_by_tokens", "latency_by_batch", "latency_contours"):
        assert captions[name].endswith(sentence)


def test_coverage_is_that_of_the_steps_with_their_own_context(fit: FittedModel) -> None:
    own = summary(fit, STEPS).calibration.coverage_of(0.9)
    typical = fit.completed(STEPS[["batch_size", "total_tokens"]])
    band = fit.predictive_band(typical)
    observed = STEPS["latency_ms"].to_numpy()
    with_typical = float(((band["lower"] <= observed) & (observed <= band["upper"])).mean())
    assert own > 0.85
    assert with_typical < own - 0.2


def test_steps_that_lack_a_column_are_left_out_of_the_report(fit: FittedModel) -> None:
    gaps = STEPS.assign(context_tokens=STEPS["context_tokens"].where(STEPS.index % 4 > 0))
    found = summary(fit, gaps)
    assert found.coverage["num_steps"].max() == gaps["context_tokens"].notna().sum()
    with pytest.raises(InputError, match="the steps have no context_tokens"):
        summary(fit, STEPS.drop(columns="context_tokens"))


def test_the_cost_of_a_request_is_an_average_over_levels(fit: FittedModel) -> None:
    costs = summary(fit, STEPS).costs.set_index("cost")
    at = str(costs.loc["one more decoding request", "at"])
    low, high = (int(word) for word in at.split() if word.isdigit())
    assert high >= 2 * low - 1
    per_request = float(costs.loc["one more decoding request", "median"])  # type: ignore[arg-type]
    expected = 0.05 + 0.05 + 9e-5 * (fit.typical.context_per_decode or 0.0)
    assert per_request == pytest.approx(expected, rel=0.25)


def test_levels_with_steps_are_told_from_those_without(fit: FittedModel) -> None:
    table = effect_table(fit, STEPS)
    prefill = table[table["effect"] == "tokens"].set_index("level")
    assert (
        prefill.loc["481-512", "num_steps"]
        == ((STEPS["num_prefill_reqs"] > 0) & STEPS["total_tokens"].between(481, 512)).sum()
    )
    seen, unseen = prefill[prefill["num_steps"] > 0], prefill[prefill["num_steps"] == 0]
    assert np.log(seen["upper"] / seen["lower"]).max() < 0.1
    assert unseen["median"].to_numpy() == pytest.approx(1.0, abs=0.15)
    for level in ("97-128", "257-288", "481-512"):
        expected = np.exp(true_factors(effects_of(fit.model)[1])[prefill.index.get_loc(level)])
        assert prefill.loc[level, "median"] == pytest.approx(expected, rel=0.01)
    assert table["num_steps"].sum() == len(STEPS)


def test_a_model_without_effects_has_neither_their_table_nor_their_figure() -> None:
    plain, steps = synthetic_fit(), simulated_steps(200, seed=1)
    assert effect_table(plain, steps).empty
    found = summary(plain, steps)
    assert "effect_factors" not in {f.name for f in figures.report_figures(plain, steps, found)}
    assert "Factors of the levels" not in render_page(found, {})


def test_the_figure_of_effects_has_a_panel_for_each_with_its_unit(fit: FittedModel) -> None:
    figure = effect_factors(fit, STEPS)
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels == ["requests of the step, B", "tokens of the step, S"]
    left, right = figure.axes[1].get_xlim()
    assert left < 1.0
    assert 512.0 < right < 700.0


def test_only_the_least_agreeing_levels_have_a_rank_panel() -> None:
    fit = richer_fit()
    names = ["level", *(f"tokens[{number}]" for number in range(20))]
    shape = (4, 100, len(names))
    coordinates = xr.Dataset(
        {"value": (("chain", "draw", "coordinate"), np.random.default_rng(0).standard_normal(shape))},
        coords={"chain": np.arange(4), "draw": np.arange(100), "coordinate": names},
    )
    groups = {f"/{key}": node.to_dataset() for key, node in fit.data.children.items()}
    tree = xr.DataTree.from_dict({**groups, "/coordinates": coordinates})
    wide = FittedModel(data=tree, model=fit.model, metadata=fit.metadata)
    titles = [ax.get_title("left") for ax in ranks(wide).axes]
    assert "level" in titles
    assert sum(title.startswith("tokens") for title in titles) == 6


def test_the_report_of_a_plain_fit_advises_the_richer_model() -> None:
    steps = simulated_steps(1500, seed=1)
    prefill = (steps["total_tokens"] > steps["batch_size"]).astype(np.int64)
    context = steps["batch_size"] * np.random.default_rng(1).integers(500, 4000, len(steps))
    slow = steps.assign(
        num_prefill_reqs=prefill,
        context_tokens=context,
        prefill_pairs=0,
        latency_ms=steps["latency_ms"] + 1e-4 * (context - 2250 * steps["batch_size"]),
    )
    plain = synthetic_fit()
    found = summary(plain, slow)
    assert "fit it with --model saturation_context" in found.text
    assert "fit it with --model saturation_context" in render_page(found, {})
    assert found.to_dict()["misfit"]["richer"] == "saturation_context"
    assert "--model" not in summary(plain, slow.assign(latency_ms=steps["latency_ms"])).text
    assert "--model" not in summary(synthetic_fit(converged=False), slow).text


def test_what_is_over_requests_and_tokens_alone_refuses_the_model_in_one_sentence(fit: FittedModel) -> None:
    needs = "context_tokens, .*fit the traces? with (--|the )model saturation"
    other = synthetic_fit(name="other", trace_sha256="1" * 64)
    with pytest.raises(InputError, match=needs):
        step_sla(fit, slo_ms=50.0)
    with pytest.raises(InputError, match=needs):
        compare([fit, other])
    with pytest.raises(InputError, match=needs):
        compile_predictor(fit)
    with pytest.raises(InputError, match=needs):
        optimize_steps(fit, slo_ms=50.0)
    with pytest.raises(InputError, match=needs):
        StepBudgets.of_fit(fit)
