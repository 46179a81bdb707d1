"""Compare models by leave-one-out (PSIS) on the same steps of a trace, and by what their sampling costs.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from bayes_sched.checks.loo import ModelComparison
    from bayes_sched.model.protocol import LatencyModel, ModelFile

PROGRAM = "compare_models"
say = partial(command.say, PROGRAM)

EPILOG = """\
models: names of the project's own, such as saturation, with a noise option after a colon if it is not the
  model's first, such as saturation:constant; or a .py file, which is run

examples:
  python scripts/compare_models.py trace.jsonl --models saturation,saturation:constant,saturation_context
  python scripts/compare_models.py trace.jsonl --rows 1000 --json | jq .best

Leave-one-out answers for steps like those seen. Scores on stretches of time and on token budgets that were
left out: scripts/validate.py.

exit status: 0 done; 2 bad input or usage; 3 a fit has not converged (its row is marked); 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = command.Parser(
        prog=PROGRAM, description=__doc__.partition("\n")[0] if __doc__ else None, epilog=EPILOG
    )
    one, zero, ms = command.at_least(1), command.at_least(0), command.milliseconds
    add = made.add_argument
    add("traces", nargs="+", metavar="TRACE", help="file (.gz, .zst, plain), 'PATTERN', or - for stdin")
    add(
        "--models",
        type=command.names,
        metavar="A,B",
        help="what is compared (default: the project's models that the trace has the columns for)",
    )
    add("--json", action="store_true", help="print one JSON document in place of the tables")
    add("--csv", type=Path, metavar="FILE", help="write the comparison as a table, too")
    add("--figure", type=Path, metavar="FILE.png", help="draw the differences with their intervals, too")
    add("--overwrite", action="store_true", help="replace existing files of these names")
    add = made.add_argument_group("steps").add_argument
    add("--rows", type=command.at_least(20), default=2000, metavar="N", help=f"random steps {DEFAULT}")
    add("--min-latency-ms", type=ms, default=1.0, metavar="MS", help=f"remove shorter steps {DEFAULT}")
    add("--max-latency-ms", type=ms, default=300.0, metavar="MS", help=f"remove longer steps {DEFAULT}")
    add = made.add_argument_group("sampling").add_argument
    draws = command.at_least(100)
    add("--draws", type=draws, default=1000, metavar="N", help=f"draws kept of each chain {DEFAULT}")
    add(
        "--tune",
        type=one,
        default=200,
        metavar="N",
        help=f"tuning draws of each chain, for each part {DEFAULT}",
    )
    add("--chains", type=one, default=4, metavar="N", help=DEFAULT)
    add("--seed", type=zero, default=0, metavar="N", help=f"of the steps and of the sampling {DEFAULT}")
    return made


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Check the arguments, cheapest first."""
    options = parser().parse_intermixed_args(arguments)
    if options.min_latency_ms >= options.max_latency_ms:
        raise InputError(
            f"--min-latency-ms {options.min_latency_ms:g} is not below "
            f"--max-latency-ms {options.max_latency_ms:g}: no step could stay"
        )
    if options.figure is not None and options.figure.suffix != ".png":
        raise InputError(f"--figure {options.figure}: name a .png file")
    from bayes_sched.model.protocol import shipped_models
    from bayes_sched.trace.opening import expand_paths

    check_models(options.models or (), shipped_models())
    files, warnings = expand_paths(options.traces)
    for warning in warnings:
        say(f"warning: {warning}")
    for path in filter(None, (options.csv, options.figure)):
        command.check_output(path, inputs=files, overwrite=options.overwrite)
    return options


def check_models(chosen: Sequence[str], shipped: Sequence[str]) -> None:
    """Check the names, as far as that goes without loading a model."""
    for number, name in enumerate(chosen):
        if name in chosen[:number]:
            raise InputError(f"--models {name}: given twice")
        model = name.partition(":")[0]
        if model not in shipped and not Path(model).is_file():
            raise InputError(
                f"--models {name}: no such model; give some of {', '.join(shipped)}, MODEL:NOISE, or the "
                "path of a model's .py file"
            )


@dataclass(frozen=True)
class Member:
    """A model with a noise option."""

    name: str
    file: ModelFile
    noise: str

    @property
    def model(self) -> LatencyModel:
        return self.file.model


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; return the exit status."""
    with command.noticed_interrupts() as check_interrupts, command.shown_progress(PROGRAM) as show:
        found, fits = study(options, show, check_interrupts)
        check_interrupts()
        write(options, found)
    from bayes_sched.reports.document import report
    from bayes_sched.reports.loo import ComparedModels
    from bayes_sched.reports.terminal import terminal

    document = report(ComparedModels(found, fits))
    if options.json:
        print(json.dumps(document.numbers, indent=2, allow_nan=False))
    else:
        print(terminal(document))
        for path in filter(None, (options.csv, options.figure)):
            print(f"Saved {path}")
    for name, fit in fits.items():
        for problem in fit["problems"]:
            say(f"not converged: {name}: {problem}")
    return command.DONE if all(fit["gate_passed"] for fit in fits.values()) else command.NOT_CONVERGED


def study(
    options: argparse.Namespace, show: command.Progress, check_interrupts: Callable[[], None]
) -> tuple[ModelComparison, dict[str, dict[str, Any]]]:
    """Fit each model to the same steps, one after the other; keep what is compared and not the draws."""
    show("loading the libraries", None)
    import logging

    from bayes_sched.checks.loo import comparable_steps, compare_models, leave_one_out
    from bayes_sched.posterior.fit import fit
    from bayes_sched.sampling.nuts import SamplerSettings
    from bayes_sched.studies.speed import fit_account

    logging.getLogger("pymc").setLevel(logging.WARNING)
    cleaned = cleaned_steps(options, show)
    members = [member(name) for name in options.models or usable_models(cleaned)]
    columns = {one.name: tuple(one.model.columns) for one in members}
    steps = comparable_steps(cleaned, columns, max_rows=options.rows, seed=options.seed)
    say(f"{len(steps):,} of {len(cleaned):,} cleaned steps are compared on")
    settings = SamplerSettings(
        **{name: getattr(options, name) for name in ("draws", "tune", "chains", "seed")}
    )
    compared, fits = {}, {}
    for number, one in enumerate(members, start=1):
        prefix = f"{one.name} ({number} of {len(members)})"
        start, cpu_start = time.perf_counter(), time.process_time()
        fitted = fit(
            steps,
            model=one.file,
            noise=one.noise,
            settings=settings,
            min_latency_ms=options.min_latency_ms,
            max_latency_ms=options.max_latency_ms,
            max_rows=len(steps),
            progress=partial(show_stage, show, prefix),
        ).fit
        check_interrupts()
        fits[one.name] = {
            **fit_account(fitted),
            "gradients": fitted.convergence.num_gradients,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
        }
        show(f"{prefix}: leaving out each step", None)
        compared[one.name] = leave_one_out(fitted, steps)
    return compare_models(compared), fits


def show_stage(show: command.Progress, prefix: str, stage: str, share: float | None) -> None:
    show(f"{prefix}: {stage}", share)


def member(name: str) -> Member:
    """Load a model and check its noise option."""
    from bayes_sched.model.protocol import all_parameters, load_model_file

    path, _, noise = name.partition(":")
    loaded = load_model_file(path)
    noise = noise or loaded.model.noises[0]
    all_parameters(loaded.model, noise)  # refuses an option that the model does not have
    return Member(name, loaded, noise)


def cleaned_steps(options: argparse.Namespace, show: command.Progress) -> pd.DataFrame:
    """Read and clean the trace."""
    show("reading the trace", None)
    from bayes_sched.trace.cleaning import clean_steps
    from bayes_sched.trace.reader import read_trace

    trace = read_trace(options.traces)
    cleaned = clean_steps(
        trace.steps, min_latency_ms=options.min_latency_ms, max_latency_ms=options.max_latency_ms
    )
    for warning in (*trace.warnings, *cleaned.warnings):
        say(f"warning: {warning}")
    return cleaned.steps


def usable_models(steps: pd.DataFrame) -> list[str]:
    """Return the names of the project's models that the steps have the columns for; say which they lack."""
    from bayes_sched.checks.loo import lacking_columns
    from bayes_sched.model.protocol import load_model, shipped_models

    lacking = {name: lacking_columns(steps, load_model(name).columns) for name in shipped_models()}
    for name, columns in lacking.items():
        if columns:
            say(f"{name} left out: the trace lacks {', '.join(columns)}")
    return [name for name, columns in lacking.items() if not columns]


def write(options: argparse.Namespace, found: ModelComparison) -> None:
    """Write the files that were asked for, each whole or not at all."""
    if options.csv is not None:
        command.write_whole(options.csv, found.table.to_csv(float_format="%.6g"))
    if options.figure is not None:
        from bayes_sched.files import whole_file
        from bayes_sched.reports.plots.comparison import model_differences

        with whole_file(options.figure, what="the figure") as temporary:
            model_differences(found).savefig(temporary, format="png", dpi=144)


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
