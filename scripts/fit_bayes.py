"""Fit a latency model to the step trace of a vLLM scheduler.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sched import command
from bayes_sched.command import DEFAULT
from bayes_sched.errors import InputError
from bayes_sched.settings import SAMPLERS, SamplerSettings

if TYPE_CHECKING:
    from bayes_sched.fitting import FitResult
    from bayes_sched.report import Summary

PROGRAM = "fit_bayes"
SAMPLING = ("draws", "tune", "chains", "seed", "sampler")
say = partial(command.say, PROGRAM)

EXAMPLES = """\
examples:
  python scripts/fit_bayes.py trace.jsonl
  python scripts/fit_bayes.py 'logs/*.jsonl.gz' --name h100 --gpu H100 --llm llama-3.1-8b
  zstd -dc trace.jsonl.zst | python scripts/fit_bayes.py - --name tonight --overwrite
  python scripts/fit_bayes.py trace.jsonl --max-latency-ms 800 --priors examples/priors.toml
  python scripts/fit_bayes.py trace.jsonl --model my_model.py --json --no-report

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
    _add_model_options(made)
    _add_step_options(made)
    _add_sampling_options(made)
    return made


def _add_model_options(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("model").add_argument
    add("--model", default="saturation", help=f"name of a model, or a .py file, which is run {DEFAULT}")
    add("--noise", metavar="OPTION", help="noise option of the model, such as constant (default: its first)")
    add("--priors", type=Path, metavar="FILE.toml", help="prior overrides, as in examples/priors.toml")
    add("--probability", type=command.probability, default=0.9, metavar="P", help=f"of intervals {DEFAULT}")


def _add_step_options(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("steps").add_argument
    ms, rows = command.milliseconds, command.at_least(20)
    add("--min-latency-ms", type=ms, default=1.0, metavar="MS", help=f"remove shorter steps {DEFAULT}")
    add("--max-latency-ms", type=ms, default=300.0, metavar="MS", help=f"remove longer steps {DEFAULT}")
    add("--max-bad-share", type=command.share, default=0.05, metavar="X", help=f"of unusable lines {DEFAULT}")
    add("--max-rows", type=rows, default=20_000, metavar="N", help=f"use at most so many steps {DEFAULT}")


def _add_sampling_options(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("sampling").add_argument
    one, zero = command.at_least(1), command.at_least(0)
    add("--draws", type=one, metavar="N", help=f"draws kept of each chain {DEFAULT}")
    add("--tune", type=one, metavar="N", help=f"tuning draws of each chain, for each part {DEFAULT}")
    add("--chains", type=one, metavar="N", help=DEFAULT)
    add("--seed", type=zero, metavar="N", help=f"the same seed gives the same numbers {DEFAULT}")
    add("--sampler", choices=SAMPLERS, help=f"whose NUTS {DEFAULT}")
    made.set_defaults(**{name: getattr(SamplerSettings(), name) for name in SAMPLING})


@dataclass(frozen=True)
class Job:
    """What is to be done, checked as far as that goes without reading the trace."""

    options: argparse.Namespace
    folder: Path
    priors: dict[str, Any] | None
    command: str


def prepare(arguments: Sequence[str]) -> Job:
    """Check the arguments, cheapest first."""
    options = parser().parse_intermixed_args(arguments)
    if options.min_latency_ms >= options.max_latency_ms:
        raise InputError(
            f"--min-latency-ms {options.min_latency_ms:g} is not below --max-latency-ms "
            f"{options.max_latency_ms:g}: no step could stay"
        )
    from bayes_sched.results import check_result
    from bayes_sched.trace.names import result_name
    from bayes_sched.trace.opening import expand_paths

    files, _ = expand_paths(options.traces)
    name = result_name(files) if options.name is None else options.name
    folder = check_result(options.results_dir, name, overwrite=options.overwrite)
    priors = None if options.priors is None else _read_priors(options.priors)
    _check_model(options.model)
    return Job(options, folder, priors, command_line(arguments, options.traces))


def _read_priors(path: Path) -> dict[str, Any]:
    """Read the overrides and check their form; which names there are only the model knows."""
    from bayes_sched.priors import Prior, Priors, read_prior_overrides

    table = read_prior_overrides(path)
    try:
        Priors(Prior(name, 1.0, 2.0) for name in table).override(table)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return table


def _check_model(model: str) -> None:
    from bayes_sched.model import shipped_models

    if model not in shipped_models() and not Path(model).is_file():
        names = ", ".join(shipped_models())
        raise InputError(f"--model {model}: no such model; give one of {names} or the path of a .py file")


def command_line(arguments: Sequence[str], traces: Sequence[str]) -> str:
    return command.shown_command("scripts/fit_bayes.py", arguments, traces)


def run(job: Job) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    options = job.options
    with command.noticed_interrupts() as check_interrupts, command.shown_progress(PROGRAM) as show:
        result = fit_trace(job, show)
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


def fit_trace(job: Job, show: command.Progress) -> FitResult:
    options = job.options
    show("reading the trace", None)
    from bayes_sched.trace import read_trace

    trace = read_trace(options.traces, max_bad_share=options.max_bad_share)
    show("loading the libraries", None)
    import logging

    from bayes_sched.fitting import fit

    logging.getLogger("pymc").setLevel(logging.WARNING)
    return fit(
        trace,
        model=options.model,
        noise=options.noise,
        priors=job.priors,
        min_latency_ms=options.min_latency_ms,
        max_latency_ms=options.max_latency_ms,
        settings=SamplerSettings(**{name: getattr(options, name) for name in SAMPLING}),
        max_rows=options.max_rows,
        name=job.folder.name,
        labels={key: getattr(options, key) for key in ("gpu", "llm") if getattr(options, key)},
        command=job.command,
        progress=show,
    )


def write(job: Job, result: FitResult) -> tuple[Summary, dict[str, str]]:
    """Write the folder of the result; return its numbers and its files by what they are.

    A report that fails does not take the fit with it: the sampling may have taken minutes.
    """
    from bayes_sched.results import POSTERIOR, result_folder

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
    from bayes_sched.report import summary, write_report

    if folder is not None:
        write_report(result.fit, result.steps, folder, probability=probability)
    return summary(result.fit, result.steps, probability=probability)


def as_text(result: FitResult, found: Summary, paths: dict[str, str], seconds: float) -> str:
    from bayes_sched.terminal import bad_lines_text, cleaning_text, paragraph_text, parameter_text

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
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
