"""The command ``fit_bayes.py --pool``: fit several traces, let the fits borrow strength from each other.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bayes_sched.cli import command
from bayes_sched.cli.arguments import (
    PoolMember,
    add_fit_options,
    check_limits,
    check_model,
    fit_arguments,
    fit_command,
    named_label,
    pool_members,
    pool_servers,
    settings_of,
)
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError

if TYPE_CHECKING or __package__:
    from scripts import fit_bayes
else:  # run as a script: its own folder is on the path, the repository's need not be
    import fit_bayes

if TYPE_CHECKING:
    from bayes_sched.pooling.pool import Pool
    from bayes_sched.pooling.prior import PopulationPrior
    from bayes_sched.pooling.summary import PoolSummary
    from bayes_sched.posterior.fitted import FittedModel
    from bayes_sched.reports.document import Document
    from bayes_sched.trace.reader import Trace

PROGRAM = "fit_bayes"
say = partial(command.say, PROGRAM)

_REFUSED = {
    "--gpu": "say with --server NAME=LABEL which server a trace is of",
    "--llm": "say with --server NAME=LABEL which server a trace is of",
    "--priors": "traces are pooled under the documented priors",
    "--prior-from": "traces are pooled under the documented priors, so that none counts twice",
}

EXAMPLES = """\
examples:
  python scripts/fit_bayes.py --pool results/h100 results/a6000 results/l40s
  python scripts/fit_bayes.py --pool a.jsonl 'b-*.jsonl.gz' results/h100 --name pool
  python scripts/fit_bayes.py --pool a=gpu1/steps.jsonl b=gpu2/steps.jsonl --server a=H100 --server b=H100
  python scripts/fit_bayes.py new.jsonl --prior-from results/pool

A trace is fitted as fit_bayes.py fits it, with the options below, into a result of its own (DIR/NAME); where
that stands already, made from the same trace with the same options, it is used. So a pool that is refused, or
interrupted, costs no fit. --draws, --chains, --seed and --sampler hold for the population too.

The pool is DIR/pool: report.html, population.nc (for --prior-from), members/NAME and members/unseen (a server
not yet seen), which are fits like others: for compare_gpus.py, sla.py, plan.py, compile_predictor.py.

exit status: 0 done; 2 bad input or usage; 3 the pool has not converged (it is saved, marked as such);
130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = command.Parser(
        prog=f"{PROGRAM} --pool",
        description="Pool several fits: servers borrow strength from each other, and the next one from all.",
        epilog=EXAMPLES,
    )
    add = made.add_argument
    what = "trace (file, 'PATTERN', NAME=FILE) or result of a fit (folder, posterior.nc); two or more"
    add("members", nargs="+", metavar="TRACE|RESULT", help=what)
    add("--pool", action="store_true", help="this command")
    add("--name", default="pool", help=f"name of the result {DEFAULT}")
    add(
        "--server",
        type=named_label,
        action="append",
        default=[],
        metavar="NAME=LABEL",
        help="server that a trace is of (default: its GPU and LLM as labelled, else a server of its own)",
    )
    add("--accept-unconverged", action="store_true", help="pool fits even if they have not converged")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=DEFAULT)
    add("--overwrite", action="store_true", help="replace an existing pool, and fits of other options")
    add("--no-report", action="store_true", help="write no pages and figures")
    add("--json", action="store_true", help="print one JSON document in place of the tables")
    add_fit_options(made)
    return made


@dataclass(frozen=True)
class Job:
    """What is to be pooled, checked as far as that goes without reading anything."""

    options: argparse.Namespace
    members: tuple[PoolMember, ...]
    servers: Mapping[str, str]
    folder: Path
    command: str


def prepare(arguments: Sequence[str]) -> Job:
    """Check the arguments, cheapest first."""
    for option in (text.partition("=")[0] for text in arguments):
        if option in _REFUSED:
            raise InputError(f"{option} with --pool: {_REFUSED[option]}")
    options = parser().parse_intermixed_args(arguments)
    check_limits(options)
    from bayes_sched.files import POPULATION, check_result

    members = pool_members(options.members)
    servers = pool_servers(options.server, members)
    folder = check_result(options.results_dir, options.name, overwrite=options.overwrite, holds=POPULATION)
    for member in members:
        if member.name == folder.name and member.traces:
            raise InputError(f"{member.name} is the name of a trace: give the pool another --name")
        if member.traces:
            check_result(options.results_dir, member.name, overwrite=True)
    check_model(options.model)
    line = command.shown_command("scripts/fit_bayes.py", arguments, ())
    return Job(options, members, servers, folder, line)


def run(job: Job) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    options = job.options
    with command.noticed_interrupts() as check_interrupts, command.shown_progress(PROGRAM) as show:
        traces = traces_of(job, show)
        fits = fits_of(job, traces, show)
        check_interrupts()
        pooling = time.perf_counter()
        pool = pooled(job, fits, traces, show)
        seconds = time.perf_counter() - pooling
        check_interrupts()
        show("writing the tables" if options.no_report else "writing the report", None)
        found, document, paths = write(job, pool, seconds)
    for warning in found.warnings:
        say(f"warning: {warning}")
    if options.json:
        total = round(time.perf_counter() - start, 1)
        print(json.dumps({**document.numbers, "paths": paths, "seconds": total}, indent=2, allow_nan=False))
    else:
        from bayes_sched.reports.terminal import terminal

        saved = "\n".join(
            f"Saved {paths[key]}" for key in ("population", "members", "report") if key in paths
        )
        print(f"{terminal(document)}\n\n{saved}\nTook {time.perf_counter() - start:.1f} s")
    for problem in found.population.problems:
        say(f"not converged: {problem}")
    return command.DONE if found.converged else command.NOT_CONVERGED


def traces_of(job: Job, show: command.Progress) -> dict[str, Trace]:
    """Return the traces of those members that are given by them."""
    show("reading the traces", None)
    from bayes_sched.trace.reader import read_trace

    share = job.options.max_bad_share
    return {m.name: read_trace(m.traces, max_bad_share=share) for m in job.members if m.traces}


def fits_of(job: Job, traces: Mapping[str, Trace], show: command.Progress) -> dict[str, FittedModel]:
    """Return the fit of each member; those of traces are made, or found made before, one after the other."""
    from bayes_sched.model.protocol import load_model_file
    from bayes_sched.pooling.members import Candidate, check_candidates
    from bayes_sched.posterior.fitted import FittedModel

    options = job.options
    fits = {m.name: FittedModel.load(m.fit_file) for m in job.members if m.fit_file is not None}
    for name, trace in traces.items():
        if (existing := _existing(job, name, trace)) is not None:
            say(f"{name}: fitted before ({options.results_dir / name}), used as it is")
            fits[name] = existing
    wanted = [name for name in traces if name not in fits]
    candidates = {name: Candidate.of_fit(fit) for name, fit in fits.items()}
    if wanted:
        model = load_model_file(options.model).model
        of_trace = partial(Candidate.of_trace, model=model, noise=options.noise)
        candidates |= {name: of_trace(traces[name].sha256) for name in wanted}
    check_candidates(candidates, accept_unconverged=options.accept_unconverged)
    for number, name in enumerate(wanted, start=1):
        fits[name] = _fit(job, name, traces[name], _saying(f"{name} (fit {number} of {len(wanted)})", show))
    return {member.name: fits[member.name] for member in job.members}


def _saying(which: str, show: command.Progress) -> command.Progress:
    return lambda stage, share: show(f"{which}: {stage}", share)


def _existing(job: Job, name: str, trace: Trace) -> FittedModel | None:
    """Return the fit of a trace that was made before with the same options, if there is one."""
    from bayes_sched.files import POSTERIOR
    from bayes_sched.posterior.fit import load_same_fit

    file = job.options.results_dir / name / POSTERIOR
    fit = load_same_fit(file, trace_sha256=trace.sha256, **fit_arguments(job.options))
    if fit is None and file.is_file() and not job.options.overwrite:
        raise InputError(
            f"{file.parent} is a fit of another trace or with other options: give the folder itself to pool "
            f"that fit, --overwrite to fit {name} again, or another name for it, NAME=FILE"
        )
    return fit


def _fit(job: Job, name: str, trace: Trace, show: command.Progress) -> FittedModel:
    """Fit a trace into a result of its own, as fit_bayes.py does."""
    options = argparse.Namespace(
        **{**vars(job.options), "overwrite": True, "gpu": None, "llm": None, "priors": None}
    )
    line = fit_command(options, [source.path for source in trace.sources])
    alone = fit_bayes.Job(options, options.results_dir / name, line)
    result = fit_bayes.fit_trace(alone, trace, show)
    show("writing its report", None)
    fit_bayes.write(alone, result)
    say(f"{name}: {result.fit.convergence.text} Saved {alone.folder}")
    return result.fit


def pooled(
    job: Job, fits: Mapping[str, FittedModel], traces: Mapping[str, Trace], show: command.Progress
) -> Pool:
    options = job.options

    def fit_again(name: str, prior: PopulationPrior) -> FittedModel | None:
        """Fit a trace that the pool leaves too few draws of, under the pool's prior."""
        from bayes_sched.posterior.fit import fit

        trace = traces.get(name)
        return None if trace is None else fit(trace, population=prior, **fit_arguments(options)).fit

    show("loading the libraries", None)
    from bayes_sched.pooling.pool import POPULATION_SETTINGS, pool

    logging.getLogger("pymc").setLevel(logging.WARNING)
    own = settings_of(options)
    settings = replace(
        POPULATION_SETTINGS, draws=own.draws, chains=own.chains, seed=own.seed, sampler=own.sampler
    )
    return pool(
        fits,
        servers=job.servers,
        name=job.folder.name,
        settings=settings,
        accept_unconverged=options.accept_unconverged,
        refit=fit_again,
        command=job.command,
        progress=show,
    )


def write(job: Job, pool: Pool, seconds: float) -> tuple[PoolSummary, Document, dict[str, str]]:
    """Write the folder of the result; return what the pool says, its report, and its files by what they are.

    A report that fails does not take the pool with it.
    """
    from bayes_sched.files import MEMBERS, POPULATION, result_folder
    from bayes_sched.pooling.summary import pool_summary
    from bayes_sched.reports import pool as _  # noqa: F401, it registers the report
    from bayes_sched.reports.document import report
    from bayes_sched.reports.write import write_report

    options = job.options
    paths = {"folder": job.folder, "population": job.folder / POPULATION, "members": job.folder / MEMBERS}
    failure: Exception | None = None
    with result_folder(job.folder, overwrite=options.overwrite, holds=POPULATION) as folder:
        pool.save(folder)
        try:
            found = pool_summary(pool, probability=options.probability, seconds=seconds)
            document = report(found)
            write_report(document, folder, with_page=not options.no_report)
        except Exception as error:
            failure = error
    if failure is not None:
        say(f"the pool is saved, {paths['population']}; its report is not")
        raise failure
    paths["summary"] = job.folder / "summary.json"
    if not options.no_report:
        paths["report"] = job.folder / "report.html"
    return found, document, {key: str(path) for key, path in paths.items()}


def main(arguments: Sequence[str]) -> int:
    return command.exit_status(PROGRAM, lambda: run(prepare(arguments)))
