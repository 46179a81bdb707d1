"""Simulate pairs of servers with a known ratio, compare their fits, and see how often that is right.

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

    from bayes_sched.studies.comparison import PairStudy, SimulatedPair

PROGRAM = "calibrate_comparison"
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"
say = partial(command.say, PROGRAM)

EPILOG = """\
example:
  python scripts/calibrate_comparison.py --pairs 100 --seed 1

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
    add("--pairs", type=command.at_least(10), default=100, metavar="N", help=DEFAULT)
    add("--seed", type=command.at_least(0), default=1, metavar="N", help=DEFAULT)
    add("--design", type=Path, default=EXAMPLE, metavar="TRACE", help="its (B, S) (default: the example's)")
    add("--rows", type=command.at_least(20), default=80, metavar="N", help=f"steps of a server {DEFAULT}")
    add("--probability", type=command.probability, default=0.9, metavar="P", help=f"of intervals {DEFAULT}")
    add("--draws", type=command.at_least(50), default=300, metavar="N", help=f"kept of each chain {DEFAULT}")
    add(
        "--tune", type=command.at_least(1), default=200, metavar="N", help=f"of each chain and part {DEFAULT}"
    )
    add("--chains", type=command.at_least(2), default=2, metavar="N", help=DEFAULT)
    command.add_study_options(made, folder="results/comparison_calibration")
    return made


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Check the arguments as far as that goes without reading the trace."""
    options = parser().parse_args(arguments)
    if not options.design.is_file():
        raise InputError(f"--design {options.design}: no such file")
    runs_of(options).check(resume=options.resume, overwrite=options.overwrite)
    options.command = command.shown_study(f"scripts/{PROGRAM}.py", arguments)
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What has to be the same for pairs to belong to one study."""
    names = ("seed", "rows", "probability", "draws", "tune", "chains")
    return {name: getattr(options, name) for name in names} | {"design": options.design.name}


def runs_of(options: argparse.Namespace) -> StudyFolder:
    return StudyFolder(
        folder=options.results_dir, table="pairs.csv", number="pair", settings=settings_of(options)
    )


def run(options: argparse.Namespace) -> int:
    study, runs = make_study(options), runs_of(options)
    for pair in study.run(range(runs.begin(resume=options.resume), options.pairs)):
        runs.append(rows_of(pair))
        if "error" in pair.account:
            say(f"pair {pair.number}: {pair.account['error']}")
        elif (pair.number + 1) % 10 == 0:
            say(f"{pair.number + 1} of {options.pairs} pairs")
    print(summarise(runs.read(), options))
    return command.DONE


def make_study(options: argparse.Namespace) -> PairStudy:
    from bayes_sched.trace.cleaning import clean_steps
    from bayes_sched.trace.reader import read_trace

    steps = clean_steps(read_trace(options.design).steps).steps
    say("loading the libraries")
    import logging

    from bayes_sched.model.protocol import load_model
    from bayes_sched.sampling.nuts import SamplerSettings
    from bayes_sched.studies.comparison import PairStudy
    from bayes_sched.studies.sbc import CalibrationStudy

    logging.getLogger("pymc").setLevel(logging.WARNING)
    fits = CalibrationStudy.of_design(
        steps,
        rows=options.rows,
        model=load_model("saturation"),
        settings=SamplerSettings(
            draws=options.draws, tune=options.tune, chains=options.chains, seed=options.seed
        ),
    )
    return PairStudy(fits, probability=options.probability)


def rows_of(pair: SimulatedPair) -> pd.DataFrame:
    import pandas as pd

    rows = pair.table if len(pair.table) else pd.DataFrame([{"batch_size": None}])
    table = rows.assign(
        pair=pair.number,
        gates_passed=pair.account.get("gates_passed", 0),
        seconds=round(pair.account["seconds"], 2),
        error=pair.account.get("error"),
    )
    return table.reindex(columns=["pair", *COLUMNS, "gates_passed", "seconds", "error"])


COLUMNS = (
    *("batch_size", "total_tokens", "true_ratio", "ratio_median", "ratio_lower", "ratio_upper", "covered"),
    *("p_faster", "first_is_faster", "rank"),
)


def summarise(pairs: pd.DataFrame, options: argparse.Namespace) -> str:
    """Write the tables, the figure and the account; return the summary."""
    from bayes_sched.reports.plots.studies import comparison_calibration
    from bayes_sched.reports.plots.style import save_figure
    from bayes_sched.studies.comparison import coverage_table, one_step_each, reliability_table
    from bayes_sched.studies.sbc import evenness

    folder: Path = options.results_dir
    compared = pairs[pairs["covered"].notna()]
    if compared.empty:
        raise InputError(f"no pair could be fitted; see the column error of {runs_of(options).path}")
    coverage, chosen = coverage_table(compared), one_step_each(compared)
    reliability = reliability_table(chosen)
    coverage.to_csv(folder / "coverage.csv", index=False, float_format="%.4g")
    reliability.to_csv(folder / "reliability.csv", index=False, float_format="%.4g")
    save_figure(comparison_calibration(compared, probability=options.probability), folder, "calibration")
    even = evenness(chosen["rank"].to_numpy(int))
    each = pairs.drop_duplicates("pair")
    text = "\n".join(
        [
            f"Coverage of the {100 * options.probability:g}% intervals of the ratio of mean latencies:",
            coverage.round(3).to_string(index=False),
            "",
            "P(first is faster), one step a pair:",
            reliability.round(3).to_string(index=False),
            "",
            f"Ranks of the true ratio among 99 draws: p-value of evenness {even.p_value:.3f}.",
            f"{len(each):,} pairs, {int(each['error'].notna().sum())} not compared for an error; of "
            f"{2 * len(each):,} fits {int(each['gates_passed'].sum()):,} passed the gate. Seconds a pair: "
            f"median {each['seconds'].median():.1f}, sum {each['seconds'].sum():,.0f}.",
        ]
    )
    command.write_whole(folder / "README.md", readme(text, options))
    return text


def readme(text: str, options: argparse.Namespace) -> str:
    return f"""# Does the comparison of servers find the truth?

Made by

    {options.command}

For each pair: the first server's parameters are drawn from the documented priors (until its steps take a
plausible time), the second takes a known factor of 0.8 to 1.25 of it for every step. {options.rows} steps
of each are simulated (the (B, S) of a random choice from {options.design.name}) and fitted with NUTS, and
the two posteriors are compared. Every pair counts, those whose fits failed the gate included.

```
{text}
```

![Intervals against true ratios, and reliability of the probability to be faster](calibration.png)

| file | what |
|---|---|
| `calibration.png`, `.svg` | the figure |
| `pairs.csv` | one row a pair and probed step |
| `coverage.csv`, `reliability.csv` | the tables above |
| `study.json` | settings; `--resume` goes on with the same |
"""


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
