"""The report of a pool: its words, tables and figures say what the draws say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bayes_sched.checks.summary import summarize
from bayes_sched.format import records
from bayes_sched.pooling.pool import Pool
from bayes_sched.pooling.population import UNSEEN
from bayes_sched.pooling.summary import PoolSummary, pool_summary, warnings_of
from bayes_sched.reports.document import report
from bayes_sched.reports.fit import sentences_of
from bayes_sched.reports.html import html
from bayes_sched.reports.markdown import markdown
from bayes_sched.reports.plots.pool import pool_latency, pool_shrinkage
from bayes_sched.reports.pool import difference_text, paragraph
from bayes_sched.reports.terminal import WIDTH, terminal
from bayes_sched.reports.write import write_report
from tests.comparison_fits import by, server, with_groups
from tests.stub_population import BETWEEN, WITHIN, stub_pool
from tests.synthetic_fit import TRUTH, simulated_steps, synthetic_fit

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def pool() -> Pool:
    return stub_pool(name="three", servers={"other": HOSTILE})


@pytest.fixture(scope="module")
def found(pool: Pool) -> PoolSummary:
    return pool_summary(pool, probability=0.9, seconds=12.34)


def test_spreads_are_those_of_the_population(found: PoolSummary) -> None:
    row = by(found.spread, "coordinate")["tau_B"]
    assert row["mean"] == pytest.approx(TRUTH["tau_B"], rel=0.02)
    assert row["between"] == pytest.approx(BETWEEN, rel=0.05)
    assert row["within"] == pytest.approx(WITHIN, rel=0.05)
    sd = math.log(row["unseen_upper"] / row["unseen_lower"]) / (2.0 * 1.645)
    assert sd == pytest.approx(math.hypot(BETWEEN, WITHIN), rel=0.15)
    assert 0.5 < row["between_contraction"] < 1.0


def test_changes_compare_each_interval_alone_with_the_pooled_one(found: PoolSummary) -> None:
    row = records(found.changes)[0]
    widths = [math.log(row[f"{key}_upper"] / row[f"{key}_lower"]) for key in ("alone", "pooled")]
    assert row["width_ratio"] == pytest.approx(widths[1] / widths[0])
    assert row["shift"] == pytest.approx(math.log(row["pooled"] / row["alone"]) / widths[0])


def test_the_paragraph_says_how_alike_servers_are_and_what_to_expect(found: PoolSummary) -> None:
    text = " ".join(paragraph(found))
    assert "Pooled: 3 traces of 2 servers, X100, llama-3-8b (2 traces) and" in text
    assert "Traces of one server differ by " in text
    assert "Servers differ by " in text
    assert "in the slope c" in text
    assert "On a server not yet seen, a decode step of 8 requests is expected to take" in text
    assert any("pooled fits share their population" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"width_ratio": 0.98, "shift": 0.01}, "Pooling changed no interval by more than 5%"),
        ({"width_ratio": 0.4, "shift": 0.01}, "Pooling changed most what is known of the floor L_8 of day: "),
    ],
)
def test_what_pooling_changed_most_is_named_where_it_is_worth_it(
    rows: dict[str, float], words: str, found: PoolSummary
) -> None:
    changes = found.changes.assign(width_ratio=1.0, shift=0.0)
    changes.loc[0, list(rows)] = list(rows.values())
    assert words in " ".join(paragraph(replace(found, changes=changes)))


@pytest.mark.parametrize(
    ("sd", "text"),
    [((0.1, 0.05, 0.2), "11% (5% to 22%)"), ((0.6, 0.3, 1.2), "a factor of 1.82 (1.35 to 3.32)")],
)
def test_a_spread_is_said_in_percent_or_as_a_factor(sd: tuple[float, float, float], text: str) -> None:
    row = dict(zip(("within", "within_lower", "within_upper"), sd, strict=True))
    assert difference_text(row, "within") == text


def test_typical_steps_are_those_of_all_traces_on_every_server(found: PoolSummary) -> None:
    steps = found.steps
    assert steps["trace"].unique().tolist() == ["day", "night", "other", UNSEEN]
    decode = steps[steps["step"] == "median decode step"].set_index("trace")
    widths = decode["mean_upper_ms"] - decode["mean_lower_ms"]
    assert widths[UNSEEN] > 10.0 * widths["day"]
    assert not bool(steps["extrapolation"].any())


def test_traces_of_different_servers_and_fits_that_have_not_converged_are_said_so(pool: Pool) -> None:
    fits = {"a": server(name="a"), "b": server(name="b", converged=False, problems=("x",))}
    found = pool_summary(stub_pool(fits, accept_unconverged=True, servers={"b": "B"}))
    assert "Traces of one server differ" not in " ".join(paragraph(found))
    assert "2 traces of 2 servers" in " ".join(paragraph(found))
    assert "b has NOT CONVERGED by itself" in found.warnings
    spread = found.spread.assign(between_contraction=0.1)
    assert any("tell little of how far servers differ in" in text for text in warnings_of(pool, spread))


def test_the_terminal_shows_the_same_numbers_in_a_hundred_columns(found: PoolSummary) -> None:
    text = terminal(report(found))
    assert max(map(len, text.splitlines())) <= WIDTH
    row = records(found.spread)[0]
    ends = [math.exp(row[name]) for name in ("between", "between_lower", "between_upper")]
    assert "{:.2f} ({:.2f} to {:.2f})".format(*ends) in text
    assert "12 s" in text


def test_the_page_stands_alone_and_escapes_what_comes_from_data(found: PoolSummary, tmp_path: Path) -> None:
    paths = write_report(report(found), tmp_path)
    page = paths.page.read_text("utf-8")
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 2
    assert 'src="http' not in page
    assert json.loads(paths.summary.read_text("utf-8"))["spread"] == records(found.spread)
    written = pd.read_csv(paths.tables["spread"])
    assert written["between"].tolist() == pytest.approx(found.spread["between"].tolist())


def test_the_figure_of_shrinkage_shows_each_interval(found: PoolSummary) -> None:
    figure = pool_shrinkage(found)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in panels][:2] == ["L_8 (ms)", "c (ms/token)"]
    labels = [tick.get_text() for tick in panels[0].get_yticklabels()]
    assert labels == ["day", "night", "other"]
    assert all(ax.get_xscale() == "log" for ax in panels)
    row = by(found.changes[found.changes["coordinate"] == "c"], "trace")["night"]
    segments = np.concatenate([c.get_segments() for c in panels[1].collections if hasattr(c, "get_segments")])
    for key in ("alone", "pooled"):
        ends = [row[f"{key}_lower"], row[f"{key}_upper"]]
        assert any(np.allclose(segment[:, 0], ends) for segment in segments)


def test_the_figure_of_latencies_has_a_panel_a_number_of_requests(found: PoolSummary) -> None:
    figure = pool_latency(found)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["1 request", "8 requests", "32 requests"]
    assert figure.axes[0].get_ylabel() == "mean latency (ms)"
    assert figure.axes[-1].get_xlabel() == "tokens in the step, S"


def test_an_unconverged_pool_is_said_first(found: PoolSummary) -> None:
    population = replace(found.population, problems=("R-hat 1.05 on between",))
    document = report(replace(found, population=population))
    said = " ".join(terminal(document).split())
    assert "The pool has NOT CONVERGED: R-hat 1.05 on between." in said
    page = html(replace(document, sections=()), {})
    assert "Do not act on these numbers" in page
    assert "<li>R-hat 1.05 on between</li>" in page


@pytest.mark.parametrize("whose", [None, "the pool three (3 traces of 2 servers), as a server not yet seen"])
def test_a_fit_s_report_shows_the_prior_that_it_had(whose: str | None) -> None:
    fit = synthetic_fit(prior_from=whose)
    narrow = {"prior": fit.prior.assign(tau_S=0.1 * fit.prior["tau_S"] ** 0.1)}
    found = summarize(with_groups(fit, **narrow), simulated_steps(60, seed=1))
    rows, document = by(found.priors, "parameter"), report(found)
    page, said = markdown(document), " ".join(sentences_of(found))
    assert document.numbers["prior_from"] == whose
    if whose is None:
        assert rows["tau_S"]["low"] == pytest.approx(0.0001)
        assert "95% of a log-normal in" in page
        assert "Its prior is from" not in said
        return
    ends = narrow["prior"]["tau_S"].quantile([0.025, 0.975]).to_numpy()
    assert [rows["tau_S"]["low"], rows["tau_S"]["high"]] == pytest.approx(ends.tolist(), rel=1e-3)
    assert {"L_0", "c"} <= set(rows)
    assert "95% of a log-normal in" not in page
    assert f"From {whose}: " in page
    assert f"Its prior is from {whose}." in said
    assert any(whose in figure.caption for figure in document.figures)
