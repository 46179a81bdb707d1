"""The report of a fit: its summary, the page, the numbers beside it, the words on top, and the figures."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

from bayes_sched.checks.calibration import calibrate, residual_table
from bayes_sched.checks.summary import FitSummary, effect_table, summarize
from bayes_sched.checks.views import rank_deviation, typical_batch_sizes
from bayes_sched.errors import InputError
from bayes_sched.format import number, span
from bayes_sched.model.likelihood import effects_of
from bayes_sched.planning.next_step import StepBudgets
from bayes_sched.planning.settings import optimize_steps
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.provenance import RowCounts
from bayes_sched.posterior.typical_steps import FULL_PREFILL, LARGEST_DECODE, MEDIAN_DECODE, typical_steps
from bayes_sched.predictor.compile import compile_predictor
from bayes_sched.reports.document import Document, report
from bayes_sched.reports.fit import notes_of, sentences_of
from bayes_sched.reports.html import html as html_of
from bayes_sched.reports.plots.fit import (
    latency_by_batch,
    latency_by_tokens,
    latency_contours,
    ranks,
    running_quantiles,
)
from bayes_sched.reports.plots.style import new_figure, save_figure
from bayes_sched.reports.terminal import WIDTH, terminal
from bayes_sched.reports.write import ReportPaths, write_report
from bayes_sched.sla.steps import step_sla
from bayes_sched.steps import sample_steps
from tests.richer_fit import STEPS, richer_fit, true_factors
from tests.synthetic_fit import TRUTH, simulated_steps, synthetic_fit

TRACE = simulated_steps(600, seed=1)


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    return synthetic_fit(spread=0.02)


@pytest.fixture(scope="module")
def found(fit: FittedModel) -> FitSummary:
    return summarize(fit, TRACE)


@pytest.fixture(scope="module")
def document(found: FitSummary) -> Document:
    return report(found)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    """The figures by name, as they were written."""
    return {}


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, document: Document, drawn: dict[str, Figure]
) -> ReportPaths:
    def save(figure: Figure, folder: Path, name: str, **options: Any) -> tuple[Path, ...]:
        drawn[name] = figure
        return save_figure(figure, folder, name, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bayes_sched.reports.plots.style.save_figure", save)
        return write_report(document, tmp_path_factory.mktemp("report"), with_svg=True)


@pytest.fixture(scope="module")
def page(written: ReportPaths) -> str:
    return written.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def richer() -> FittedModel:
    return richer_fit()


@pytest.fixture(scope="module")
def richer_found(richer: FittedModel) -> FitSummary:
    return summarize(richer, STEPS)


def quick(fit: FittedModel, steps: pd.DataFrame = TRACE, **options: Any) -> FitSummary:
    """Sum up without the figures, which take the time."""
    return summarize(fit, steps, is_drawn=False, **options)


def text_of(found: FitSummary) -> str:
    return " ".join(sentences_of(found))


def page_of(found: FitSummary) -> str:
    return html_of(report(found), {})


def test_the_report_consists_of_a_page_numbers_and_figures(written: ReportPaths) -> None:
    assert written.page.name == "report.html"
    assert set(written.tables) >= {"parameters", "convergence", "latency_grid"}
    assert len(written.figures) == 10
    figures = [path for both in written.figures.values() for path in both]
    for path in (written.page, written.summary, *written.tables.values(), *figures):
        assert path.stat().st_size > 0


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.split("<body>")[0])
    assert not re.search(r"https?://", page)
    assert "<script" not in page
    assert page.count('src="data:image/png;base64,') == 10
    assert re.search(r'<meta name="viewport" content="width=device-width', page)
    assert "@media print" in page
    assert "prefers-color-scheme: dark" in page
    assert len(page) < 3e6


def test_links_of_the_page_lead_to_files_of_the_report(page: str, written: ReportPaths) -> None:
    targets = re.findall(r'href="([^"]+)"', page)
    assert len(targets) > 10
    for target in targets:
        assert (written.page.parent / target).is_file()


def test_the_page_shows_the_numbers_of_the_tables(page: str, written: ReportPaths) -> None:
    for row in pd.read_csv(written.tables["parameters"]).to_dict("records"):
        assert f"<td>{number(float(row['median']))}</td>" in page
        assert f"<td>{span(float(row['lower']), float(row['upper']))}</td>" in page
        assert html.escape(str(row["meaning"]), quote=False).replace("'", "&#39;") in page
    for name in pd.read_csv(written.tables["convergence"])["variable"]:
        assert f">{name}</td>" in page


@pytest.mark.parametrize("name", ["parameters", "convergence", "typical_steps", "costs", "coverage"])
def test_csv_and_json_hold_the_same_numbers(name: str, written: ReportPaths) -> None:
    table = pd.read_csv(written.tables[name])
    rows = json.loads(written.summary.read_text(encoding="utf-8"))[name]
    assert list(table.columns) == list(rows[0])
    assert len(table) == len(rows)
    for read, row in zip(table.to_dict("records"), rows, strict=True):
        for key, value in row.items():
            assert read[key] == value or (value is None and math.isnan(float(read[key])))


def test_the_numbers_are_strict_json_with_documented_keys(document: Document) -> None:
    numbers = json.loads(json.dumps(document.numbers, allow_nan=False))
    assert numbers["summary_version"] == 1
    assert numbers["converged"] is True
    assert numbers["probability"] == 0.9
    assert numbers["rows"] == {"read": 1000, "cleaned": 990, "used": 990}
    assert numbers["sampler"]["seed"] == 1
    assert numbers["gate"]["num_divergences"] == 0
    assert {row["name"] for row in numbers["parameters"]} >= set(TRUTH)
    for key in set(numbers) - {"text", "warnings"}:
        assert key in str(FitSummary.to_dict.__doc__)


def test_numbers_that_do_not_exist_are_null() -> None:
    one_chain = quick(synthetic_fit(chains=1, converged=False))
    numbers = one_chain.to_dict()
    assert numbers["convergence"][0]["r_hat"] is None
    assert "NaN" not in json.dumps(numbers)
    assert "nan" not in page_of(one_chain).lower()


def test_what_comes_from_data_is_escaped() -> None:
    evil = '<script>alert("x")</script> [click](javascript:alert(1))'
    hostile = synthetic_fit(
        name=evil,
        labels={"gpu": evil, "llm": evil},
        warnings=(evil,),
        problems=(evil,),
        command=evil,
        converged=False,
        bad_lines={evil: 3},
        sampler={evil: evil},
        package_versions={evil: evil},
        created_at=evil,
    )
    page = page_of(quick(hostile))
    assert "<script" not in page
    assert 'href="javascript' not in page
    assert page.count("&lt;script&gt;") >= 9


def test_an_unconverged_fit_is_marked_and_says_what_to_do() -> None:
    problem = "R-hat 1.05 on tau_S is above 1.01: raise --tune above 1000"
    bad = quick(synthetic_fit(converged=False, problems=(problem,)))
    assert "NOT CONVERGED" in text_of(bad)
    assert problem in text_of(bad)
    assert bad.to_dict()["converged"] is False
    page = page_of(bad)
    assert 'class="verdict bad">NOT CONVERGED' in page
    assert f"<li>{problem}</li>" in page
    assert 'class="verdict good"' not in page


def test_a_converged_fit_says_so(found: FitSummary, page: str) -> None:
    assert "The fit converged" in text_of(found)
    assert 'class="verdict good">converged' in page
    assert "NOT CONVERGED" not in page


def test_the_paragraph_holds_the_numbers_a_person_acts_on(found: FitSummary) -> None:
    text = text_of(found)
    assert "llama-3-8b on H100" in text
    assert "90% of such steps take" in text
    rows = {row["step"]: row for row in found.to_dict()["typical_steps"]}
    for name in (MEDIAN_DECODE, LARGEST_DECODE, FULL_PREFILL):
        assert f"{number(rows[name]['median_ms'])} ms" in text
        assert span(rows[name]["lower_ms"], rows[name]["upper_ms"]) in text
    for row in found.to_dict()["costs"]:
        factor = 100.0 if row["unit"] == "ms/token" else 1.0
        assert f"{number(factor * row['median'])} ms" in text
    assert "a warning — with a dash" in notes_of(found)


def test_a_terminal_shows_the_paragraph_and_the_parameters_within_its_width(document: Document) -> None:
    shown = terminal(document)
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "The fit\nconverged" in shown
    rows = [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line.split()]
    assert {"P_max", "tau_S", "nu", "L_0"} <= set(rows)


def test_costs_are_differences_of_the_mean_latency() -> None:
    certain = synthetic_fit(spread=1e-9)
    costs = quick(certain).costs.set_index("cost")["median"]
    b = next(step.batch_size for step in typical_steps(TRACE) if step.name == MEDIAN_DECODE)
    pair = pd.DataFrame({"batch_size": [b, b + 1], "total_tokens": [b, b + 1]})
    expected = np.diff(certain.mean_band(pair)["median"].to_numpy())[0]
    assert costs["one more decoding request"] == pytest.approx(expected, rel=1e-4)
    slope = TRUTH["w_1"] / TRUTH["P_max"] + TRUTH["tau_S"]
    assert costs["one more prefill token"] == pytest.approx(slope, rel=0.5)


def test_rows_left_out_of_the_fit_are_said() -> None:
    thinned = synthetic_fit(rows=RowCounts(read=90_000, cleaned=80_000, used=20_000), warnings=())
    assert any("20,000 of 80,000" in note for note in notes_of(quick(thinned)))


def test_a_band_that_fails_for_one_kind_of_step_is_said(fit: FittedModel) -> None:
    steps = simulated_steps(3000, seed=8)
    decode = steps["batch_size"] == steps["total_tokens"]
    steps.loc[decode, "latency_ms"] *= 1.5
    notes = notes_of(quick(fit, steps))
    assert any("contradicted" in note and "decode-only steps" in note for note in notes)


def test_the_probability_reaches_every_interval(fit: FittedModel) -> None:
    wide, narrow = (quick(fit, probability=p) for p in (0.99, 0.5))
    assert "99% of such steps take" in text_of(wide)
    assert (wide.table["upper_ms"] > narrow.table["upper_ms"]).all()
    assert (wide.costs["upper"] > narrow.costs["upper"]).all()
    assert (wide.parameters["upper"] > narrow.parameters["upper"]).all()
    assert "99% interval" in page_of(wide)


def test_the_latency_grid_holds_only_possible_steps(found: FitSummary) -> None:
    grid = found.grid
    assert (grid["total_tokens"] >= grid["batch_size"]).all()
    assert (grid["lower_ms"] <= grid["median_ms"]).all()
    assert (grid["upper_ms"] <= grid["q99_ms"]).all()
    assert grid["total_tokens"].max() == TRACE["total_tokens"].max()
    assert not grid.loc[:, :"extrapolation"].isna().to_numpy().any()


@pytest.mark.parametrize(
    ("batch_size", "total_tokens", "expected"),
    [
        ([2, 4, 9], [2, 4, 9], ["median decode step", "largest decode step"]),
        ([3, 3, 3], [3, 3, 3], ["median decode step"]),
        ([2, 4], [256, 512], ["smallest step", "full prefill step"]),
        ([2, 2, 4], [2, 2, 512], ["median decode step", "full prefill step"]),
    ],
)
def test_typical_steps_are_those_that_the_trace_holds(
    batch_size: list[int], total_tokens: list[int], expected: list[str], fit: FittedModel
) -> None:
    steps = pd.DataFrame({"batch_size": batch_size, "total_tokens": total_tokens})
    chosen = typical_steps(steps)
    assert [step.name for step in chosen] == expected
    assert all((steps == [step.batch_size, step.total_tokens]).all(axis=1).any() for step in chosen)
    assert text_of(quick(fit, steps.assign(latency_ms=10.0)))


def test_no_steps_or_a_wrong_probability_are_refused(fit: FittedModel) -> None:
    with pytest.raises(InputError, match="no steps"):
        quick(fit, TRACE.iloc[:0])
    with pytest.raises(InputError, match="probability"):
        quick(fit, probability=1.5)


def test_what_has_no_report_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="no report of a dict"):
        report({})


# --- figures


@pytest.mark.usefixtures("written")
def test_every_figure_says_what_it_shows_and_how_to_read_it(
    document: Document, drawn: dict[str, Figure]
) -> None:
    for entry in document.figures:
        assert entry.caption.endswith(".")
        assert len(entry.caption) > 60
        figure = drawn[entry.name]
        assert len(figure.get_suptitle()) > 20
        for ax in figure.axes:
            lowest = ax.get_subplotspec() is not None and ax.get_subplotspec().is_last_row()  # type: ignore[union-attr]
            if ax.get_visible() and lowest:
                assert ax.get_xlabel()


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("latency_by_tokens", {"latency (ms)"}),
        ("latency_by_batch", {"latency (ms)"}),
        ("latency_contours", {"Median latency (ms)", "99th percentile of latency (ms)"}),
        ("residuals", {"residual (ms)", "residual (noise scales)"}),
        ("prior_posterior", {"ms/token"}),
        ("combination_pairs", {"c (ms/token)"}),
        ("prior_predictive", {"latency (ms)"}),
    ],
)
def test_axes_carry_units(name: str, units: set[str], drawn: dict[str, Figure]) -> None:
    shown = [ax for ax in drawn[name].axes if ax.get_visible()]
    texts = {text for ax in shown for text in (ax.get_xlabel(), ax.get_ylabel(), ax.get_title("left"))}
    assert units <= texts


@pytest.mark.parametrize(
    ("batch_size", "total_tokens"),
    [([3] * 30, [3] * 30), ([4] * 30, [99] * 30), ([1], [1]), (range(1, 31), range(1, 31))],
    ids=["one decode step", "one prefill step", "a single step", "decode-only steps"],
)
def test_figures_can_be_drawn_for_traces_of_one_kind_of_step(
    batch_size: Any, total_tokens: Any, fit: FittedModel
) -> None:
    steps = pd.DataFrame({"batch_size": batch_size, "total_tokens": total_tokens})
    found = summarize(fit, steps.assign(latency_ms=np.linspace(10.0, 11.0, len(steps))))
    for figure in report(found).figures:
        if figure.name in {"latency_by_tokens", "latency_by_batch", "latency_contours", "residuals"}:
            figure.draw().draw_without_rendering()


def test_figures_leave_the_settings_of_matplotlib_alone(found: FitSummary) -> None:
    before = dict(mpl.rcParams)
    latency_by_batch(found)
    assert dict(mpl.rcParams) == before


def test_a_figure_is_saved_as_png_and_svg_with_the_same_bytes_each_time(
    tmp_path: Path, found: FitSummary
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        png, svg = save_figure(latency_by_batch(found), tmp_path / folder, "x", with_svg=True)
        assert png.read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in svg.read_bytes()
    for name in ("x.png", "x.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_long_title_is_wrapped_into_the_figure() -> None:
    figure, _ = new_figure("word " * 30, height_in=2.0)
    assert max(len(line) for line in figure.get_suptitle().splitlines()) <= 58


def test_a_right_model_is_calibrated() -> None:
    calibration = calibrate(synthetic_fit(spread=1e-6), simulated_steps(4000, seed=5))
    assert calibration.max_deviation < 0.03
    assert calibration.coverage_of(0.9) == pytest.approx(0.9, abs=0.02)
    everything = calibration.coverage.iloc[:3]
    assert everything["coverage"].to_numpy() == pytest.approx([0.5, 0.9, 0.99], abs=0.03)
    assert "90% band" in calibration.text


def test_a_wrong_noise_shows_in_the_coverage() -> None:
    right = synthetic_fit(spread=1e-6)
    posterior = right.posterior.assign(sigma_rel=right.posterior["sigma_rel"] * 4.0)
    data = right.data.copy()
    data["posterior"] = xr.DataTree(posterior)
    wide = FittedModel(data=data, model=right.model, metadata=right.metadata)
    assert calibrate(wide, simulated_steps(1000, seed=6)).coverage_of(0.5) > 0.8


def test_coverage_counts_every_step_once_per_kind(found: FitSummary) -> None:
    coverage = found.coverage
    counts = coverage[coverage["probability"] == 0.9].set_index("steps")["num_steps"]
    assert counts["all steps"] == len(TRACE) == counts.drop("all steps").sum()


def test_residuals_are_the_observed_minus_the_mean_latency() -> None:
    steps = pd.DataFrame({"batch_size": [1, 8, 1], "total_tokens": [1, 200, 1]})
    certain = synthetic_fit(spread=1e-9)
    mean_ms = certain.mean_band(steps)["median"].to_numpy()
    table = residual_table(certain, steps.assign(latency_ms=mean_ms + np.array([1.0, -2.0, 0.5])))
    assert table["residual_ms"].to_numpy() == pytest.approx([1.0, -2.0, 0.5], abs=1e-5)
    scale_ms = np.hypot(TRUTH["sigma_floor"], TRUTH["sigma_rel"] * mean_ms[0])
    assert table["residual_scales"].iloc[0] == pytest.approx(1.0 / scale_ms, rel=1e-4)
    assert table["position"].tolist() == [1, 2, 3]


def test_running_quantiles_leave_thin_bins_out() -> None:
    x = np.concatenate([np.linspace(0.0, 1.0, 200), [20.0]])
    table = running_quantiles(x, np.concatenate([np.ones(200), [99.0]]))
    assert table["middle"].tolist() == [1.0]


def test_ranks_of_chains_that_agree_are_even_and_of_a_stray_chain_are_not() -> None:
    rng = np.random.default_rng(0)
    draws = xr.DataArray(rng.normal(size=(4, 1000)), dims=("chain", "draw"))
    assert np.abs(rank_deviation(draws)).max() < 0.08
    stray = draws + xr.DataArray([0.0, 0.0, 0.0, 3.0], dims="chain")
    assert np.abs(rank_deviation(stray)[3]).max() > 0.5


@pytest.mark.usefixtures("written")
def test_rank_plots_cover_parameters_and_sampled_coordinates(drawn: dict[str, Figure]) -> None:
    titles = [ax.get_title("left") for ax in drawn["ranks"].axes if ax.get_visible()]
    assert {r"$\tau_S$", "throughput"} <= set(titles)
    assert len(titles) == len(TRUTH) + 3


def test_contraction_agrees_with_the_parameter_table(fit: FittedModel, found: FitSummary) -> None:
    table = found.parameters.set_index("name")["contraction"]
    assert fit.contraction("tau_S") == pytest.approx(table["tau_S"], rel=1e-12)


def test_panels_show_batch_sizes_that_the_trace_holds() -> None:
    chosen = typical_batch_sizes(TRACE)
    assert set(chosen) <= set(TRACE["batch_size"])
    assert chosen == sorted(set(chosen))
    assert 1 <= len(chosen) <= 4


def test_the_same_steps_are_drawn_each_time() -> None:
    pd.testing.assert_frame_equal(sample_steps(TRACE, 100), sample_steps(TRACE, 100))
    assert sample_steps(TRACE, len(TRACE)) is TRACE


# --- models that know more of a step than its requests and tokens


def test_the_report_shows_the_effects_and_keeps_their_table(
    richer: FittedModel, richer_found: FitSummary
) -> None:
    document = report(richer_found)
    assert "effect_factors" in {figure.name for figure in document.figures}
    assert len(document.frames["effects"]) == sum(effect.num_levels for effect in effects_of(richer.model))
    page = html_of(document, {figure.name: (Path(__file__),) for figure in document.figures})
    assert "Factors of the levels that have steps" in page
    assert html.escape(richer.typical.text(richer.model.columns)) in page


def test_the_report_says_for_what_context_its_bands_are(
    richer: FittedModel, richer_found: FitSummary
) -> None:
    sentence = richer.typical.text(richer.model.columns)
    assert sentence
    assert sentence in text_of(richer_found)
    assert richer_found.to_dict()["typical_load"] == sentence
    captions = {figure.name: figure.caption for figure in report(richer_found).figures}
    for name in ("latency_by_tokens", "latency_by_batch", "latency_contours"):
        assert captions[name].endswith(sentence)


@pytest.mark.parametrize("draw", [latency_by_tokens, latency_by_batch, latency_contours])
def test_figures_over_requests_and_tokens_are_drawn_for_typical_context(
    draw: Callable[[FitSummary], Figure], richer_found: FitSummary
) -> None:
    assert draw(richer_found).axes[0].has_data()


def test_coverage_is_that_of_the_steps_with_their_own_context(
    richer: FittedModel, richer_found: FitSummary
) -> None:
    own = richer_found.calibration.coverage_of(0.9)
    band = richer.predictive_band(richer.completed(STEPS[["batch_size", "total_tokens"]]))
    observed = STEPS["latency_ms"].to_numpy()
    with_typical = float(((band["lower"] <= observed) & (observed <= band["upper"])).mean())
    assert own > 0.85
    assert with_typical < own - 0.2


def test_steps_that_lack_a_column_are_left_out_of_the_report(richer: FittedModel) -> None:
    gaps = STEPS.assign(context_tokens=STEPS["context_tokens"].where(STEPS.index % 4 > 0))
    assert quick(richer, gaps).coverage["num_steps"].max() == gaps["context_tokens"].notna().sum()
    with pytest.raises(InputError, match="the steps have no context_tokens"):
        quick(richer, STEPS.drop(columns="context_tokens"))


def test_the_cost_of_a_request_is_an_average_over_levels(
    richer: FittedModel, richer_found: FitSummary
) -> None:
    costs = richer_found.costs.set_index("cost")
    at = str(costs.loc["one more decoding request", "at"])
    low, high = (int(word) for word in at.split() if word.isdigit())
    assert high >= 2 * low - 1
    per_request = float(costs.loc["one more decoding request", "median"])  # type: ignore[arg-type]
    expected = 0.05 + 0.05 + 9e-5 * (richer.typical.context_per_decode or 0.0)
    assert per_request == pytest.approx(expected, rel=0.25)


def test_levels_with_steps_are_told_from_those_without(richer: FittedModel, richer_found: FitSummary) -> None:
    table = richer_found.effects
    prefill = table[table["effect"] == "tokens"].set_index("level")
    assert (
        prefill.loc["481-512", "num_steps"]
        == ((STEPS["num_prefill_reqs"] > 0) & STEPS["total_tokens"].between(481, 512)).sum()
    )
    seen, unseen = prefill[prefill["num_steps"] > 0], prefill[prefill["num_steps"] == 0]
    assert np.log(seen["upper"] / seen["lower"]).max() < 0.1
    assert unseen["median"].to_numpy() == pytest.approx(1.0, abs=0.15)
    for level in ("97-128", "257-288", "481-512"):
        expected = np.exp(true_factors(effects_of(richer.model)[1])[prefill.index.get_loc(level)])
        assert prefill.loc[level, "median"] == pytest.approx(expected, rel=0.01)
    assert table["num_steps"].sum() == len(STEPS)


def test_a_model_without_effects_has_neither_their_table_nor_their_figure(
    fit: FittedModel, document: Document, page: str
) -> None:
    assert effect_table(fit, TRACE, probability=0.9).empty
    assert "effect_factors" not in {figure.name for figure in document.figures}
    assert "Factors of the levels" not in page


def test_the_figure_of_effects_has_a_panel_for_each_with_its_unit(richer_found: FitSummary) -> None:
    (entry,) = (figure for figure in report(richer_found).figures if figure.name == "effect_factors")
    figure = entry.draw()
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "requests of the step, B",
        "tokens of the step, S",
    ]
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
    titles = [ax.get_title("left") for ax in ranks(summarize(wide, STEPS)).axes]
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
    found = quick(plain, slow)
    advice = "saturation_context"
    assert advice in sentences_of(found)[-1]
    assert advice in page_of(found)
    assert found.to_dict()["misfit"]["richer"] == "saturation_context"
    assert advice not in text_of(quick(plain, slow.assign(latency_ms=steps["latency_ms"])))
    assert advice not in text_of(quick(synthetic_fit(converged=False), slow))


def test_what_is_over_requests_and_tokens_alone_takes_a_model_of_more(richer: FittedModel) -> None:
    assert not step_sla(richer, slo_ms=1e4).frontier.empty
    assert optimize_steps(richer, slo_ms=1e4) is not None
    assert (
        StepBudgets.of_fit(richer, max_batch_size=4, max_tokens=64)
        .next_step(slo_ms=1e4, decodes=2)
        .total_tokens
    )
    assert compile_predictor(richer).quantile(2, 40, 0.5) > 0.0
