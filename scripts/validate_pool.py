"""Fit a few steps of a trace with and without a pool of other servers, and score both on the rest.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError
from bayes_sched.studies.runs import StudyFolder

if TYPE_CHECKING:
    import pandas as pd

    from bayes_sched.posterior.fitted import FittedModel
    from bayes_sched.studies.pooling import FewSteps

PROGRAM = "validate_pool"
say = partial(command.say, PROGRAM)

EPILOG = """\
example:
  python scripts/validate_pool.py results/h100_* results/a6000x2_* --trace '../shared/traces/a6000x2_*512*'

The fits are the pool; each --trace is one of theirs, from which a few steps are drawn again and again. It is
left out of the pool, and so are, for the prior of a new server, all traces of its server.
An interrupted study goes on where it stopped when it is called again with --resume.

exit status: 0 done; 2 bad input or usage; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    made = command.Parser(
        prog=PROGRAM,
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog=EPILOG,
    )
    add = made.add_argument
    add("fits", nargs="+", type=Path, metavar="FIT", help="folders of fits, such as results/h100: the pool")
    add(
        "--trace", action="append", required=True, metavar="FILE", help="the trace of one of them; repeatable"
    )
    add("--steps", type=command.at_least(20), default=50, metavar="N", help=f"to learn from {DEFAULT}")
    add("--consecutive", action="store_true", help="steps in a row, not a random choice")
    add("--runs", type=command.at_least(1), default=20, metavar="N", help=f"of each trace {DEFAULT}")
    add(
        "--max-test", type=command.at_least(20), default=2000, metavar="N", help=f"steps to predict {DEFAULT}"
    )
    add("--seed", type=command.at_least(0), default=1, metavar="N", help=DEFAULT)
    add("--draws", type=command.at_least(50), default=500, metavar="N", help=f"of each chain {DEFAULT}")
    add("--chains", type=command.at_least(2), default=2, metavar="N", help=DEFAULT)
    command.add_study_options(made, folder="results/pool_validation")
    return made


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Check the arguments as far as that goes without reading fits and traces."""
    from bayes_sched.files import fit_file
    from bayes_sched.trace.opening import expand_paths

    options = parser().parse_args(arguments)
    options.posteriors = [fit_file(path) for path in options.fits]
    options.trace, _ = expand_paths(options.trace)
    runs_of(options).check(resume=options.resume, overwrite=options.overwrite)
    options.command = command.shown_study(f"scripts/{PROGRAM}.py", arguments)
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What has to be the same for runs to belong to one study."""
    names = ("steps", "consecutive", "runs", "max_test", "seed", "draws", "chains")
    return {name: getattr(options, name) for name in names} | {
        "fits": [path.parent.name for path in options.posteriors],
        "traces": [Path(path).name for path in options.trace],
    }


def runs_of(options: argparse.Namespace) -> StudyFolder:
    return StudyFolder(
        folder=options.results_dir, table="runs.csv", number="number", settings=settings_of(options)
    )


def run(options: argparse.Namespace) -> int:
    fits, runs = load_fits(options.posteriors), runs_of(options)
    done = runs.begin(resume=options.resume)
    for i, path in enumerate(options.trace):
        numbers = range(max(done, i * options.runs), (i + 1) * options.runs)
        study = make_study(path, fits, options) if len(numbers) else None
        for number in numbers:
            assert study is not None
            runs.append(study.run(number % options.runs).assign(number=number, run=number % options.runs))
            say(f"{study.target.name}: {number % options.runs + 1} of {options.runs} runs")
    print(summarise(runs.read(), options))
    return command.DONE


def load_fits(paths: Sequence[Path]) -> dict[str, FittedModel]:
    say("loading the libraries")
    import logging

    from bayes_sched.posterior.fitted import FittedModel

    logging.getLogger("pymc").setLevel(logging.WARNING)
    loaded = [FittedModel.load(path) for path in paths]
    return {fit.metadata.name: fit for fit in loaded}


def make_study(path: str | Path, fits: dict[str, FittedModel], options: argparse.Namespace) -> FewSteps:
    from bayes_sched.sampling.nuts import SamplerSettings
    from bayes_sched.studies.pooling import FewSteps, target
    from bayes_sched.trace.cleaning import clean_steps
    from bayes_sched.trace.reader import read_trace

    trace = read_trace(path)
    names = [name for name, fit in fits.items() if fit.metadata.trace_sha256 == trace.sha256]
    if not names:
        raise InputError(f"{path}: none of the fits is of this trace; fit it with fit_bayes.py")
    limits = fits[names[0]].metadata.cleaning
    steps = clean_steps(
        trace.steps, min_latency_ms=limits.min_latency_ms, max_latency_ms=limits.max_latency_ms
    ).steps
    say(f"{names[0]}: pooling the others")
    return FewSteps(
        target(names[0], steps, fits=fits),
        num_steps=options.steps,
        max_test=options.max_test,
        is_consecutive=options.consecutive,
        settings=SamplerSettings(draws=options.draws, chains=options.chains, seed=options.seed),
    )


def summarise(runs: pd.DataFrame, options: argparse.Namespace) -> str:
    """Write the table and the account; return the summary."""
    from bayes_sched.studies.pooling import summary_table

    table = summary_table(runs)
    table.to_csv(options.results_dir / "summary.csv", index=False, float_format="%.4g")
    gates = runs.groupby("prior", sort=False)["converged"].mean()
    text = "\n".join(
        [
            table.round(3).to_string(index=False),
            "",
            "Fits that passed the gate: " + ", ".join(f"{k} {100 * v:.0f}%" for k, v in gates.items()) + ".",
            f"Seconds a fit: median {runs['seconds'].median():.1f}, sum {runs['seconds'].sum():,.0f}.",
        ]
    )
    command.write_whole(options.results_dir / "README.md", readme(text, options))
    return text


def readme(text: str, options: argparse.Namespace) -> str:
    chosen = "in a row, from a random place" if options.consecutive else "chosen at random"
    return f"""# What is a pool of other servers worth, where a server's own trace is short?

Made by

    {options.command}

{options.steps} steps of a trace, {chosen}, are fitted, and predict a random choice of the others.
The prior is the documented one; the pool of the traces of other servers (`new server`); the pool of all other
traces, those of the same server among them (`known server`). CRPS in ms, less is better; `ratio` is to the
CRPS with documented priors on the same steps (median, 5 % and 95 % of the runs), `better` the share of runs
in which it is below 1; `whole_crps_ms` is that of the fit of the whole trace.

```
{text}
```
"""


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
