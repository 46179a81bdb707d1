"""``bayes-sched compare``: servers by their fits, which is faster, how sure that is, and what it costs."""

from __future__ import annotations

import argparse
import time

from bayes_sched.cli.command import DONE, NOT_CONVERGED, Call, given
from bayes_sched.cli.progress import shown_progress
from bayes_sched.cli.results import print_result
from bayes_sched.comparison.compare import compare
from bayes_sched.files import COMPARISON, result_folder
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.reports import comparison as _  # noqa: F401, it registers the report
from bayes_sched.reports.document import report
from bayes_sched.reports.write import write_report


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    with shown_progress(call) as show:
        show("reading the fits", None)
        of = {"model": options.model, "context_tokens": options.context}
        fits = [FittedModel.load(file, **of) for file in options.posteriors]
        show("comparing", None)
        found = compare(
            fits,
            max_draws=options.draws,
            **given(options, "prices", "slo_ms", "slo_quantile", "rope", "probability", "seed"),
        )
        show("writing the tables" if options.no_report else "writing the report", None)
        document = report(found, command=call.line())
        with result_folder(options.folder, overwrite=options.overwrite, holds=COMPARISON) as folder:
            write_report(document, folder, with_page=not options.no_report, with_svg=options.svg)
            found.save(folder / COMPARISON)
    paths = {"folder": str(options.folder), "summary": str(options.folder / "summary.json")}
    if not options.no_report:
        paths["report"] = str(options.folder / "report.html")
    call.warn(found.warnings)
    saved = "folder" if options.no_report else "report"
    print_result(document, options, paths, saved=[saved], start=start)
    if found.converged:
        return DONE
    call.say("a fit has NOT CONVERGED: do not act on this comparison")
    return NOT_CONVERGED
