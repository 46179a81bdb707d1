"""Simulation-based calibration: fit simulated traces, and see whether the true values rank evenly.

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

    from bayes_sched.studies.sbc import CalibrationStudy, Simulation

PROGRAM = "calibrate"
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"
say = partial(command.say, PROGRAM)

EPILOG = """\
example:
  python scripts/calibrate.py --simulations 200 --seed 1

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
    one, zero = command.at_least(1), command.at_least(0)
    add("--simulations", type=command.at_least(10), default=200, metavar="N", help=DEFAULT)
    add("--seed", type=zero, default=1, metavar="N", help=DEFAULT)
    add("--design", type=Path, default=EXAMPLE, metavar="TRACE", help="its (B, S) (default: the example's)")
    add(
        "--rows", type=command.at_least(20), default=160, metavar="N", help=f"steps of a simulation {DEFAULT}"
    )
    add("--model", default="saturation", help=f"name of a model, or a .py file, which is run {DEFAULT}")
    add("--noise", help="noise option of the model (default: its first)")
    add("--draws", type=command.at_least(25), default=500, metavar="N", help=f"kept of each chain {DEFAULT}")
    add(
        "--tune",
        type=one,
        default=200,
        metavar="N",
        help=f"tuning draws of each chain, for each part {DEFAULT}",
    )
    add("--chains", type=command.at_least(2), default=2, metavar="N", help=DEFAULT)
    command.add_study_options(made, folder="results/calibration")
    return made


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Check the arguments as far as that goes without reading the trace."""
    options = parser().parse_args(arguments)
    if not options.design.is_file():
        raise InputError(f"--design {options.design}: no such file")
    if options.draws * options.chains < 100:
        raise InputError(
            f"{options.chains} chains of {options.draws} draws are too few: 100 are needed in all"
        )
    runs_of(options).check(resume=options.resume, overwrite=options.overwrite)
    options.command = command.shown_study(f"scripts/{PROGRAM}.py", arguments)
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What has to be the same for simulations to belong to one study."""
    names = ("seed", "rows", "model", "noise", "draws", "tune", "chains")
    return {name: getattr(options, name) for name in names} | {"design": options.design.name}


def runs_of(options: argparse.Namespace) -> StudyFolder:
    return StudyFolder(
        folder=options.results_dir,
        table="simulations.csv",
        number="simulation",
        settings=settings_of(options),
    )


def run(options: argparse.Namespace) -> int:
    study, runs = make_study(options), runs_of(options)
    for simulation in study.run(range(runs.begin(resume=options.resume), options.simulations)):
        runs.append(row_of(simulation))
        if (simulation.number + 1) % 10 == 0:
            say(f"{simulation.number + 1} of {options.simulations} simulations")
    print(summarise(study, runs.read(), options))
    return command.DONE


def make_study(options: argparse.Namespace) -> CalibrationStudy:
    from bayes_sched.trace.cleaning import clean_steps
    from bayes_sched.trace.reader import read_trace

    steps = clean_steps(read_trace(options.design).steps).steps
    say("loading the libraries")
    import logging

    from bayes_sched.model.protocol import load_model
    from bayes_sched.sampling.nuts import SamplerSettings
    from bayes_sched.studies.sbc import CalibrationStudy

    logging.getLogger("pymc").setLevel(logging.WARNING)
    return CalibrationStudy.of_design(
        steps,
        rows=options.rows,
        model=load_model(options.model),
        noise=options.noise,
        settings=SamplerSettings(
            draws=options.draws, tune=options.tune, chains=options.chains, seed=options.seed
        ),
    )


def row_of(simulation: Simulation) -> pd.DataFrame:
    import pandas as pd

    account = {name: simulation.account.get(name) for name in ACCOUNT}
    row: dict[str, Any] = {"simulation": simulation.number, **account}
    row |= {f"true {name}": value for name, value in simulation.truth.items()}
    row |= {f"rank {name}": simulation.ranks.get(name) for name in simulation.truth}
    return pd.DataFrame([row])


ACCOUNT = (
    "gate_passed",
    "divergences",
    "worst_r_hat",
    "worst_ess",
    "worst_e_bfmi",
    "num_parts",
    "neglected_mass",
    "pilot_efficiency",
    "median_latency_ms",
    "seconds",
    "error",
)


def summarise(study: CalibrationStudy, simulations: pd.DataFrame, options: argparse.Namespace) -> str:
    """Write the ranks, the figure and the account; return the summary."""
    from bayes_sched.model.protocol import all_parameters
    from bayes_sched.reports.plots.studies import simulated_ranks
    from bayes_sched.reports.plots.style import save_figure
    from bayes_sched.studies.sbc import evenness_table

    folder: Path = options.results_dir
    is_rank = simulations.columns.str.startswith("rank ")
    ranks = simulations.loc[:, is_rank].rename(columns=lambda name: name.removeprefix("rank "))
    ranks.insert(0, "simulation", simulations["simulation"])
    complete = ranks.dropna().astype(int)
    complete.to_csv(folder / "ranks.csv", index=False)
    complete = complete.drop(columns="simulation")
    table = evenness_table(complete)
    table.to_csv(folder / "evenness.csv", float_format="%.4g")
    units = {p.name: p.unit for p in all_parameters(study.model, study.noise)}
    units |= {"a_0": "ms", "a_1": "ms/token", "c": "ms/token", "L_0": "ms"}
    save_figure(simulated_ranks(complete, units=units), folder, "calibration")
    text = summary_text(table, simulations)
    command.write_whole(folder / "README.md", readme(text, study, options))
    return text


def summary_text(table: pd.DataFrame, simulations: pd.DataFrame) -> str:
    shown = table.assign(even=table["even"].map({True: "yes", False: "NO"})).round(
        {"mean_rank": 3, "max_deviation": 3, "p_value": 3}
    )
    fitted = simulations[simulations["worst_r_hat"].notna()]
    failed = fitted[~fitted["gate_passed"].astype(bool)]
    reasons = {
        "R-hat above 1.01": (failed["worst_r_hat"] > 1.01).sum(),
        "R-hat above 1.05": (failed["worst_r_hat"] > 1.05).sum(),
        "an ESS below 400": (failed["worst_ess"] < 400).sum(),
        "an ESS below the 99 ranked draws": (failed["worst_ess"] < 99).sum(),
        "divergences": (failed["divergences"] > 0).sum(),
        "E-BFMI below 0.3": (failed["worst_e_bfmi"] < 0.3).sum(),
    }
    smallest = float(table["p_value"].min())
    return "\n".join(
        [
            shown.to_string(),
            "",
            f"{len(table)} quantities, {int((~table['even']).sum())} outside their 95 % band; the smallest "
            f"p-value is {smallest:.3f}, times {len(table)}: {min(1.0, smallest * len(table)):.2f}.",
            f"{len(simulations):,} simulations, {len(simulations) - len(fitted):,} not fitted for an error; "
            f"{len(failed):,} of the fits failed the gate (their ranks count): "
            + ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
            + ".",
            f"Seconds a simulation: median {simulations['seconds'].median():.1f}, "
            f"sum {simulations['seconds'].sum():,.0f}.",
        ]
    )


def readme(text: str, study: CalibrationStudy, options: argparse.Namespace) -> str:
    settings = study.settings
    return f"""# Simulation-based calibration

Made by

    {options.command}

For each simulation: parameters are drawn from the documented priors, the latencies of {len(study.steps)}
steps are simulated (the (B, S) of a random choice from {options.design.name}), the sampler fits them
({settings.chains} chains, {settings.tune} tuning and {settings.draws} kept draws each), and the true values
are ranked among 99 evenly spaced draws. If the sampler returns the model's posterior, the ranks are even on
0 to 99. Every simulation counts, absurd latencies and fits that failed the gate included; fits this short
miss the gate's 400 effective draws more often than those of the default settings.

```
{text}
```

`p_value`: how often even ranks would stray as far from an even distribution. `max_deviation`: the largest
difference between the distribution functions. Beside the parameters, the combinations that data identify.

![Difference between the distribution function of the ranks and an even one, with 95 % bands](calibration.png)

| file | what |
|---|---|
| `calibration.png`, `.svg` | the figure |
| `ranks.csv` | rank of the true value, one row a simulation |
| `simulations.csv` | true values, ranks, and what the gate says of each fit |
| `evenness.csv` | the table above |
| `study.json` | settings; `--resume` goes on with the same |
"""


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
