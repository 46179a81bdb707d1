"""``bayes-sched analyze``: what a scheduler's step trace shows, without any model."""

from __future__ import annotations

import argparse
import time

from bayes_sched.cli.command import DONE, Call, given, write_whole
from bayes_sched.cli.progress import shown_progress
from bayes_sched.cli.results import print_result, write_document
from bayes_sched.reports import trace as _  # noqa: F401, it registers the report
from bayes_sched.reports.document import report
from bayes_sched.trace.analysis import analyze
from bayes_sched.trace.findings import Limits
from bayes_sched.trace.reader import read_trace


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    paths: dict[str, str] = {}
    with shown_progress(call) as show:
        show("reading the trace", None)
        trace = read_trace(options.traces, max_bad_share=options.max_bad_share, progress=show)
        show("analysing", None)
        found = analyze(trace, limits=limits(options))
        document = report(found, command=call.line(traces=options.traces))
        if options.csv is not None:
            write_whole(options.csv, document.frames["statistics"].to_csv(index=False, lineterminator="\n"))
            paths["csv"] = str(options.csv)
        if options.report:
            show("writing the report", None)
            paths |= write_document(document, options)
    call.warn(found.warnings)
    numbers = {name: value for name, value in document.numbers.items() if name != "command"}
    print_result(document, options, paths, saved=("csv", "report"), start=start, numbers=numbers)
    return DONE


def limits(options: argparse.Namespace) -> Limits:
    """Return what is a finding."""
    names = ("slow_schedule_ms", "schedule_rise", "long_queue", "full_kv_cache")
    return Limits(num_slowest=options.top, **given(options, *names))
