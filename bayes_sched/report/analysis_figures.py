"""The figures of a trace's analysis, each with a heading and a caption that says how to read it."""

from __future__ import annotations

from bayes_sched.plots import queue_and_cache, request_distributions, schedule_against_model_run, time_histogram, times_over_time, tokens_over_time
from bayes_sched.analysis import TraceAnalysis
from bayes_sched.report.files import ReportFigure


def analysis_figures(analysis: TraceAnalysis) -> tuple[ReportFigure, ...]:
    """Return the figures that the columns of the trace allow, in the order of the page; none is drawn yet.

    Parameters
    ----------
    analysis : TraceAnalysis
    """
    has_schedule = "schedule_ms" in analysis.steps
    has_level = any(
        name in analysis.steps for name in ("num_waiting_reqs", "num_running_reqs", "kv_cache_usage")
    )
    figures = [
        ReportFigure(
            "times_over_time",
            "Time of batches over time",
            "The lines are medians, of the batches that only decode and of those that prefill; the band "
            "holds 90% of all batches of each piece of time, the dots are its slowest batch; logarithmic "
            "axes. A dashed vertical line is a sudden rise of the schedule time that the load does not "
            "explain.",
            lambda: times_over_time(analysis),
        ),
        ReportFigure(
            "tokens_over_time",
            "Tokens over time",
            "What the server processed, prefilled tokens on top of decoded ones. A flat top is a server at "
            "its limit, provided that requests were waiting.",
            lambda: tokens_over_time(analysis),
        ),
        ReportFigure(
            "queue_and_cache",
            "Queue and KV cache over time",
            "Lines are means of each piece of time, the light band above reaches to the maximum. Shaded "
            "spans are findings: a queue that built up, a KV cache near full (red line: the limit).",
            lambda: queue_and_cache(analysis),
        ),
        ReportFigure(
            "request_distributions",
            "Requests a batch",
            "Each bar is the share of the batches that hold so many requests of the kind; the scale is "
            "logarithmic, so that rare batches show.",
            lambda: request_distributions(analysis),
        ),
        ReportFigure(
            "model_run_histogram",
            "Model-run time",
            "Batches by the time the model ran, the kinds of batches on top of each other. Dotted lines: "
            "half, 95% and 99% of all batches take no longer.",
            lambda: time_histogram(analysis, "latency_ms"),
        ),
        ReportFigure(
            "schedule_histogram",
            "Schedule time",
            "Batches by the time their scheduling took, the kinds of batches on top of each other. Dotted "
            "lines: half, 95% and 99% of all batches take no longer.",
            lambda: time_histogram(analysis, "schedule_ms"),
        ),
        ReportFigure(
            "schedule_against_model_run",
            "Schedule time against model-run time",
            "On the dashed lines scheduling takes 1%, 10% or 100% of the model run. What lies above the red "
            "line took longer to schedule than the limit.",
            lambda: schedule_against_model_run(analysis),
        ),
    ]
    left_out = set() if has_schedule else {"schedule_histogram", "schedule_against_model_run"}
    left_out |= set() if has_level else {"queue_and_cache"}
    return tuple(figure for figure in figures if figure.name not in left_out)
