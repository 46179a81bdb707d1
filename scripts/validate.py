"""How well do models predict steps that they have not seen? Ours beside a baseline, a line and LightGBM.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    from bayes_sched.studies.prediction import Server, Validation

PROGRAM = "validate"
SPLITS = ("random", "blocks", "time", "rows-1000", "rows-200", "rows-50", "budget", "decode-only")
say = partial(command.say, PROGRAM)

EPILOG = f"""\
splits: {", ".join(SPLITS)}
models: line, baseline, baseline-huber, lightgbm (B and S), lightgbm-context (all that is known before a
  step), every model of the project, such as saturation, or with a noise option saturation:constant, or a
  .py file, which is run

examples:
  python scripts/validate.py 'traces/h100_*.jsonl.gz'
  python scripts/validate.py trace.jsonl --models line,lightgbm,saturation --splits random,rows-200
  python scripts/validate.py trace.jsonl --json --no-report | jq .text

An interrupted study goes on where it stopped when it is called again with --resume.

exit status: 0 done; 2 bad input or usage; 130 interrupted. A run that fails leaves an existing result as it
was.
"""


def parser() -> argparse.ArgumentParser:
    """The options; their defaults are those of the library, which a test holds them to."""
    made = command.Parser(
        prog=PROGRAM, description=__doc__.partition("\n")[0] if __doc__ else None, epilog=EPILOG
    )
    one, zero, ms = command.at_least(1), command.at_least(0), command.milliseconds
    add = made.add_argument
    add("traces", nargs="+", metavar="TRACE", help="file (.gz, .zst, plain), 'PATTERN', or - for stdin")
    add("--name", default="validation", help=f"name of the result {DEFAULT}")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=DEFAULT)
    add("--overwrite", action="store_true", help="replace an existing validation, its whole folder")
    add("--resume", action="store_true", help="go on with an interrupted run of this name")
    add("--keep", action="store_true", help="keep the forecasts for --resume, to add models or splits later")
    add("--no-report", action="store_true", help="write numbers and tables alone")
    add("--json", action="store_true", help="print one JSON document in place of the tables")
    add = made.add_argument_group("what is compared").add_argument
    add("--models", type=command.names, metavar="A,B", help="contenders (default: all, see below)")
    add(
        "--splits",
        type=command.names,
        default=SPLITS,
        metavar="A,B",
        help="ways of holding steps out (default: all)",
    )
    add("--repeats", type=one, default=1, metavar="N", help=f"of the random splits {DEFAULT}")
    add("--seed", type=zero, default=0, metavar="N", help=f"of everything random {DEFAULT}")
    add(
        "--max-train",
        type=command.at_least(20),
        default=4000,
        metavar="N",
        help=f"steps learned from {DEFAULT}",
    )
    add(
        "--rare-first",
        action="store_true",
        help="choose the steps learned from as a fit does, the rare sizes first (default: at random)",
    )
    add("--max-test", type=command.at_least(20), default=2000, metavar="N", help=f"steps predicted {DEFAULT}")
    add = made.add_argument_group("traces").add_argument
    add(
        "--each", action="store_true", help="take each trace alone (default: traces of one server are pooled)"
    )
    add(
        "--server-mark",
        default="_chunk",
        metavar="TEXT",
        help=f"without labels, what stands before it in a trace's name is its server {DEFAULT}",
    )
    add("--min-latency-ms", type=ms, default=1.0, metavar="MS", help=f"remove shorter steps {DEFAULT}")
    add("--max-latency-ms", type=ms, default=300.0, metavar="MS", help=f"remove longer steps {DEFAULT}")
    add = made.add_argument_group("sampling of the project's models").add_argument
    add("--draws", type=one, default=500, metavar="N", help=f"kept of each chain {DEFAULT}")
    add(
        "--tune",
        type=one,
        default=200,
        metavar="N",
        help=f"tuning draws of each chain, for each part {DEFAULT}",
    )
    add("--chains", type=command.at_least(2), default=4, metavar="N", help=DEFAULT)
    return made


@dataclass(frozen=True)
class Job:
    """What is to be done, checked as far as that goes without reading a trace."""

    options: argparse.Namespace
    files: tuple[str, ...]
    folder: Path
    unfinished: Path
    command: str


def prepare(arguments: Sequence[str]) -> Job:
    """Check the arguments, cheapest first."""
    options = parser().parse_intermixed_args(arguments)
    for number, name in enumerate(options.splits):
        if name not in SPLITS:
            raise InputError(f"--splits {name}: no such split; give some of {', '.join(SPLITS)}")
        if name in options.splits[:number]:
            raise InputError(f"--splits {name}: given twice")
    if options.min_latency_ms >= options.max_latency_ms:
        raise InputError(
            f"--min-latency-ms {options.min_latency_ms:g} is not below "
            f"--max-latency-ms {options.max_latency_ms:g}"
        )
    from bayes_sched.files import VALIDATION, check_result
    from bayes_sched.studies.competitors import check_names
    from bayes_sched.trace.opening import expand_paths

    check_names(options.models or ())
    files, warnings = expand_paths(options.traces)
    for warning in warnings:
        say(f"warning: {warning}")
    # A resumed run may replace the result: that is how models are added to a validation that was kept.
    folder = check_result(
        options.results_dir, options.name, overwrite=options.overwrite or options.resume, holds=VALIDATION
    )
    unfinished = folder.with_name(f".{folder.name}.unfinished.tmp")
    check_unfinished(unfinished, options)
    line = command.shown_study(f"scripts/{PROGRAM}.py", arguments)
    return Job(options, tuple(files), folder, unfinished, line)


def check_unfinished(unfinished: Path, options: argparse.Namespace) -> None:
    """See that forecasts of another run are neither mixed in nor lost without a word."""
    if options.resume and options.overwrite:
        raise InputError("--resume and --overwrite contradict each other")
    if options.resume and not unfinished.is_dir():
        raise InputError(f"--resume: there are no forecasts of {options.name} ({unfinished}) to go on with")
    if unfinished.exists() and not options.resume and not options.overwrite:
        raise InputError(
            f"{unfinished} holds forecasts of a run that was interrupted or kept: give --resume to go on, "
            "--overwrite to start anew, or another --name"
        )


def run(job: Job) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    options = job.options
    if options.overwrite:
        shutil.rmtree(job.unfinished, ignore_errors=True)
    with command.noticed_interrupts() as check_interrupts, command.shown_progress(PROGRAM) as show:
        found = study(job, show, check_interrupts)
        check_interrupts()
        show("writing the tables" if options.no_report else "writing the report", None)
        paths = write(job, found)
    if not options.keep:
        shutil.rmtree(job.unfinished, ignore_errors=True)
    seconds = time.perf_counter() - start
    if options.json:
        numbers = {**found.to_dict(), "command": job.command, "paths": paths, "seconds": round(seconds, 1)}
        print(json.dumps(numbers, indent=2, allow_nan=False))
    else:
        from bayes_sched.reports.validation import validation_text

        saved = f"Saved {paths.get('report', paths['folder'])}\nTook {seconds:.1f} s"
        print(f"{validation_text(found)}\n\n{saved}")
    return command.DONE


def study(job: Job, show: command.Progress, check_interrupts: Callable[[], None]) -> Validation:
    """Read the traces, fit and score."""
    options = job.options
    show("reading", None)
    found_servers = servers(job)
    show("loading the libraries", None)
    import logging

    from bayes_sched.sampling.nuts import SamplerSettings
    from bayes_sched.studies.competitors import contenders_by_name
    from bayes_sched.studies.forecasts import Kept
    from bayes_sched.studies.prediction import StudySettings, validate

    logging.getLogger("pymc").setLevel(logging.WARNING)
    chosen, missing = contenders_by_name(
        options.models,
        settings=SamplerSettings(draws=options.draws, tune=options.tune, chains=options.chains),
    )
    for sentence in missing:
        say(sentence)

    def progress(stage: str, share: float | None) -> None:
        check_interrupts()
        show(stage, share)

    return validate(
        found_servers,
        contenders=chosen,
        settings=StudySettings(
            splits=options.splits,
            repeats=options.repeats,
            seed=options.seed,
            max_train=options.max_train,
            max_test=options.max_test,
            rare_first=options.rare_first,
        ),
        kept=Kept(job.unfinished),
        notes=missing,
        progress=progress,
    )


def servers(job: Job) -> tuple[Server, ...]:
    """Read each trace and group them by the servers that wrote them."""
    from bayes_sched.studies.prediction import servers_of
    from bayes_sched.trace.reader import read_trace

    options = job.options
    return servers_of(
        [read_trace(file) for file in job.files],
        pooled=not options.each,
        mark=options.server_mark,
        min_latency_ms=options.min_latency_ms,
        max_latency_ms=options.max_latency_ms,
    )


def write(job: Job, found: Validation) -> dict[str, str]:
    """Write the folder of the result; return its files by what they are."""
    from bayes_sched.files import VALIDATION, result_folder
    from bayes_sched.reports.validation import write_validation

    options = job.options
    overwrite = options.overwrite or options.resume
    with result_folder(job.folder, overwrite=overwrite, holds=VALIDATION) as folder:
        write_validation(found, folder, command=job.command, with_report=not options.no_report)
    paths = {"folder": str(job.folder), "scores": str(job.folder / VALIDATION)}
    return paths if options.no_report else paths | {"report": str(job.folder / "report.html")}


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
