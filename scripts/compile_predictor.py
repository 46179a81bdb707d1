"""Compile a fit to a small file of tables that a scheduler can ask: microseconds a step, numpy alone.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sched.cli import command

if TYPE_CHECKING:
    from bayes_sched.predictor.predictor import Predictor

PROGRAM = "compile_predictor"
PREDICTOR = "predictor.npz"
say = partial(command.say, PROGRAM)

EPILOG = """\
examples:
  python scripts/compile_predictor.py results/h100
  python scripts/compile_predictor.py results/h100 --output h100.npz --overwrite

then, in the scheduler:
  predictor = bayes_sched.Predictor.load("results/h100/predictor.npz")
  predictor.quantile(16, 512, 0.99)          # ms; 16 requests, 512 tokens
  predictor.probability_below(16, 512, 50.0)
  predictor.observe(16, 512, 47.1).alarm     # None while the fit describes the server

exit status: 0 done; 2 bad input or usage, a fit that has not converged included; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = command.Parser(
        prog=PROGRAM,
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog=EPILOG,
    )
    add = made.add_argument
    add("result", type=Path, metavar="RESULT", help="folder of a fit (results/NAME), or its posterior.nc")
    add("--output", type=Path, metavar="FILE", help=f"where to write (default: RESULT/{PREDICTOR})")
    add("--overwrite", action="store_true", help="replace an existing file")
    add(
        "--model",
        metavar="FILE.py",
        help="the fit's model file, where it is not the project's own: it is run",
    )
    add(
        "--allow-unconverged",
        action="store_true",
        help="compile a fit that failed its convergence gate; the file says so",
    )
    add("--json", action="store_true", help="print one JSON document in place of the text")
    return made


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Check the arguments as far as that goes without reading the fit."""
    options = parser().parse_args(arguments)
    from bayes_sched.files import fit_file

    options.posterior = fit_file(options.result)
    if options.output is None:
        options.output = options.posterior.parent / PREDICTOR
    command.check_output(options.output, inputs=[str(options.posterior)], overwrite=options.overwrite)
    return options


def run(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    with command.shown_progress(PROGRAM) as show:
        show("loading the libraries", None)
        from bayes_sched.posterior.fitted import FittedModel
        from bayes_sched.predictor.compile import compile_predictor

        fit = FittedModel.load(options.posterior, model=options.model)
        show("compiling (a minute or two)", None)
        predictor = compile_predictor(fit, allow_unconverged=options.allow_unconverged)
        predictor.save(options.output)
    for warning in fit.load_warnings:
        say(f"warning: {warning}")
    if not predictor.converged:
        say("warning: this fit has not converged; the predictor is marked as such")
    found = account(predictor, options.output) | {"seconds": round(time.perf_counter() - start, 1)}
    print(json.dumps(found, indent=2) if options.json else as_text(found))
    return command.DONE


def account(predictor: Predictor, path: Path) -> dict[str, Any]:
    about = predictor.provenance
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "fit": about.name,
        "converged": about.converged,
        "num_draws": about.num_draws,
        "trace_sha256": about.trace_sha256,
        "max_batch_size": predictor.max_batch_size,
        "max_total_tokens": predictor.max_total_tokens,
        "region": about.region_text,
        "errors": dict(about.errors),
    }


def as_text(found: dict[str, Any]) -> str:
    errors = found["errors"]
    return (
        f"Saved {found['path']} ({found['bytes'] / 1e3:,.0f} kB) from {found['fit']}: "
        f"{found['num_draws']:,} draws, {found['seconds']:.1f} s\n"
        f"{found['region']} The tables reach {found['max_batch_size']:,.0f} requests and "
        f"{found['max_total_tokens']:,.0f} tokens.\n"
        f"Largest error inside the region: mean {errors['mean']:.2%}, quantiles 0.001 to 0.999 "
        f"{errors['quantile']:.2%}, P(T <= x) {errors['probability']:.4f}; relative error of a tail of "
        f"0.0001 or more {errors['tail']:.1%}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
