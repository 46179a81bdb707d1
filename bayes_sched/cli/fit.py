"""``bayes-sched fit``: a latency model fitted to the step trace of a vLLM scheduler."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import TypedDict

from bayes_sched.checks.summary import summarize
from bayes_sched.cli.command import DONE, NOT_CONVERGED, Call, given
from bayes_sched.cli.progress import Show, shown_progress
from bayes_sched.cli.results import print_result
from bayes_sched.errors import InputError
from bayes_sched.files import POSTERIOR, result_folder
from bayes_sched.model.protocol import load_model_file
from bayes_sched.pooling.pool import choose_prior
from bayes_sched.pooling.population import Population
from bayes_sched.pooling.prior import PopulationPrior
from bayes_sched.posterior.fit import FitResult, fit
from bayes_sched.reports import fit as _  # noqa: F401, it registers the report
from bayes_sched.reports.document import Document, report
from bayes_sched.reports.write import write_report
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.trace.reader import Trace, read_trace


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    with shown_progress(call) as show:
        show("reading the trace", None)
        trace = read_trace(options.traces, max_bad_share=options.max_bad_share, progress=show)
        result = fit_trace(options, call, trace, show, command=call.line(traces=options.traces))
        show("summing up" if options.no_report else "writing the report", None)
        document, paths = write(options, call, result)
    call.warn(document.numbers["warnings"])
    stages = ", ".join(f"{name} {value:.1f} s" for name, value in result.fit.metadata.timings_s.items())
    print_result(
        document,
        options,
        paths,
        saved=("posterior", "report"),
        start=start,
        note=bad_lines(trace),
        stages=f" ({stages})",
    )
    call.warn(result.fit.metadata.problems, of="not converged")
    return DONE if result.fit.converged else NOT_CONVERGED


def bad_lines(trace: Trace) -> str:
    """Return which lines could not be used, a paragraph of its own if there are any."""
    bad = trace.bad_lines
    if not bad.num_bad:
        return ""
    head = f"{bad.num_bad:,} of {bad.num_lines:,} lines could not be used ({bad.reasons}); the first:"
    return "\n".join([head, *(f"  - {line}" for line in bad.first), "", ""])


class FitArguments(TypedDict):
    """Arguments of :func:`bayes_sched.fit` that are options, whatever the prior."""

    model: str
    noise: str | None
    min_latency_ms: float | None
    max_latency_ms: float | None
    settings: SamplerSettings
    max_rows: int


def fit_arguments(options: argparse.Namespace) -> FitArguments:
    """Return the options as arguments of :func:`bayes_sched.fit`."""
    return FitArguments(
        model=options.model,
        noise=options.noise,
        min_latency_ms=options.min_latency_ms,
        max_latency_ms=options.max_latency_ms,
        settings=SamplerSettings(**given(options, "draws", "tune", "chains", "seed", "sampler")),
        max_rows=options.max_rows,
    )


def fit_trace(
    options: argparse.Namespace, call: Call, trace: Trace, show: Show, *, command: str
) -> FitResult:
    """Fit a trace that is read; `command` is kept with the fit."""
    labels = {key: getattr(options, key) for key in ("gpu", "llm") if getattr(options, key)}
    arguments, population = fit_arguments(options), None
    if options.population is not None:
        noise, population = pool_prior(options, call, {**trace.labels, **labels})
        arguments["noise"] = noise
    return fit(
        trace,
        priors=options.overrides,
        name=options.folder.name,
        labels=labels,
        command=command,
        population=population,
        progress=show,
        **arguments,
    )


def pool_prior(
    options: argparse.Namespace, call: Call, labels: Mapping[str, str]
) -> tuple[str, PopulationPrior]:
    """Return the pool's noise option, and what it tells of this server; say whose prior that is."""
    population = Population.load(options.population)
    prior = choose_prior(
        population,
        model=load_model_file(options.model).model.name,
        noise=options.noise,
        labels=labels,
        server=options.server,
        accept_unconverged=options.accept_unconverged,
    )
    call.say(f"prior: {prior.text}")
    return population.noise, prior


def write(options: argparse.Namespace, call: Call, result: FitResult) -> tuple[Document, dict[str, str]]:
    """Write the folder of the result; return its report and its files by what they are.

    A report that fails does not take the fit with it: the sampling may have taken minutes.
    """
    paths = {"folder": str(options.folder), "posterior": str(options.folder / POSTERIOR)}
    failure: Exception | None = None
    with result_folder(options.folder, overwrite=options.overwrite) as folder:
        result.fit.save(folder / POSTERIOR)
        try:
            is_drawn = not options.no_report
            found = summarize(result.fit, result.steps, probability=options.probability, is_drawn=is_drawn)
            document = report(found)
            if is_drawn:
                write_report(document, folder, with_svg=options.svg)
        except Exception as error:
            failure = error
    if failure is not None:
        call.say(f"the fit is saved, {paths['posterior']}; its report is not")
        if result.fit.metadata.model.shipped or isinstance(failure, InputError):
            raise failure
        text = f"{type(failure).__name__}: {failure}"
        raise InputError(f"{options.model}: the report cannot be made with this model ({text})") from failure
    if not options.no_report:
        names = {"report": "report.html", "summary": "summary.json"}
        paths |= {what: str(options.folder / name) for what, name in names.items()}
    return document, paths
