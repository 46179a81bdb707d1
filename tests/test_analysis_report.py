"""What is told of a trace: sentences, page, terminal, the numbers beside it, figures."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bayes_sched.format import quantity
from bayes_sched.reports import write
from bayes_sched.reports.document import Document, report
from bayes_sched.reports.html import html
from bayes_sched.reports.markdown import markdown
from bayes_sched.reports.plots.style import save_figure
from bayes_sched.reports.plots.trace import TraceAxis
from bayes_sched.reports.terminal import terminal
from bayes_sched.reports.trace import MAX_SHOWN, sentences
from bayes_sched.reports.write import ReportPaths
from bayes_sched.trace.analysis import TraceAnalysis, analyze
from bayes_sched.trace.findings import Limits
from bayes_sched.trace.reader import Trace
from tests.made_trace import START, changed, made_trace

NAMES = [
    *("times_over_time", "tokens_over_time", "queue_and_cache", "request_distributions"),
    *("model_run_histogram", "schedule_histogram", "schedule_against_model_run"),
]
COMMAND = "python scripts/x.py <t>"


def busy(num: int = 800, **columns: Any) -> Trace:
    """A trace with batches of every kind and findings of every kind."""
    rng = np.random.default_rng(1)
    decode = rng.integers(0, 9, num)
    prefill = np.where(decode == 0, 2, rng.integers(0, 2, num))
    schedule_ms = changed(0.5, num, rise=(slice(num // 2, None), 2.0), slow=(30, 25.0))
    made: dict[str, Any] = {
        "batch_size": decode + prefill,
        "total_tokens": decode + 100 * prefill,
        "num_prefill_reqs": prefill,
        "num_decode_reqs": decode,
        "prefill_tokens": 100 * prefill,
        "max_prefill_chunk": 100,
        "latency_ms": rng.lognormal(3, 0.5, num) * (1 + prefill),
        "schedule_ms": schedule_ms * rng.lognormal(0, 0.1, num),
        "num_waiting_reqs": changed(0, num, queue=(slice(100, 160), 40)),
        "kv_cache_usage": changed(0.5, num, full=(slice(200, 260), 0.97)),
        "step_ms": ...,
    }
    return made_trace(num, **made | columns)


@pytest.fixture(scope="module")
def analysis() -> TraceAnalysis:
    return analyze(busy(), limits=Limits(num_slowest=1))


@pytest.fixture(scope="module")
def document(analysis: TraceAnalysis) -> Document:
    return report(analysis, command=COMMAND)


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    """Those of the report that is written, which are drawn once."""
    return {}


@pytest.fixture(scope="module", autouse=True)
def written(
    tmp_path_factory: pytest.TempPathFactory, document: Document, figures: dict[str, Figure]
) -> ReportPaths:
    def save(figure: Figure, folder: Path, name: str, **options: Any) -> tuple[Path, ...]:
        figures[name] = figure
        return save_figure(figure, folder, name, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bayes_sched.reports.plots.style.save_figure", save)
        return write.write_report(document, tmp_path_factory.mktemp("report"))


def drawn(trace: Trace, *names: str) -> dict[str, Figure]:
    """Draw the figures of these names, or all."""
    document = report(analyze(trace))
    return {f.name: f.draw() for f in document.figures if not names or f.name in names}


def said(**columns: Any) -> str:
    return " ".join(sentences(analyze(made_trace(**columns))))


def test_a_quiet_trace_says_what_was_looked_for_and_not_found() -> None:
    assert (
        "There is no step that scheduled for more than 10 ms, no sudden rise of the schedule time, no "
        "lasting queue of more than 10 requests and no time with the KV cache 95% full." in said()
    )


def test_without_timestamps_the_throughput_is_that_of_the_model_run() -> None:
    text = said(timestamp=...)
    assert text.startswith("Measured: 600 batches: 400 tokens for each second of model run. The model runs")
    assert "–" not in text


def test_what_a_trace_does_not_hold_is_said_with_what_it_cannot_show() -> None:
    text = said(timestamp=..., schedule_ms=..., step_ms=..., num_waiting_reqs=..., kv_cache_usage=...)
    assert "The trace does not hold timestamps, the schedule time, the waiting queue, KV-cache use" in text
    assert "so it cannot show slow scheduling, schedule time rose, queue build-up and KV cache" in text
    assert "There is" not in text


def test_the_sentences_name_what_was_found_and_what_to_do() -> None:
    waiting = changed(0, queue=(slice(100, 200), 30))
    slow = changed(0.5, slow=(7, 25.0), rise=(slice(300, None), 4.0))
    text = said(num_waiting_reqs=waiting, kv_cache_usage=changed(0.99), schedule_ms=slow, step_ms=...)
    for part in (
        "1 step (0.17%) scheduled for more than 10 ms, 25 ms at t0.jsonl:8, 2023-11-14 22:13:20.143 UTC",
        "look for garbage collection",
        "rose suddenly once",
        "A queue of more than 10 requests built up once, 30 requests at t0.jsonl:101",
        "22:13:22.050 UTC: bursts, of which the longest drained within 2.05 s.",
        "The KV cache was at least 95% full once, 99.0% at t0.jsonl:1",
        "--gpu-memory-utilization",
        "Scheduling takes 10.3% of the step time: worth watching.",
    ):
        assert part in text
    assert "There is" not in text
    lasting = said(num_waiting_reqs=changed(0, queue=(slice(100, None), 30)))
    assert "the server was offered more than it serves; add a replica, or admit less." in lasting


def test_every_figure_has_a_title_and_units_on_its_axes(figures: dict[str, Figure]) -> None:
    assert list(figures) == NAMES
    for name, figure in figures.items():
        assert len(figure.get_suptitle()) > 10, name
        assert all(ax.get_ylabel() for ax in figure.axes), name
        assert figure.axes[-1].get_xlabel() or figure.axes[0].get_xlabel(), name
    labels = [ax.get_ylabel() for ax in figures["times_over_time"].axes]
    assert labels == ["schedule time (ms)", "model-run time (ms)"]
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
    (figure,) = drawn(made_trace(800, timestamp=stamps), "tokens_over_time").values()
    assert figure.axes[-1].get_xlabel() == label


def test_figures_of_columns_that_are_missing_are_left_out() -> None:
    absent = ("schedule_ms", "num_waiting_reqs", "num_running_reqs", "kv_cache_usage", "prefill_tokens")
    without: dict[str, Any] = dict.fromkeys(absent, ...)
    bare = drawn(busy(**without))
    assert list(bare) == [NAMES[0], NAMES[1], NAMES[3], NAMES[4]]
    assert len(bare["times_over_time"].axes) == 1
    without_cache = drawn(busy(kv_cache_usage=...), "queue_and_cache")
    assert len(without_cache["queue_and_cache"].axes) == 1


def test_one_batch_and_times_that_are_zero_can_be_drawn_and_are_said() -> None:
    zero = made_trace(50, schedule_ms=changed(0.0, 50, some=(slice(0, 10), 1.0)))
    figures = drawn(zero, "times_over_time", *NAMES[4:])
    for figure in (*figures.values(), *drawn(made_trace(1)).values()):
        figure.draw_without_rendering()
    assert "40 batches without a time above 0" in figures["schedule_histogram"].axes[0].get_title("left")


def test_histograms_hold_every_batch(figures: dict[str, Figure], analysis: TraceAnalysis) -> None:
    for name in ("model_run_histogram", "schedule_histogram"):
        top = figures[name].axes[0].patches[-1].get_data()  # type: ignore[attr-defined]
        assert top.values.sum() == analysis.num_steps


def test_a_long_trace_is_thinned_by_counting_and_says_so() -> None:
    long = made_trace(5000, latency_ms=np.linspace(10, 30, 5000))
    figures = drawn(long, "schedule_against_model_run", "times_over_time")
    for figure in figures.values():
        figure.draw_without_rendering()
    against = figures["schedule_against_model_run"].axes
    assert "batches a cell, of 5,000" in [ax.get_ylabel() for ax in against]
    title = figures["times_over_time"].axes[0].get_title("left")
    assert title == "each line is made of 120 pieces of about 42 batches"
    cells = against[0].collections[0].get_array()
    assert cells is not None
    assert cells.sum() == 5000


def test_lines_stop_where_the_server_was_idle_and_an_idle_hour_is_no_tokens() -> None:
    trace = made_trace(timestamp=START + np.concatenate([np.arange(300), 3900 + np.arange(300)]))
    x, (middle,) = TraceAxis(analyze(trace)).stairs(["latency_ms_p50"])
    assert len(x) == len(middle)
    assert np.isnan(middle).sum() == 1
    (figure,) = drawn(trace, "tokens_over_time").values()
    values = figure.axes[0].patches[0].get_data().values  # type: ignore[attr-defined]
    assert (values == 0).sum() > len(values) / 2


def test_the_page_holds_the_sentences_the_numbers_and_the_findings_and_its_links_lead_somewhere(
    written: ReportPaths, analysis: TraceAnalysis
) -> None:
    assert (written.page.name, written.summary.name, list(written.figures)) == (
        *("report.html", "analysis.json"),
        NAMES,
    )
    text = written.page.read_text(encoding="utf-8")
    assert text.count('src="data:image/png;base64,') == len(NAMES)
    for target in re.findall(r'href="([^"]+)"', text):
        assert (written.page.parent / target).stat().st_size > 0
    assert "python scripts/x.py &lt;t&gt;" in text
    assert sentences(analysis)[1] in text
    for row in analysis.table.to_dict("records"):
        assert f"<td>{quantity(float(row['p99']), str(row['unit']))}</td>" in text
    assert len({finding.kind for finding in analysis.findings}) == 4
    for finding in analysis.findings:
        assert f"{finding.source}:{finding.first_line}" in text
        assert finding.start in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()


def test_csv_and_json_hold_the_same_numbers(written: ReportPaths, analysis: TraceAnalysis) -> None:
    numbers = json.loads(written.summary.read_text(encoding="utf-8"))
    for name in ("statistics", "regimes", "slowest", "findings", "over_time"):
        table = pd.read_csv(written.tables[name])
        assert list(table.columns) == list(numbers[name][0])
        assert len(table) == len(numbers[name])
    assert len(pd.read_csv(written.tables["slow_schedules"])) == 1
    assert (numbers["num_steps"], numbers["command"]) == (analysis.num_steps, COMMAND)
    assert numbers["text"] == " ".join(sentences(analysis))


def test_the_text_fits_a_terminal_and_lists_the_worst_of_each_kind(document: Document) -> None:
    text = terminal(document)
    assert max(map(len, text.splitlines())) <= 100
    for kind in ("Slow scheduling: 1", "Schedule time rose: 1", "Queue build-up: 1", "KV cache near full: 1"):
        assert kind in text
    assert "The trace holds no step time: it is the sum of schedule and model run" in text
    assert "Missing in the trace: context lengths." in text


def test_of_many_findings_the_page_lists_the_worst_and_the_file_all() -> None:
    quiet = report(analyze(made_trace(60)))
    assert [text.text for text in quiet.head] == ["nothing stands out"]
    assert quiet.frames["findings"].empty
    schedule_ms = changed(0.5, 4000, slow=(slice(0, 4000, 50), 12.0), worst=(500, 99.0))
    many = report(analyze(made_trace(4000, schedule_ms=schedule_ms)))
    text = markdown(many)
    assert f"80 in the trace; the worst {MAX_SHOWN} are listed" in text
    assert "t0.jsonl:501" in text
    assert len(many.frames["findings"]) == 80
    assert "Slow scheduling: 80, the worst 10" in terminal(many)


def test_what_comes_from_data_is_escaped() -> None:
    evil = '<script>alert("x")</script>'
    trace = made_trace(60, schedule_ms=changed(0.5, 60, slow=(3, 99.0)))
    trace.steps["source"] = trace.steps["source"].cat.rename_categories([evil])
    trace = replace(trace, labels={"gpu": evil, "llm": evil}, warnings=(evil,))
    without_figures = report(analyze(trace), command=evil)
    sections = tuple(item for item in without_figures.sections if getattr(item, "title", "") != "Figures")
    page = html(replace(without_figures, sections=sections), {})
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5


def test_quantities_are_written_as_their_unit_asks() -> None:
    tokens = [quantity(value, "tokens") for value in (2048.0, 1933.97)]
    requests = [quantity(value, "requests") for value in (1.378, 0.0)]
    assert (tokens, requests) == (["2,048", "1,934"], ["1.38", "0"])
    assert [quantity(1339.04, "ms"), quantity(0.5, "share"), quantity(None, "ms")] == ["1,340", "50.0%", "–"]
