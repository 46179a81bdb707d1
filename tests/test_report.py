"""Reports: the page, the numbers beside it, and the words on top."""

import html
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bayes_sched.errors import InputError
from bayes_sched.format import number, percent, span
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.provenance import RowCounts
from bayes_sched.reports import fit as figures
from bayes_sched.reports.fit import (
    FULL_PREFILL,
    LARGEST_DECODE,
    MEDIAN_DECODE,
    latency_grid,
    render_page,
    summary,
    typical_steps,
    write_report,
)
from bayes_sched.reports.page import ReportPaths
from tests.synthetic_fit import TRUTH, simulated_steps, synthetic_fit


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    return synthetic_fit(spread=0.02)


@pytest.fixture(scope="module")
def steps() -> pd.DataFrame:
    return simulated_steps(600, seed=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, fit: FittedModel, steps: pd.DataFrame) -> ReportPaths:
    return write_report(fit, steps, tmp_path_factory.mktemp("report"))


def page_of(fit: FittedModel, steps: pd.DataFrame) -> str:
    """The page without its figures, which take the time."""
    return render_page(summary(fit, steps), {})


def test_the_report_consists_of_a_page_numbers_and_figures(written: ReportPaths) -> None:
    assert written.page.name == "report.html"
    assert set(written.tables) >= {"parameters", "convergence", "latency_grid"}
    assert len(written.figures) == 9
    for path in (written.page, written.summary, *written.tables.values()):
        assert path.stat().st_size > 0
    for png, svg in written.figures.values():
        assert png.stat().st_size > 0
        assert svg.stat().st_size > 0


def test_the_page_needs_nothing_from_elsewhere(written: ReportPaths) -> None:
    page = written.page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.split("<body>")[0])
    assert not re.search(r"https?://", page)
    assert "<script" not in page
    assert page.count('src="data:image/png;base64,') == 9
    assert re.search(r'<meta name="viewport" content="width=device-width', page)
    assert "@media print" in page
    assert "prefers-color-scheme: dark" in page
    assert len(page) < 3e6


def test_links_of_the_page_lead_to_files_of_the_report(written: ReportPaths) -> None:
    page = written.page.read_text(encoding="utf-8")
    targets = re.findall(r'href="([^"]+)"', page)
    assert targets
    for target in targets:
        assert (written.page.parent / target).is_file()


def test_the_page_shows_the_numbers_of_the_tables(written: ReportPaths) -> None:
    page = written.page.read_text(encoding="utf-8")
    parameters = pd.read_csv(written.tables["parameters"])
    for row in parameters.to_dict("records"):
        assert f"<td>{number(float(row['median']))}</td>" in page
        assert f"<td>{span(float(row['lower']), float(row['upper']))}</td>" in page
        assert html.escape(str(row["meaning"]), quote=False).replace("'", "&#39;") in page
    convergence = pd.read_csv(written.tables["convergence"])
    for name in convergence["variable"]:
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


def test_the_summary_is_strict_json_with_documented_keys(fit: FittedModel, steps: pd.DataFrame) -> None:
    found = summary(fit, steps)
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert numbers["summary_version"] == 1
    assert numbers["converged"] is True
    assert numbers["probability"] == 0.9
    assert numbers["rows"] == {"read": 1000, "cleaned": 990, "used": 990}
    assert numbers["sampler"]["seed"] == 1
    assert numbers["gate"]["num_divergences"] == 0
    assert {row["name"] for row in numbers["parameters"]} >= set(TRUTH)
    for key in numbers:
        assert key in str(type(found).to_dict.__doc__)


def test_numbers_that_do_not_exist_are_null(steps: pd.DataFrame) -> None:
    one_chain = synthetic_fit(chains=1, converged=False)
    numbers = summary(one_chain, steps).to_dict()
    assert numbers["convergence"][0]["r_hat"] is None
    assert "NaN" not in json.dumps(numbers)
    assert "nan" not in page_of(one_chain, steps).lower()


def test_what_comes_from_data_is_escaped(steps: pd.DataFrame) -> None:
    evil = '<script>alert("x")</script>'
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
    page = page_of(hostile, steps)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 9


def test_an_unconverged_fit_is_marked_and_says_what_to_do(steps: pd.DataFrame) -> None:
    problem = "R-hat 1.05 on tau_S is above 1.01: raise --tune above 1000"
    bad = synthetic_fit(converged=False, problems=(problem,))
    found = summary(bad, steps)
    assert "NOT CONVERGED" in found.text
    assert problem in found.text
    assert found.to_dict()["converged"] is False
    page = render_page(found, {})
    assert 'class="verdict bad">NOT CONVERGED' in page
    assert f"<li>{problem}</li>" in page
    assert 'class="verdict good"' not in page


def test_a_converged_fit_says_so(fit: FittedModel, steps: pd.DataFrame) -> None:
    assert "The fit converged" in summary(fit, steps).text
    page = page_of(fit, steps)
    assert 'class="verdict good">converged' in page
    assert "NOT CONVERGED" not in page


def test_the_paragraph_holds_the_numbers_a_person_acts_on(fit: FittedModel, steps: pd.DataFrame) -> None:
    found = summary(fit, steps)
    assert "llama-3-8b on H100" in found.text
    assert "90% of such steps take" in found.text
    rows = {row["step"]: row for row in found.to_dict()["typical_steps"]}
    for name in (MEDIAN_DECODE, LARGEST_DECODE, FULL_PREFILL):
        row = rows[name]
        assert f"{number(row['median_ms'])} ms" in found.text
        assert span(row["lower_ms"], row["upper_ms"]) in found.text
    for row in found.to_dict()["costs"]:
        factor = 100.0 if row["unit"] == "ms/token" else 1.0
        assert f"{number(factor * row['median'])} ms" in found.text
    assert "a warning — with a dash" in found.text


def test_costs_are_differences_of_the_mean_latency(steps: pd.DataFrame) -> None:
    certain = synthetic_fit(spread=1e-9)
    costs = summary(certain, steps).costs.set_index("cost")["median"]
    chosen = {step.name: step for step in typical_steps(steps)}
    b = chosen[MEDIAN_DECODE].batch_size
    pair = pd.DataFrame({"batch_size": [b, b + 1], "total_tokens": [b, b + 1]})
    expected = np.diff(certain.mean_band(pair)["median"].to_numpy())[0]
    assert costs["one more decoding request"] == pytest.approx(expected, rel=1e-4)
    slope = TRUTH["w_1"] / TRUTH["P_max"] + TRUTH["tau_S"]
    assert costs["one more prefill token"] == pytest.approx(slope, rel=0.5)


def test_rows_left_out_of_the_fit_are_said(steps: pd.DataFrame) -> None:
    thinned = synthetic_fit(rows=RowCounts(read=90_000, cleaned=80_000, used=20_000), warnings=())
    notes = summary(thinned, steps).notes
    assert any("20,000 of 80,000" in note for note in notes)


def test_a_band_that_fails_for_one_kind_of_step_is_said(fit: FittedModel) -> None:
    steps = simulated_steps(3000, seed=8)
    decode = steps["batch_size"] == steps["total_tokens"]
    steps.loc[decode, "latency_ms"] *= 1.5
    found = summary(fit, steps)
    assert any("decode-only steps" in note and "too narrow" in note for note in found.notes)


def test_the_probability_reaches_every_interval(fit: FittedModel, steps: pd.DataFrame) -> None:
    wide, narrow = (summary(fit, steps, probability=p) for p in (0.99, 0.5))
    assert "99% of such steps take" in wide.text
    assert (wide.table["upper_ms"] > narrow.table["upper_ms"]).all()
    assert (wide.costs["upper"] > narrow.costs["upper"]).all()
    assert (wide.parameters["upper"] > narrow.parameters["upper"]).all()
    assert "99% interval" in render_page(wide, {})


def test_the_latency_grid_holds_only_possible_steps(fit: FittedModel, steps: pd.DataFrame) -> None:
    grid = latency_grid(fit, steps, probability=0.9)
    assert (grid["total_tokens"] >= grid["batch_size"]).all()
    assert (grid["lower_ms"] <= grid["median_ms"]).all()
    assert (grid["upper_ms"] <= grid["q99_ms"]).all()
    assert grid["total_tokens"].max() == steps["total_tokens"].max()
    assert not grid.isna().to_numpy().any()


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
    assert summary(fit, steps.assign(latency_ms=10.0)).text


def test_every_figure_of_the_page_says_how_to_read_it(fit: FittedModel, steps: pd.DataFrame) -> None:
    for figure in figures.report_figures(fit, steps, summary(fit, steps)):
        assert figure.caption.endswith(".")
        assert len(figure.caption) > 60


def test_no_steps_or_a_wrong_probability_are_refused(
    tmp_path: Path, fit: FittedModel, steps: pd.DataFrame
) -> None:
    with pytest.raises(InputError, match="no steps"):
        write_report(fit, steps.iloc[:0], tmp_path)
    with pytest.raises(InputError, match="probability"):
        write_report(fit, steps, tmp_path, probability=1.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12.345, "12.3"),
        (0.00123456, "0.00123"),
        (9.996, "10.0"),
        (123456.0, "123,000"),
        (-2.5, "-2.50"),
        (1.5e-7, "1.50 × 10⁻⁷"),
        (2e9, "2.00 × 10⁹"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares_are_percentages() -> None:
    assert percent(0.9) == "90%"
    assert percent(0.9132, 1) == "91.3%"
