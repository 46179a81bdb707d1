"""Measure the sampler: beside the model file as it stands (sampling), or over whole fits (fits).

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PROGRAM = "benchmark"
FIT_COMMAND = Path(__file__).resolve().with_name("fit_bayes.py")
say = partial(command.say, PROGRAM)

EPILOG = """\
examples:
  python scripts/benchmark.py sampling trace.jsonl --rows 1000
  python scripts/benchmark.py fits 'traces/*.jsonl.gz' --seeds 1,2,3,4,5

exit status: 0 done (fits: all converged); 2 bad input or usage; 3 a fit has not converged; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    made = command.Parser(
        prog=PROGRAM,
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog=EPILOG,
    )
    kinds = made.add_subparsers(dest="kind", required=True, metavar="sampling|fits")
    add = partial(kinds.add_parser, formatter_class=argparse.HelpFormatter)
    _add_sampling(add("sampling", help="our sampler beside the model file as it stands, same rows"))
    _add_fits(add("fits", help="time, memory and convergence of whole fits, each a cold start"))
    return made


def _add_sampling(made: argparse.ArgumentParser) -> None:
    made.description = (
        "Sample the same rows as the model file stands (the logarithms of its parameters, each of nutpie's "
        "adaptations) and as the library does. Effective draws: smallest bulk ESS of all that the gate sees."
    )
    one, zero = command.at_least(1), command.at_least(0)
    add = made.add_argument
    _add_common(made)
    add(
        "--rows",
        type=command.at_least(20),
        default=1000,
        metavar="N",
        help=f"steps, chosen at random {DEFAULT}",
    )
    add("--draws", type=one, default=1000, metavar="N", help=f"kept of each chain {DEFAULT}")
    add(
        "--tune",
        type=one,
        metavar="N",
        help="tuning draws of each chain (default: ours 200 for each part, direct 1000)",
    )
    add("--chains", type=command.at_least(2), default=4, metavar="N", help=DEFAULT)
    add("--seed", type=zero, default=0, metavar="N", help=f"of the rows and of the samplers {DEFAULT}")
    depth = "greatest tree depth of the direct formulation, 2**N leapfrog steps a draw"
    add("--max-depth", type=one, default=8, metavar="N", help=f"{depth} {DEFAULT}")
    add("--json", action="store_true", help="print one JSON document in place of the tables")


def _add_fits(made: argparse.ArgumentParser) -> None:
    made.description = (
        "Run scripts/fit_bayes.py on each trace with its default settings, each in a process of its own: "
        "seconds from the cold start to the finished report, and the process's peak memory."
    )
    _add_common(made)
    made.add_argument(
        "--seeds", type=_seeds, default=(0,), metavar="N,N,...", help="one fit each (default: 0)"
    )
    made.add_argument("--no-report", action="store_true", help="without the report")
    made.add_argument("--json", action="store_true", help="print one JSON document in place of the table")


def _add_common(made: argparse.ArgumentParser) -> None:
    made.add_argument("traces", nargs="+", metavar="TRACE", help="trace file (.gz, .zst, plain) or 'PATTERN'")
    made.add_argument("--model", default="saturation", help=f"name of a model, or a .py file {DEFAULT}")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = (-1,)
    if min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,2,3")
    return seeds


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Check the arguments as far as that goes without reading a trace."""
    options = parser().parse_args(arguments)
    from bayes_sched.model.protocol import shipped_models
    from bayes_sched.trace.opening import expand_paths

    options.files, _ = expand_paths(options.traces)
    for file in options.files:
        if file == "-" or not Path(file).is_file():
            raise InputError(f"{file}: no such file (a benchmark reads files, each a trace of its own)")
    if options.model not in shipped_models() and not Path(options.model).is_file():
        raise InputError(
            f"--model {options.model}: no such model; give a .py file or {', '.join(shipped_models())}"
        )
    return options


def run(options: argparse.Namespace) -> int:
    return run_sampling(options) if options.kind == "sampling" else run_fits(options)


def run_sampling(options: argparse.Namespace) -> int:
    import logging

    import pandas as pd

    from bayes_sched.trace.cleaning import clean_steps
    from bayes_sched.trace.reader import read_trace

    tables = {file: clean_steps(read_trace(file).steps).steps for file in options.files}
    say("loading the libraries")
    from bayes_sched.reports.studies import sampling_text
    from bayes_sched.studies.speed import ratios_to_best
    from bayes_sched.trace.cleaning import choose_rows

    logging.getLogger("pymc").setLevel(logging.WARNING)
    results = []
    for file, steps in tables.items():
        used = choose_rows(steps, options.rows, seed=options.seed)
        found = pd.DataFrame(sample_all(used, options, label=Path(file).name))
        results.append(
            {
                "trace": Path(file).name,
                "rows": len(used),
                "rows_of": len(steps),
                "direct_max_depth": options.max_depth,
                "methods": found.to_dict(orient="records"),
                "ratios": ratios_to_best(found),
            }
        )
        if not options.json:
            print(sampling_text(results[-1], found), flush=True)
    if options.json:
        print(json.dumps(results, indent=2))
    return command.DONE


def sample_all(steps: pd.DataFrame, options: argparse.Namespace, *, label: str) -> list[dict[str, Any]]:
    """Sample one trace in every way."""
    from bayes_sched.model.priors import Priors
    from bayes_sched.model.protocol import all_parameters, load_model
    from bayes_sched.sampling.nuts import SamplerSettings
    from bayes_sched.studies.speed import measure_direct, measure_ours

    model = load_model(options.model)
    noise = model.noises[0]
    priors = Priors.from_parameters(all_parameters(model, noise))
    same = {"draws": options.draws, "chains": options.chains, "seed": options.seed}

    def progress(text: str) -> None:
        say(f"{label}: {text}")

    ours = measure_ours(
        model,
        steps,
        priors,
        noise=noise,
        settings=SamplerSettings(**same, tune=options.tune or 200),
        progress=progress,
    )
    direct = measure_direct(
        model,
        steps,
        priors,
        noise=noise,
        settings=SamplerSettings(**same, tune=options.tune or 1000),
        max_depth=options.max_depth,
        progress=progress,
    )
    return [found.to_dict() for found in (*direct, ours)]


def run_fits(options: argparse.Namespace) -> int:
    """Fit everything first: this process stays small, which a child's peak memory could otherwise show."""
    with tempfile.TemporaryDirectory(prefix="bayes_sched_") as folder:
        runs: list[dict[str, Any]] = []
        for file in options.files:
            for seed in options.seeds:
                say(f"{Path(file).name}, seed {seed}")
                runs.append(fit_once(options, file, seed, Path(folder) / str(len(runs))))
        from bayes_sched.posterior.fitted import FittedModel
        from bayes_sched.reports.studies import fits_text
        from bayes_sched.studies.speed import fit_account

        rows = [one | fit_account(FittedModel.load(one.pop("posterior"))) for one in runs]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(fits_text(rows))
    return command.DONE if all(row["gate_passed"] for row in rows) else command.NOT_CONVERGED


def fit_once(options: argparse.Namespace, file: str, seed: int, results: Path) -> dict[str, Any]:
    """Run the command that people run; measure it from outside."""
    line = [
        sys.executable,
        str(FIT_COMMAND),
        file,
        "--name",
        "fit",
        "--seed",
        str(seed),
        "--model",
        options.model,
    ]
    line += ["--results-dir", str(results), *(["--no-report"] if options.no_report else [])]
    log = results.with_suffix(".log")
    start = time.perf_counter()
    with log.open("wb") as stream:
        child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=stream)
        _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (command.DONE, command.NOT_CONVERGED):
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
        raise InputError(f"{file}: the fit ended with exit status {child.returncode}: {last[-1]}")
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return {
        "trace": Path(file).name,
        "seed": seed,
        "total_s": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss * unit / 1e6,
        "posterior": results / "fit" / "posterior.nc",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
