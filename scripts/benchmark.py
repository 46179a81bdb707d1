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

from bayes_sched import command
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PROGRAM = "benchmark"
DEFAULT = "(default: %(default)s)"
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
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = made.add_subparsers(dest="kind", required=True, metavar="sampling|fits")
    _add_sampling(
        kinds.add_parser("sampling", help="our sampler beside the model file as it stands, same rows")
    )
    _add_fits(kinds.add_parser("fits", help="time, memory and convergence of whole fits, each a cold start"))
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
    from bayes_sched.model import shipped_models
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

    from bayes_sched.trace import clean_steps, read_trace

    tables = {file: clean_steps(read_trace(file).steps).steps for file in options.files}
    say("loading the libraries")
    from bayes_sched.benchmarking import choose_rows

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
                "ratios": ratios(found),
            }
        )
        if not options.json:
            print(sampling_text(results[-1], found), flush=True)
    if options.json:
        print(json.dumps(results, indent=2))
    return command.DONE


def sample_all(steps: pd.DataFrame, options: argparse.Namespace, *, label: str) -> list[dict[str, Any]]:
    """Sample one trace in every way."""
    from bayes_sched.benchmarking import measure_direct, measure_ours
    from bayes_sched.model import all_parameters, load_model
    from bayes_sched.priors import Priors
    from bayes_sched.settings import SamplerSettings

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


def ratios(found: pd.DataFrame) -> dict[str, float]:
    """Ours over the best of the direct ones, whether that passed the gate or not."""
    is_ours = found["method"] == "ours"
    columns = ("effective_per_1000_gradients", "effective_per_1000_gradients_all", "effective_per_second")
    return {
        name: float(found.loc[is_ours, name].iloc[0] / found.loc[~is_ours, name].max()) for name in columns
    }


def sampling_text(result: dict[str, Any], found: pd.DataFrame) -> str:
    ours = found[found["method"] == "ours"].iloc[0]
    per_gradient = ours["effective_per_1000_gradients"] / found["effective_per_1000_gradients"]
    per_second = ours["effective_per_second"] / found["effective_per_second"]
    table = {
        "method": found["method"],
        "gate": ["passed" if passed else "failed" for passed in found["gate_passed"]],
        "divergent": [f"{n:,}" for n in found["divergences"]],
        "worst R-hat": [f"{x:.3f}" for x in found["worst_r_hat"]],
        "min bulk ESS": [f"{x:,.0f}" for x in found["min_ess_bulk"]],
        "ESS/1,000 gradients": [f"{x:.3g}" for x in found["effective_per_1000_gradients"]],
        "with warm-up*": [f"{x:.3g}" for x in found["effective_per_1000_gradients_all"]],
        "ESS/s**": [f"{x:.3g}" for x in found["effective_per_second"]],
        "at max depth": [f"{x:.0%}" for x in found["share_at_max_depth"]],
        "ours/this per gradient": [f"{x:,.1f}" for x in per_gradient],
        "per second": [f"{x:,.1f}" for x in per_second],
    }
    best = result["ratios"]
    return (
        f"{result['trace']}: {result['rows']:,} of {result['rows_of']:,} cleaned steps\n"
        f"{as_text(table)}\n"
        "ours over the best direct one: effective draws a gradient "
        f"x {best['effective_per_1000_gradients']:,.1f}, a second x {best['effective_per_second']:,.1f}\n"
        f"The direct formulation's trajectories are cut at depth {result['direct_max_depth']} "
        f"({2 ** result['direct_max_depth'] - 1:,} leapfrog steps): --max-depth. The ESS of chains that fail "
        "the gate is not to be trusted.\n"
        "*  gradients of the warm-up and, of ours, all evaluations of the pilot run counted as well\n"
        "** wall time of warm-up, draws and, of ours, the pilot run; without compiling\n"
    )


def run_fits(options: argparse.Namespace) -> int:
    """Fit everything first: this process stays small, which a child's peak memory could otherwise show."""
    with tempfile.TemporaryDirectory(prefix="bayes_sched_") as folder:
        runs: list[dict[str, Any]] = []
        for file in options.files:
            for seed in options.seeds:
                say(f"{Path(file).name}, seed {seed}")
                runs.append(fit_once(options, file, seed, Path(folder) / str(len(runs))))
        rows = [one | read_fit(one.pop("posterior")) for one in runs]
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


def read_fit(path: Path) -> dict[str, Any]:
    """The numbers of a finished fit."""
    from bayes_sched.fitted import FittedModel

    fit = FittedModel.load(path)
    gate, stage = fit.convergence, fit.metadata.timings_s
    table = gate.table
    posterior = fit.posterior
    share = float("nan")
    if {"w_1", "P_max", "tau_S"} <= set(posterior):
        share = float((posterior["w_1"] / posterior["P_max"] > posterior["tau_S"]).mean())
    info = fit.metadata.sampler
    return {
        "rows": int(fit.cells["count"].sum()),
        "compile_s": stage["compile"],
        "pilot_s": stage.get("pilot", 0.0) + stage.get("masses", 0.0),
        "sampling_s": stage["sampling"],
        "divergences": gate.num_divergences,
        "worst_r_hat": gate.worst_r_hat,
        "min_ess_bulk": float(table["ess_bulk"].min(skipna=False)),
        "min_ess_tail": float(table["ess_tail"].min(skipna=False)),
        "leapfrogs_per_draw": gate.num_gradients / gate.num_draws,
        "effective_per_1000_gradients": gate.ess_per_1000_gradients,
        "modes": info.get("num_modes"),
        "parts": info.get("num_parts"),
        "probability_a_1_above_tau_S": share,
        "gate_passed": gate.converged,
        "problems": list(gate.problems),
    }


def fits_text(rows: list[dict[str, Any]]) -> str:
    formats: dict[str, tuple[str, str]] = {
        "trace": ("trace", "{}"),
        "seed": ("seed", "{}"),
        "rows": ("rows", "{:,}"),
        "compile_s": ("compile s", "{:.1f}"),
        "pilot_s": ("pilot s", "{:.1f}"),
        "sampling_s": ("sample s", "{:.1f}"),
        "total_s": ("total s", "{:.1f}"),
        "peak_memory_mb": ("peak MB", "{:,.0f}"),
        "divergences": ("divergent", "{:,}"),
        "worst_r_hat": ("worst R-hat", "{:.4f}"),
        "min_ess_bulk": ("bulk ESS", "{:,.0f}"),
        "min_ess_tail": ("tail ESS", "{:,.0f}"),
        "leapfrogs_per_draw": ("leapfrogs/draw", "{:.1f}"),
        "effective_per_1000_gradients": ("ESS/1,000 gradients", "{:.1f}"),
        "modes": ("modes", "{}"),
        "parts": ("parts", "{}"),
        "probability_a_1_above_tau_S": ("P(a_1 > tau_S)", "{:.3f}"),
        "gate_passed": ("gate", "{}"),
    }
    shown = [row | {"gate_passed": "passed" if row["gate_passed"] else "failed"} for row in rows]
    table = {title: [form.format(row[key]) for row in shown] for key, (title, form) in formats.items()}
    table["trace"] = [name.removesuffix(".gz").removesuffix(".jsonl") for name in table["trace"]]
    spread = []
    for trace in dict.fromkeys(row["trace"] for row in rows):
        values = [row["probability_a_1_above_tau_S"] for row in rows if row["trace"] == trace]
        if len(values) > 1:
            spread.append(
                f"{trace}: P(a_1 > tau_S) from {min(values):.3f} to {max(values):.3f} over the seeds"
            )
    note = (
        "total: wall time of the whole command from its start; the stages are wall time too. ESS: smallest "
        "of all parameters and coordinates; gradients: leapfrog steps after warm-up."
    )
    return "\n".join([as_text(table), *spread, note])


def as_text(table: dict[str, Any]) -> str:
    """Align columns of text, the first to the left."""
    columns = [[title, *map(str, cells)] for title, cells in table.items()]
    widths = [max(map(len, column)) for column in columns]
    lines = (
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in zip(*columns, strict=True)
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
