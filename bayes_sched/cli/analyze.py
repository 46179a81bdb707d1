"""``bayes-sched analyze``: what a scheduler's step trace shows, without any model."""

from __future__ import annotations

import argparse
import time

from bayes_sched.cli.command import DONE, Call, print_json, write_whole
from bayes_sched.cli.progress import shown_progress
from bayes_sched.files import ANALYSIS, result_folder
from bayes_sched.reports.trace import analysis_text, write_analysis
from bayes_sched.trace.analysis import analyze
from bayes_sched.trace.findings import Limits
from bayes_sched.trace.reader import read_trace


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    paths: dict[str, str] = {}
    with shown_progress(call) as show:
        show("reading the trace", None)
        trace = read_trace(options.traces, max_bad_share=options.max_bad_share)
        show("analysing", None)
        found = analyze(trace, limits=limits(options))
        if options.csv is not None:
            write_whole(options.csv, found.table.to_csv(index=False, lineterminator="\n"))
            paths["csv"] = str(options.csv)
        if options.report:
            show("writing the report", None)
            with result_folder(options.folder, overwrite=options.overwrite, holds=ANALYSIS) as folder:
                write_analysis(found, folder, command=call.line(traces=options.traces))
            names = {"folder": "", "report": "report.html", "analysis": ANALYSIS}
            paths |= {what: str(options.folder / name) for what, name in names.items()}
    for warning in found.warnings:
        call.say(f"warning: {warning}")
    seconds = time.perf_counter() - start
    if options.json:
        print_json({**found.to_dict(), "paths": paths, "seconds": round(seconds, 1)})
        return DONE
    print(analysis_text(found, num_findings=options.top))
    saved = [f"Saved {path}" for name, path in paths.items() if name in {"csv", "report"}]
    print("\n".join(["", *saved, f"Took {seconds:.1f} s"]))
    return DONE


def limits(options: argparse.Namespace) -> Limits:
    """Return what is a finding."""
    return Limits(
        slow_schedule_ms=options.slow_schedule_ms,
        schedule_rise=options.schedule_rise,
        long_queue=options.long_queue,
        full_kv_cache=options.full_kv_cache,
        num_slowest=options.top,
    )
