"""Fit a latency model to the step trace of a vLLM scheduler.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sched.cli import command
from bayes_sched.cli.arguments import add_fit_options, check_limits, check_model, settings_of
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    from bayes_sched.pooling.prior import PopulationPrior
    from bayes_sched.posterior.fit import FitResult
    from bayes_sched.reports.fit import Summary
    from bayes_sched.trace.reader import Trace

PROGRAM = "fit_bayes"
say = partial(command.say, PROGRAM)

EXAMPLES = """\
examples:
  python scripts/fit_bayes.py trace.jsonl
  python scripts/fit_bayes.py 'logs/*.jsonl.gz' --name h100 --gpu H100 --llm llama-3.1-8b
  zstd -dc trace.jsonl.zst | python scripts/fit_bayes.py - --name tonight --overwrite
  python scripts/fit_bayes.py trace.jsonl --max-latency-ms 800 --priors examples/priors.toml
  python scripts/fit_bayes.py trace.jsonl --model my_model.py --json --no-report
  python scripts/fit_bayes.py --pool a.jsonl b.jsonl results/h100    # several servers help each other
  python scripts/fit_bayes.py new.jsonl --prior-from results/pool    # the next server, from fifty steps

exit status: 0 done; 2 bad input or usage; 3 the chains have not converged (the fit is saved, marked as such);
130 interrupted. A run that fails leaves an existing result as it was.
"""


def parser() -> argparse.ArgumentParser:
    """The options; defaults that the library has too are held to it by a test."""
    made = command.Parser(
        prog=PROGRAM,
        description="Fit a latency model to the step trace of a vLLM scheduler: posterior and report.",
        epilog=EXAMPLES,
    )
    add = made.add_argument
    add("traces", nargs="+", metavar="TRACE", help="file (.gz, .zst, plain), 'PATTERN', or - for stdin")
    add("--name", help="name of the result (default: the trace's)")
    add("--gpu", metavar="LABEL", help="GPU, for reports (default: what the trace's side-car says)")
    add("--llm", metavar="LABEL", help="LLM, for reports (default: what the trace's side-car says)")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=DEFAULT)
    add("--overwrite", action="store_true", help="replace an existing result, its whole folder")
    add("--no-report", action="store_true", help="write posterior.nc alone")
    add("--json", action="store_true", help="print one JSON document in place of the tables")
    add_fit_options(made)
    add = made.add_argument_group("prior").add_argument
    add("--priors", type=Path, metavar="FILE.toml", help="prior overrides, as in examples/priors.toml")
    add("--prior-from", type=Path, metavar="POOL", help="result of --pool: what its servers tell of this one")
    add("--server", metavar="LABEL", help="server of that pool that the trace is of (default: by its labels)")
    add("--accept-unconverged", action="store_true", help="use a pool even if it has not converged")
    add = made.add_argument_group("several servers").add_argument
    add("--pool", action="store_true", help="let several fits borrow strength: see --pool --help")
    return made


@dataclass(frozen=True)
class Job:
    """What is to be done, checked as far as that goes without reading the trace."""

    options: argparse.Namespace
    folder: Path
    command: str
    priors: dict[str, Any] | None = None
    pool: Path | None = None


def prepare(arguments: Sequence[str]) -> Job:
    """Check the arguments, cheapest first."""
    options = parser().parse_intermixed_args(arguments)
    check_limits(options)
    if options.prior_from is None and (options.server is not None or options.accept_unconverged):
        given = "--accept-unconverged" if options.server is None else "--server"
        raise InputError(f"{given} goes with --prior-from or --pool")
    if options.prior_from is not None and options.priors is not None:
        raise InputError("--priors with --prior-from: a fit has one prior, give one of them")
    from bayes_sched.files import check_result, population_file
    from bayes_sched.trace.opening import expand_paths, result_name

    files, _ = expand_paths(options.traces)
    name = result_name(files) if options.name is None else options.name
    folder = check_result(options.results_dir, name, overwrite=options.overwrite)
    priors = None if options.priors is None else _read_priors(options.priors)
    pool = None if options.prior_from is None else population_file(options.prior_from)
    check_model(options.model)
    return Job(options, folder, command_line(arguments, options.traces), priors, pool)


def _read_priors(path: Path) -> dict[str, Any]:
    """Read the overrides and check their form; which names there are only the model knows."""
    from bayes_sched.model.priors import Prior, Priors, read_prior_overrides

    table = read_prior_overrides(path)
    try:
        Priors(Prior(name, 1.0, 2.0) for name in table).override(table)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return table


def command_line(arguments: Sequence[str], traces: Sequence[str]) -> str:
    return command.shown_command("scripts/fit_bayes.py", arguments, traces)


def run(job: Job) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    options = job.options
    with command.noticed_interrupts() as check_interrupts, command.shown_progress(PROGRAM) as show:
        trace = read(options.traces, options, show)
        result = fit_trace(job, trace, show)
        check_interrupts()
        show("summing up" if options.no_report else "writing the report", None)
        found, paths = write(job, result)
    for note in found.notes:
        say(f"warning: {note}")
    seconds = time.perf_counter() - start
    if options.json:
        print(json.dumps({**found.to_dict(), "paths": paths, "seconds": round(seconds, 1)}, indent=2))
    else:
        print(as_text(result, found, paths, seconds))
    for problem in found.problems:
        say(f"not converged: {problem}")
    return command.DONE if found.converged else command.NOT_CONVERGED


def read(traces: Sequence[str], options: argparse.Namespace, show: command.Progress) -> Trace:
    show("reading the trace", None)
    from bayes_sched.trace.reader import read_trace

    return read_trace(traces, max_bad_share=options.max_bad_share)


def fit_trace(job: Job, trace: Trace, show: command.Progress) -> FitResult:
    options = job.options
    show("loading the libraries", None)
    import logging

    from bayes_sched.posterior.fit import fit

    logging.getLogger("pymc").setLevel(logging.WARNING)
    labels = {key: getattr(options, key) for key in ("gpu", "llm") if getattr(options, key)}
    noise, population = options.noise, None
    if job.pool is not None:
        noise, population = pool_prior(job, {**trace.labels, **labels})
    return fit(
        trace,
        model=options.model,
        noise=noise,
        priors=job.priors,
        min_latency_ms=options.min_latency_ms,
        max_latency_ms=options.max_latency_ms,
        settings=settings_of(options),
        max_rows=options.max_rows,
        name=job.folder.name,
        labels=labels,
        command=job.command,
        population=population,
        progress=show,
    )


def pool_prior(job: Job, labels: Mapping[str, str]) -> tuple[str, PopulationPrior]:
    """Return the pool's noise option, and what it tells of this server; say whose prior that is."""
    assert job.pool is not None
    from bayes_sched.model.protocol import load_model_file
    from bayes_sched.pooling.pool import choose_prior
    from bayes_sched.pooling.population import Population

    options = job.options
    population = Population.load(job.pool)
    prior = choose_prior(
        population,
        model=load_model_file(options.model).model.name,
        noise=options.noise,
        labels=labels,
        server=options.server,
        accept_unconverged=options.accept_unconverged,
    )
    say(f"prior: {prior.text}")
    return population.noise, prior


def write(job: Job, result: FitResult) -> tuple[Summary, dict[str, str]]:
    """Write the folder of the result; return its numbers and its files by what they are.

    A report that fails does not take the fit with it: the sampling may have taken minutes.
    """
    from bayes_sched.files import POSTERIOR, result_folder

    options = job.options
    paths = {"folder": str(job.folder), "posterior": str(job.folder / POSTERIOR)}
    failure: Exception | None = None
    with result_folder(job.folder, overwrite=options.overwrite) as folder:
        result.fit.save(folder / POSTERIOR)
        try:
            found = report(result, None if options.no_report else folder, options.probability)
        except Exception as error:
            failure = error
    if failure is not None:
        say(f"the fit is saved, {paths['posterior']}; its report is not")
        if result.fit.metadata.model.shipped or isinstance(failure, InputError):
            raise failure
        text = f"{type(failure).__name__}: {failure}"
        raise InputError(f"{options.model}: the report cannot be made with this model ({text})") from failure
    if not options.no_report:
        paths |= {"report": str(job.folder / "report.html"), "summary": str(job.folder / "summary.json")}
    return found, paths


def report(result: FitResult, folder: Path | None, probability: float) -> Summary:
    from bayes_sched.reports.fit import summary, write_report

    if folder is not None:
        write_report(result.fit, result.steps, folder, probability=probability)
    return summary(result.fit, result.steps, probability=probability)


def as_text(result: FitResult, found: Summary, paths: dict[str, str], seconds: float) -> str:
    from bayes_sched.reports.terminal import bad_lines_text, cleaning_text, paragraph_text, parameter_text

    stages = ", ".join(f"{name} {value:.1f} s" for name, value in found.metadata.timings_s.items())
    files = [f"Saved {paths[name]}" for name in ("posterior", "report") if name in paths]
    parts = (
        paragraph_text(found),
        cleaning_text(result.cleaned),
        bad_lines_text(result.trace.bad_lines) if result.trace else "",
        parameter_text(found.parameters, probability=found.probability),
        "\n".join([*files, f"Took {seconds:.1f} s ({stages})"]),
    )
    return "\n\n".join(filter(None, parts))


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if "--pool" in given:
        beside = import_module("scripts.pool_fits" if __package__ else "pool_fits")
        return int(beside.main(given))
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
