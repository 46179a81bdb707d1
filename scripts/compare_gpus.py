"""Compare servers by their fits: which is faster, by how much, how sure that is, and what it costs.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    from bayes_sched.comparison.compare import Comparison
    from bayes_sched.reports.document import Document

PROGRAM = "compare_gpus"
say = partial(command.say, PROGRAM)
_MAX_NAME = 100

EXAMPLES = """\
examples:
  python scripts/compare_gpus.py results/h100 results/a6000
  python scripts/compare_gpus.py results/h100 results/a6000 --price h100=2.50 --price a6000=0.90 --slo-ms 50
  python scripts/compare_gpus.py results/a results/b results/c --rope 10% --json | jq .shares

exit status: 0 done; 2 bad input or usage; 3 a fit has not converged (the comparison is made, marked as such);
130 interrupted. A run that fails leaves an existing result as it was.
"""


def price(text: str) -> tuple[str, float]:
    """Read LABEL=PRICE, with or without /h."""
    label, sign, number = text.rpartition("=")
    if not sign or not label:
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=PRICE, such as h100=2.50")
    try:
        value = float(number.removesuffix("/h"))
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{number!r} of {text!r} is no positive price an hour, such as 2.50")
    return label, value


def share_or_percent(text: str) -> float:
    """Read 5% or 0.05."""
    try:
        value = float(text.removesuffix("%")) * (0.01 if text.endswith("%") else 1.0)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to below 1, such as 5% or 0.05")
    return value


def parser() -> argparse.ArgumentParser:
    """The options; their defaults are those of the library, which a test holds them to."""
    made = command.Parser(
        prog=PROGRAM,
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog=EXAMPLES,
    )
    add = made.add_argument
    add(
        "fits",
        nargs="+",
        type=Path,
        metavar="RESULT",
        help="two or more folders of fits, or their posterior.nc",
    )
    add("--model", metavar="FILE", help="the model's .py file, where it is not the project's own; it is run")
    add("--name", help="name of the result (default: compare-A-B)")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=DEFAULT)
    add("--overwrite", action="store_true", help="replace an existing comparison, its whole folder")
    add("--no-report", action="store_true", help="write numbers and tables alone")
    add("--json", action="store_true", help="print one JSON document in place of the tables")
    add = made.add_argument_group("verdicts").add_argument
    add(
        "--rope",
        type=share_or_percent,
        default=0.05,
        metavar="X",
        help=f"ratios within it of 1 count as equal, such as 5%% {DEFAULT}",
    )
    add("--probability", type=command.probability, default=0.95, metavar="P", help=f"of intervals {DEFAULT}")
    add(
        "--draws",
        type=command.at_least(100),
        default=4000,
        metavar="N",
        help=f"of each fit, at most {DEFAULT}",
    )
    add("--seed", type=command.at_least(0), default=0, metavar="N", help=f"of the random pairing {DEFAULT}")
    add = made.add_argument_group("throughput and cost").add_argument
    add(
        "--price",
        type=price,
        action="append",
        default=[],
        metavar="LABEL=PRICE",
        help="an hour's price of a server, by its label or the name of its result; all in one currency",
    )
    add("--slo-ms", type=command.milliseconds, metavar="MS", help="latency limit of a step, for throughput")
    add(
        "--slo-quantile",
        type=command.probability,
        default=0.95,
        metavar="Q",
        help=f"share of steps within the limit {DEFAULT}",
    )
    return made


@dataclass(frozen=True)
class Job:
    """What is to be compared, checked as far as that goes without reading a fit."""

    options: argparse.Namespace
    files: tuple[Path, ...]
    prices: dict[str, float]
    folder: Path
    command: str


def prepare(arguments: Sequence[str]) -> Job:
    """Check the arguments, cheapest first."""
    options = parser().parse_intermixed_args(arguments)
    from bayes_sched.files import COMPARISON, check_result, fit_file

    files = [fit_file(path) for path in options.fits]
    if len(files) < 2:
        raise InputError(f"{options.fits[0]}: one fit; a comparison takes two or more")
    resolved = [file.resolve() for file in files]
    for number, file in enumerate(resolved):
        if file in resolved[:number]:
            raise InputError(f"{options.fits[number]}: the same fit twice; a comparison takes different ones")
    prices: dict[str, float] = {}
    for label, value in options.price:
        if label in prices:
            raise InputError(f"--price {label}: given twice")
        prices[label] = value
    name = default_name(files) if options.name is None else options.name
    folder = check_result(options.results_dir, name, overwrite=options.overwrite, holds=COMPARISON)
    line = command.shown_command(f"scripts/{PROGRAM}.py", arguments, ())
    return Job(options, tuple(files), prices, folder, line)


def default_name(files: Sequence[Path]) -> str:
    """Name the comparison after the folders of its fits."""
    names = [file.absolute().parent.name for file in files]
    name = f"compare-{'-'.join(names)}"
    return name if len(name) <= _MAX_NAME else f"compare-{names[0]}-and-{len(names) - 1}-more"[:_MAX_NAME]


def run(job: Job) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    options = job.options
    with command.noticed_interrupts() as check_interrupts, command.shown_progress(PROGRAM) as show:
        found = compare_fits(job, show)
        check_interrupts()
        show("writing the tables" if options.no_report else "writing the report", None)
        from bayes_sched.reports import comparison as _  # noqa: F401, it registers the report
        from bayes_sched.reports.document import report

        document = report(found, command=job.command)
        paths = write(job, found, document)
    for warning in found.warnings:
        say(f"warning: {warning}")
    seconds = time.perf_counter() - start
    if options.json:
        numbers = {**document.numbers, "paths": paths, "seconds": round(seconds, 1)}
        print(json.dumps(numbers, indent=2, allow_nan=False))
    else:
        from bayes_sched.reports.terminal import terminal

        saved = f"Saved {paths.get('report', paths['folder'])}\nTook {seconds:.1f} s"
        print(f"{terminal(document)}\n\n{saved}")
    if found.converged:
        return command.DONE
    say("a fit has NOT CONVERGED: do not act on this comparison")
    return command.NOT_CONVERGED


def compare_fits(job: Job, show: command.Progress) -> Comparison:
    options = job.options
    show("reading the fits", None)
    from bayes_sched.comparison.compare import compare
    from bayes_sched.posterior.fitted import FittedModel

    fits = [FittedModel.load(file, model=options.model) for file in job.files]
    show("comparing", None)
    return compare(
        fits,
        prices=job.prices,
        slo_ms=options.slo_ms,
        slo_quantile=options.slo_quantile,
        rope=options.rope,
        probability=options.probability,
        max_draws=options.draws,
        seed=options.seed,
    )


def write(job: Job, found: Comparison, document: Document) -> dict[str, str]:
    """Write the folder of the result; return its files by what they are."""
    from bayes_sched.files import COMPARISON, result_folder
    from bayes_sched.reports.write import write_report

    options = job.options
    with result_folder(job.folder, overwrite=options.overwrite, holds=COMPARISON) as folder:
        write_report(document, folder, with_page=not options.no_report)
        found.save(folder / COMPARISON)
    paths = {"folder": str(job.folder), "summary": str(job.folder / "summary.json")}
    return paths if options.no_report else paths | {"report": str(job.folder / "report.html")}


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
