"""The report of a trace: its figures, its page, and the numbers beside it."""

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bayes_sched.format import quantity
from bayes_sched.reports.page import ReportPaths
from bayes_sched.reports.plots.trace import TraceAxis
from bayes_sched.reports.trace import (
    MAX_SHOWN,
    analysis_figures,
    analysis_text,
    findings_table,
    render_analysis,
    write_analysis,
)
from bayes_sched.trace.analysis import TraceAnalysis, analyze
from tests.made_trace import START, changed, made_trace

NAMES = [
    *("times_over_time", "tokens_over_time", "queue_and_cache", "request_distributions"),
    *("model_run_histogram", "schedule_histogram", "schedule_against_model_run"),
]


def busy(num: int = 800, **columns: Any) -> TraceAnalysis:
    """A trace with batches of every kind and findings of every kind."""
    rng = np.random.default_rng(1)
    decode = rng.integers(0, 9, num)
    prefill = np.where(decode == 0, 2, rng.integers(0, 2, num))
    schedule_ms = changed(0.5, num, rise=(slice(num // 2, None), 2.0), slow=(30, 25.0)) * rng.lognormal(
        0, 0.1, num
    )
    made: dict[str, Any] = {
        "batch_size": decode + prefill,
        "total_tokens": decode + 100 * prefill,
        "num_prefill_reqs": prefill,
        "num_decode_reqs": decode,
        "prefill_tokens": 100 * prefill,
        "max_prefill_chunk": 100,
        "latency_ms": rng.lognormal(3, 0.5, num) * (1 + prefill),
        "schedule_ms": schedule_ms,
        "num_waiting_reqs": changed(0, num, queue=(slice(100, 160), 40)),
        "kv_cache_usage": changed(0.5, num, full=(slice(200, 260), 0.97)),
        "step_ms": ...,
    }
    return analyze(made_trace(num, **made | columns))


@pytest.fixture(scope="module")
def analysis() -> TraceAnalysis:
    return busy()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, analysis: TraceAnalysis) -> ReportPaths:
    return write_analysis(analysis, tmp_path_factory.mktemp("report"), command="python scripts/x.py <t>")


def drawn(analysis: TraceAnalysis, *names: str) -> dict[str, Figure]:
    """Draw the figures of these names, or all."""
    return {f.name: f.draw() for f in analysis_figures(analysis) if not names or f.name in names}


def test_the_test_trace_holds_every_kind_of_finding(analysis: TraceAnalysis) -> None:
    assert len({finding.kind for finding in analysis.findings}) == 4


def test_every_figure_has_a_title_and_units_on_its_axes(analysis: TraceAnalysis) -> None:
    figures = drawn(analysis)
    assert list(figures) == NAMES
    for name, figure in figures.items():
        assert len(figure.get_suptitle()) > 10, name
        for ax in figure.axes:
            assert ax.get_ylabel(), name
        assert figure.axes[-1].get_xlabel() or figure.axes[0].get_xlabel(), name
    assert [ax.get_ylabel() for ax in figures["times_over_time"].axes] == [
        "schedule time (ms)",
        "model-run time (ms)",
    ]
    assert figures["tokens_over_time"].axes[0].get_ylabel() == "tokens a second"


@pytest.mark.parametrize(
    ("stamps", "label"),
    [
        (START + np.arange(800) / 10, "time (UTC), from 2023-11-14 on"),
        (np.arange(800) / 10, "seconds since the trace began"),
        (np.arange(800.0), "minutes since the trace began"),
        (np.arange(800) * 60.0, "hours since the trace began"),
        (..., "number of the batch"),
    ],
)
def test_the_time_axis_says_what_it_counts(stamps: Any, label: str) -> None:
    for figure in drawn(busy(timestamp=stamps), *NAMES[:3]).values():
        assert figure.axes[-1].get_xlabel() == label


def test_figures_of_columns_that_are_missing_are_left_out() -> None:
    bare = busy(
        schedule_ms=..., num_waiting_reqs=..., num_running_reqs=..., kv_cache_usage=..., prefill_tokens=...
    )
    assert list(drawn(bare)) == [
        *("times_over_time", "tokens_over_time", "request_distributions", "model_run_histogram")
    ]
    assert len(drawn(bare, "times_over_time")["times_over_time"].axes) == 1
    without_cache = drawn(busy(kv_cache_usage=...), "queue_and_cache")
    assert len(without_cache["queue_and_cache"].axes) == 1


@pytest.mark.parametrize("num", [1, 25, 4000])
def test_traces_of_any_length_can_be_drawn(num: int) -> None:
    for figure in drawn(analyze(made_trace(num))).values():
        figure.draw_without_rendering()


def test_times_that_are_zero_can_be_drawn_and_are_said() -> None:
    zero = analyze(made_trace(50, schedule_ms=changed(0.0, 50, some=(slice(0, 10), 1.0))))
    figures = drawn(zero, "times_over_time", *NAMES[4:])
    for figure in figures.values():
        figure.draw_without_rendering()
    assert "40 batches without a time above 0" in figures["schedule_histogram"].axes[0].get_title("left")


def test_histograms_hold_every_batch(analysis: TraceAnalysis) -> None:
    figures = drawn(analysis)
    for name in ("model_run_histogram", "schedule_histogram"):
        top = figures[name].axes[0].patches[-1].get_data()  # type: ignore[attr-defined]
        assert top.values.sum() == analysis.num_steps


def test_a_long_trace_is_thinned_by_counting_and_says_so() -> None:
    long = analyze(made_trace(5000, latency_ms=np.linspace(10, 30, 5000)))
    figures = drawn(long, "schedule_against_model_run", "times_over_time")
    assert "batches a cell, of 5,000" in [
        ax.get_ylabel() for ax in figures["schedule_against_model_run"].axes
    ]
    title = figures["times_over_time"].axes[0].get_title("left")
    assert title == "each line is made of 120 pieces of about 42 batches"
    cells = figures["schedule_against_model_run"].axes[0].collections[0].get_array()
    assert cells is not None
    assert cells.sum() == 5000


def test_lines_stop_where_the_server_was_idle() -> None:
    stamps = START + np.concatenate([np.arange(300), 3900 + np.arange(300)])
    x, (middle,) = TraceAxis(analyze(made_trace(600, timestamp=stamps))).stairs(["latency_ms_p50"])
    assert len(x) == len(middle)
    assert np.isnan(middle).sum() == 1


def test_an_idle_hour_is_no_tokens() -> None:
    stamps = START + np.concatenate([np.arange(300), 3900 + np.arange(300)])
    (figure,) = drawn(analyze(made_trace(600, timestamp=stamps)), "tokens_over_time").values()
    values = figure.axes[0].patches[0].get_data().values  # type: ignore[attr-defined]
    assert (values == 0).sum() > len(values) / 2


def test_the_report_consists_of_a_page_numbers_and_figures(written: ReportPaths) -> None:
    assert (written.page.name, written.summary.name) == ("report.html", "analysis.json")
    assert list(written.figures) == NAMES
    for path in (written.page, written.summary, *written.tables.values(), *sum(written.figures.values(), ())):
        assert path.stat().st_size > 0


def test_the_page_needs_nothing_from_elsewhere_and_its_links_lead_somewhere(written: ReportPaths) -> None:
    page = written.page.read_text(encoding="utf-8")
    assert not re.search(r"https?://", page)
    assert "<script" not in page
    assert page.count('src="data:image/png;base64,') == len(NAMES)
    for target in re.findall(r'href="([^"]+)"', page):
        assert (written.page.parent / target).is_file()


def test_the_page_holds_the_paragraph_the_numbers_and_the_findings(
    written: ReportPaths, analysis: TraceAnalysis
) -> None:
    page = written.page.read_text(encoding="utf-8")
    assert "python scripts/x.py &lt;t&gt;" in page
    assert analysis.sentences[1] in page
    for row in analysis.table.to_dict("records"):
        assert f"<td>{quantity(float(row['p99']), str(row['unit']))}</td>" in page
    for finding in analysis.findings:
        assert f"{finding.source}:{finding.first_line}" in page
        assert finding.start in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()


def test_csv_and_json_hold_the_same_numbers(written: ReportPaths, analysis: TraceAnalysis) -> None:
    numbers = json.loads(written.summary.read_text(encoding="utf-8"))
    for name in ("statistics", "regimes", "slowest", "findings", "over_time"):
        table = pd.read_csv(written.tables[name])
        assert list(table.columns) == list(numbers[name][0])
        assert len(table) == len(numbers[name])
    assert len(pd.read_csv(written.tables["slow_schedules"])) == 1
    assert numbers["num_steps"] == analysis.num_steps


def test_a_quiet_trace_is_marked_as_such() -> None:
    quiet = analyze(made_trace(60))
    assert 'class="verdict good">nothing stands out' in render_analysis(quiet, {})
    assert findings_table(quiet).empty


def test_of_many_findings_the_page_lists_the_worst_and_the_file_all() -> None:
    schedule_ms = changed(0.5, 4000, slow=(slice(0, 4000, 50), 12.0), worst=(500, 99.0))
    many = analyze(made_trace(4000, schedule_ms=schedule_ms))
    page = render_analysis(many, {})
    assert f"80 in the trace; the worst {MAX_SHOWN} are listed" in page
    assert "t0.jsonl:501" in page
    assert len(findings_table(many)) == 80


def test_what_comes_from_data_is_escaped() -> None:
    evil = '<script>alert("x")</script>'
    trace = made_trace(60, schedule_ms=changed(0.5, 60, slow=(3, 99.0)))
    trace.steps["source"] = trace.steps["source"].cat.rename_categories([evil])
    object.__setattr__(trace, "labels", {"gpu": evil, "llm": evil})
    object.__setattr__(trace, "warnings", (evil,))
    page = render_analysis(analyze(trace), {}, command=evil)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5


def test_the_text_fits_a_terminal_and_lists_the_worst_of_each_kind(analysis: TraceAnalysis) -> None:
    text = analysis_text(analysis, num_findings=1)
    assert max(map(len, text.splitlines())) <= 100
    for kind in ("Slow scheduling: 1", "Schedule time rose: 1", "Queue build-up: 1", "KV cache near full: 1"):
        assert kind in text
    assert "Step time: schedule plus model run; the trace holds no other." in text
    assert "Missing in the trace: context lengths." in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2048.0, "tokens", "2,048"),
        (1933.97, "tokens", "1,934"),
        (1.378, "requests", "1.38"),
        (0.0, "requests", "0"),
        (1339.04, "ms", "1,340"),
        (0.5, "share", "50.0%"),
        (None, "ms", "–"),
    ],
)
def test_quantities_are_written_as_their_unit_asks(value: float | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text
