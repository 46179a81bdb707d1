"""Simulate pairs of servers with a known ratio, compare their fits, and see how often that is right.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sched import command
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from bayes_sched.comparison.pair_study import PairStudy, SimulatedPair

PROGRAM = "calibrate_comparison"
DEFAULT = "(default: %(default)s)"
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"
PAIRS, SETTINGS = "pairs.csv", "study.json"
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
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
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
    add(
        "--results-dir",
        type=Path,
        default=Path("results/comparison_calibration"),
        metavar="DIR",
        help=DEFAULT,
    )
    add("--resume", action="store_true", help="go on with the study in the folder")
    add("--overwrite", action="store_true", help="replace the study in the folder")
    return made


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Check the arguments as far as that goes without reading the trace."""
    options = parser().parse_args(arguments)
    if not options.design.is_file():
        raise InputError(f"--design {options.design}: no such file")
    folder: Path = options.results_dir
    if options.resume and options.overwrite:
        raise InputError("--resume and --overwrite contradict each other")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--results-dir {folder}: not a folder")
    if options.resume:
        check_same(folder, options)
    elif (folder / PAIRS).exists() and not options.overwrite:
        raise InputError(f"{folder} holds a study: give --resume, --overwrite or another --results-dir")
    options.command = command.shown_command(
        f"scripts/{PROGRAM}.py", [text for text in arguments if text not in ("--resume", "--overwrite")], ()
    )
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What has to be the same for pairs to belong to one study."""
    names = ("seed", "rows", "probability", "draws", "tune", "chains")
    return {name: getattr(options, name) for name in names} | {"design": options.design.name}


def check_same(folder: Path, options: argparse.Namespace) -> None:
    try:
        before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--resume: {folder} holds no study ({SETTINGS} cannot be read)") from error
    for name, value in settings_of(options).items():
        if before.get(name) != value:
            raise InputError(f"--resume: the study in {folder} has {name} {before.get(name)}, not {value}")


def run(options: argparse.Namespace) -> int:
    folder: Path = options.results_dir
    study = make_study(options)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAIRS
    if not options.resume:
        path.unlink(missing_ok=True)
        (folder / SETTINGS).write_text(json.dumps(settings_of(options), indent=2) + "\n", encoding="utf-8")
    import pandas as pd

    done = int(pd.read_csv(path)["pair"].max()) + 1 if path.exists() else 0
    failed = 0
    for pair in study.run(range(done, options.pairs)):
        append(path, pair)
        if "error" in pair.account:
            failed += 1
            say(f"pair {pair.number}: {pair.account['error']}")
        elif (pair.number + 1) % 10 == 0:
            say(f"{pair.number + 1} of {options.pairs} pairs")
    print(summarise(pd.read_csv(path), options))
    return command.DONE


def make_study(options: argparse.Namespace) -> PairStudy:
    from bayes_sched.trace import clean_steps, read_trace

    steps = clean_steps(read_trace(options.design).steps).steps
    say("loading the libraries")
    import logging

    from bayes_sched.benchmarking import choose_rows
    from bayes_sched.comparison.pair_study import PairStudy
    from bayes_sched.model import all_parameters, load_model
    from bayes_sched.priors import Priors
    from bayes_sched.settings import SamplerSettings
    from bayes_sched.simulation_calibration import CalibrationStudy

    logging.getLogger("pymc").setLevel(logging.WARNING)
    model = load_model("saturation")
    noise = model.noises[0]
    fits = CalibrationStudy(
        model,
        choose_rows(steps, options.rows, seed=options.seed),
        Priors.from_parameters(all_parameters(model, noise)),
        noise=noise,
        settings=SamplerSettings(
            draws=options.draws, tune=options.tune, chains=options.chains, seed=options.seed
        ),
    )
    return PairStudy(fits, probability=options.probability)


def append(path: Path, pair: SimulatedPair) -> None:
    """Add the rows of a pair; a pair that is in the file is done."""
    import pandas as pd

    rows = pair.table if len(pair.table) else pd.DataFrame([{"batch_size": None}])
    table = rows.assign(
        pair=pair.number,
        gates_passed=pair.account.get("gates_passed", 0),
        seconds=round(pair.account["seconds"], 2),
        error=pair.account.get("error"),
    )
    columns = ["pair", *COLUMNS, "gates_passed", "seconds", "error"]
    with path.open("a", encoding="utf-8", newline="") as stream:
        text = table.reindex(columns=columns)
        text.to_csv(stream, header=stream.tell() == 0, index=False, float_format="%.6g")
        stream.flush()
        os.fsync(stream.fileno())


COLUMNS = (
    *("batch_size", "total_tokens", "true_ratio", "ratio_median", "ratio_lower", "ratio_upper", "covered"),
    *("p_faster", "first_is_faster", "rank"),
)


def summarise(pairs: pd.DataFrame, options: argparse.Namespace) -> str:
    """Write the tables, the figure and the account; return the summary."""
    from bayes_sched.comparison.pair_study import coverage_table, one_step_each, reliability_table
    from bayes_sched.plots.comparison_calibration import comparison_calibration
    from bayes_sched.plots.style import save_figure
    from bayes_sched.simulation_calibration import evenness

    folder: Path = options.results_dir
    compared = pairs[pairs["covered"].notna()]
    if compared.empty:
        raise InputError(f"no pair could be fitted; see the column error of {folder / PAIRS}")
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
