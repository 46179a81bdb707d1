"""``bayes-sched pool``: several traces fitted, and their fits let borrow strength from each other."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from bayes_sched.cli.command import DONE, NOT_CONVERGED, Call, Parser, given, option_of
from bayes_sched.cli.fit import fit_arguments, fit_trace
from bayes_sched.cli.fit import write as write_fit
from bayes_sched.cli.progress import Show, prefixed, shown_progress
from bayes_sched.cli.results import print_result
from bayes_sched.cli.trace_parsers import FITTING, add_fitting
from bayes_sched.errors import InputError
from bayes_sched.files import MEMBERS, POPULATION, POSTERIOR, result_folder
from bayes_sched.model.protocol import load_model_file
from bayes_sched.pooling.members import Candidate, check_candidates
from bayes_sched.pooling.pool import POPULATION_SETTINGS, Pool, pool
from bayes_sched.pooling.prior import PopulationPrior
from bayes_sched.pooling.summary import PoolSummary, pool_summary
from bayes_sched.posterior.fit import fit, load_same_fit
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.reports import pool as _  # noqa: F401, it registers the report
from bayes_sched.reports.document import Document, report
from bayes_sched.reports.write import write_report
from bayes_sched.trace.reader import Trace, read_trace


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    with shown_progress(call) as show:
        given, share = [one for one in options.members if one.traces], options.max_bad_share
        traces = {one.name: read_trace(one.traces, max_bad_share=share, progress=show) for one in given}
        fits = fits_of(options, call, traces, show)
        show("pooling", None)
        pooling = time.perf_counter()
        result = pooled(options, call, fits, traces, show)
        seconds = time.perf_counter() - pooling
        show("writing the tables" if options.no_report else "writing the report", None)
        found, document, paths = write(options, call, result, seconds)
    call.warn(found.warnings)
    print_result(document, options, paths, saved=("population", "members", "report"), start=start)
    call.warn(found.population.problems, of="not converged")
    return DONE if found.converged else NOT_CONVERGED


def fits_of(
    options: argparse.Namespace, call: Call, traces: Mapping[str, Trace], show: Show
) -> dict[str, FittedModel]:
    """Return the fit of each member; those of traces are made, or found made before, one after the other."""
    fits = {m.name: FittedModel.load(m.fit_file) for m in options.members if m.fit_file is not None}
    for name, trace in traces.items():
        if (existing := made_before(options, name, trace)) is not None:
            call.say(f"{name}: fitted before ({options.results_dir / name}), used as it is")
            fits[name] = existing
    missing = [name for name in traces if name not in fits]
    candidates = {name: Candidate.of_fit(one) for name, one in fits.items()}
    if missing:
        model = load_model_file(options.model).model
        of_trace = partial(Candidate.of_trace, model=model, noise=options.noise)
        candidates |= {name: of_trace(traces[name].sha256) for name in missing}
    check_candidates(candidates, accept_unconverged=options.accept_unconverged)
    for number, name in enumerate(missing, start=1):
        which = f"{name} (fit {number} of {len(missing)})"
        fits[name] = fit_alone(options, call, name, traces[name], prefixed(which, show))
    return {member.name: fits[member.name] for member in options.members}


def made_before(options: argparse.Namespace, name: str, trace: Trace) -> FittedModel | None:
    """Return the fit of a trace that was made before with the same options, if there is one."""
    file = options.results_dir / name / POSTERIOR
    found = load_same_fit(file, trace_sha256=trace.sha256, **fit_arguments(options))
    if found is None and file.is_file() and not options.overwrite:
        raise InputError(
            f"{file.parent} is a fit of another trace or with other options: give the folder itself to pool "
            f"that fit, --overwrite to fit {name} again, or another name for it, NAME=FILE"
        )
    return found


def fit_alone(options: argparse.Namespace, call: Call, name: str, trace: Trace, show: Show) -> FittedModel:
    """Fit a trace into a result of its own, as ``bayes-sched fit`` does."""
    changed = {"folder": options.results_dir / name, "overwrite": True, "overrides": None, "population": None}
    alone = argparse.Namespace(**{**vars(options), **changed})
    files = [source.path for source in trace.sources]
    result = fit_trace(alone, call, trace, show, command=fit_line(options, call, files))
    show("writing its report", None)
    write_fit(alone, call, result)
    call.say(f"{name}: {result.fit.convergence.text} Saved {alone.folder}")
    return result.fit


def fit_line(options: argparse.Namespace, call: Call, traces: list[str]) -> str:
    """Return the command that fits one trace with these options and default priors."""
    parser = Parser()
    add_fitting(parser)
    changed = {
        name: value for name in FITTING if (value := getattr(options, name)) != parser.get_default(name)
    }
    given = [text for name, value in changed.items() for text in (option_of(name), str(value))]
    is_script = call.words[0] == "python"
    arguments = (*([] if is_script else ["fit"]), *traces, *given)
    return Call(call.name, call.words, arguments).line(traces=traces)


def pooled(
    options: argparse.Namespace,
    call: Call,
    fits: Mapping[str, FittedModel],
    traces: Mapping[str, Trace],
    show: Show,
) -> Pool:
    """Pool the fits."""

    def fit_again(name: str, prior: PopulationPrior) -> FittedModel | None:
        """Fit a trace that the pool leaves too few draws of, under the pool's prior."""
        trace = traces.get(name)
        return None if trace is None else fit(trace, population=prior, **fit_arguments(options)).fit

    return pool(
        fits,
        servers=options.servers,
        name=options.folder.name,
        settings=replace(POPULATION_SETTINGS, **given(options, "draws", "chains", "seed", "sampler")),
        accept_unconverged=options.accept_unconverged,
        refit=fit_again,
        command=call.line(),
        progress=show,
    )


def write(
    options: argparse.Namespace, call: Call, result: Pool, seconds: float
) -> tuple[PoolSummary, Document, dict[str, str]]:
    """Write the folder of the result; return what the pool says, its report, and its files.

    A report that fails does not take the pool with it.
    """
    names = {"folder": "", "population": POPULATION, "members": MEMBERS, "summary": "summary.json"}
    if not options.no_report:
        names["report"] = "report.html"
    paths = {what: str(options.folder / name) for what, name in names.items()}
    failure: Exception | None = None
    with result_folder(options.folder, overwrite=options.overwrite, holds=POPULATION) as folder:
        result.save(folder)
        try:
            found = pool_summary(result, probability=options.probability, seconds=seconds)
            document = report(found)
            write_report(document, folder, with_page=not options.no_report, with_svg=options.svg)
        except Exception as error:
            failure = error
    if failure is not None:
        call.say(f"the pool is saved, {paths['population']}; its report is not")
        raise failure
    return found, document, paths
