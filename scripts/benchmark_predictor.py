"""Try out a compiled predictor: how fast, how close to its fit, and how soon it notices a drift.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from bayes_sched.predictor.predictor import Predictor

PROGRAM = "benchmark_predictor"
ROOT = Path(__file__).resolve().parent.parent
say = partial(command.say, PROGRAM)

EPILOG = """\
example:
  python scripts/benchmark_predictor.py results/h100/predictor.npz trace.jsonl --fit results/h100

LightGBM is timed beside it where it is installed. exit status: 0 done; 2 bad input or usage.
"""

_FRESH = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import numpy
numpy_wall, numpy_cpu = time.perf_counter() - wall, time.process_time() - cpu
import sys
sys.path.insert(0, {root!r})
from bayes_sched import Predictor
Predictor.load({path!r})
print(numpy_wall, numpy_cpu, time.perf_counter() - wall, time.process_time() - cpu)
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = command.Parser(
        prog=PROGRAM,
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog=EPILOG,
    )
    add = made.add_argument
    add("predictor", type=Path, metavar="PREDICTOR", help="a predictor.npz made by compile_predictor.py")
    add("trace", metavar="TRACE", help="steps to ask for and to replay, in order (.gz, .zst, plain)")
    add("--fit", type=Path, metavar="RESULT", help="folder of the fit, to measure the accuracy against")
    add(
        "--factors",
        type=_factors,
        default=(1.1, 1.2, 1.5),
        metavar="X,X,...",
        help="drifts from the middle on",
    )
    add("--tolerance", type=command.share, default=0.075, metavar="X", help=f"of the monitor {DEFAULT}")
    add("--runs", type=command.at_least(1), default=5, metavar="N", help=f"fresh processes timed {DEFAULT}")
    add(
        "--seed",
        type=command.at_least(0),
        default=0,
        help=f"of the steps that accuracy is measured at {DEFAULT}",
    )
    add("--json", action="store_true", help="print one JSON document in place of the text")
    return made


def _factors(text: str) -> tuple[float, ...]:
    try:
        factors = tuple(float(part) for part in text.split(","))
    except ValueError:
        factors = (-1.0,)
    if not all(0.0 < factor < 100.0 for factor in factors):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of factors such as 1.1,1.5")
    return factors


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Check the arguments as far as that goes without reading a trace."""
    options = parser().parse_args(arguments)
    for path in (options.predictor, Path(options.trace)):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    if options.fit is not None:
        from bayes_sched.files import fit_file

        options.fit = fit_file(options.fit)
    return options


def run(options: argparse.Namespace) -> int:
    from bayes_sched.predictor.monitor import MonitorSettings
    from bayes_sched.predictor.predictor import Predictor

    predictor = Predictor.load(options.predictor, settings=MonitorSettings(tolerance=options.tolerance))
    say("timing fresh processes")
    found: dict[str, Any] = {"predictor": predictor.provenance.name, "fresh": fresh(options)}
    from bayes_sched.studies.predictor import accuracy, replay, speed
    from bayes_sched.trace.cleaning import clean_steps
    from bayes_sched.trace.reader import read_trace

    steps = clean_steps(read_trace(options.trace).steps).steps
    say("timing answers")
    found["speed_s"] = speed(predictor, steps, others=lightgbm(steps))
    if options.fit is not None:
        from bayes_sched.posterior.fitted import FittedModel

        say("comparing with the fit")
        found["largest_errors"] = accuracy(predictor, FittedModel.load(options.fit), seed=options.seed)
    say("replaying the trace")
    replays = [replay(predictor, steps, factor=factor) for factor in (1.0, *options.factors)]
    found["replays"] = [dataclasses.asdict(one) for one in replays]
    print(json.dumps(found, indent=2) if options.json else as_text(found, predictor))
    return command.DONE


def fresh(options: argparse.Namespace) -> dict[str, float]:
    """Return seconds of wall and CPU time of import and load, numpy's import among them: the best run."""
    code = _FRESH.format(root=str(ROOT), path=str(options.predictor.resolve()))
    rows: list[list[float]] = []
    for _ in range(options.runs):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        rows.append([float(part) for part in done.stdout.split()])
    names = ("numpy_wall_s", "numpy_cpu_s", "all_wall_s", "all_cpu_s")
    return dict(zip(names, sorted(rows, key=_wall)[0], strict=True))


def _wall(row: list[float]) -> float:
    return row[2]


def lightgbm(steps: pd.DataFrame) -> dict[str, Callable[[Any, Any], object]]:
    """Return a LightGBM model's `predict`, if there is LightGBM: a function of arrays of B and S."""
    try:
        import lightgbm  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        say("LightGBM is not installed: left out")
        return {}
    import numpy as np

    table = steps[["batch_size", "total_tokens"]].to_numpy(float)
    data = lightgbm.Dataset(table, steps["latency_ms"].to_numpy(float))
    booster = lightgbm.train({"verbosity": -1, "num_threads": 1}, data, num_boost_round=100)
    return {"LightGBM, 100 trees": lambda b, s: booster.predict(np.column_stack([b, s]), num_threads=1)}


def as_text(found: dict[str, Any], predictor: Predictor) -> str:
    times, settings = found["fresh"], predictor.monitor.settings
    parts = [
        f"{found['predictor']}, in a fresh process: import and load {times['all_wall_s']:.3f} s "
        f"({times['all_cpu_s']:.3f} s of CPU), {times['all_wall_s'] / times['numpy_wall_s']:.2f} x the "
        f"import of numpy alone ({times['numpy_wall_s']:.3f} s, {times['numpy_cpu_s']:.3f} s of CPU)",
        speed_text(found["speed_s"]),
    ]
    if "largest_errors" in found:
        shown = ", ".join(f"{name} {value:.3%}" for name, value in found["largest_errors"].items())
        parts.append(f"largest errors against every draw of the fit, inside the region: {shown}")
    rows = found["replays"]
    parts.append(
        f"replay of {rows[0]['num_steps']:,} steps: alarm at {settings.tolerance:.1%} off, false-alarm bound "
        f"{settings.false_alarm_rate:g} a step\n{replay_text(rows)}\n"
        "Each alarm is cleared so that the next can come. Largest evidence: in the first half; an alarm is 1."
    )
    return "\n\n".join(parts)


def speed_text(speed_s: dict[str, dict[str, float]]) -> str:
    base = speed_s["equation in numpy"]
    rows = [("", "one step, us", "a million, s", "one / equation", "million / equation")]
    for name, row in speed_s.items():
        has_many = row["many"] == row["many"]
        many = (f"{row['many']:.3f}", f"{row['many'] / base['many']:.2f}") if has_many else ("", "")
        rows.append((name, f"{row['one'] * 1e6:.2f}", many[0], f"{row['one'] / base['one']:.2f}", many[1]))
    return "\n".join(f"{a:22s}{b:>14s}{c:>14s}{d:>16s}{e:>20s}" for a, b, c, d, e in rows)


def replay_text(rows: list[dict[str, Any]]) -> str:
    head = ("second half", "alarms before", "after", "noticed after", "level", "90 % band", "uncorrected")
    lines = [
        f"{head[0]:12s}{head[1]:>15s}{head[2]:>7s}{head[3]:>15s}{head[4]:>8s}{head[5]:>11s}{head[6]:>13s}"
    ]
    lines[0] += f"{'anomalous':>11s}{'largest evidence':>18s}"
    for row in rows:
        delay = "-" if row["delay"] is None else f"{row['delay']:,} steps"
        lines.append(
            f"{'x ' + format(row['factor'], 'g'):12s}{row['alarms_before']:15d}{row['alarms_after']:7d}"
            f"{delay:>15s}{row['level']:8.3f}{row['coverage']:11.1%}{row['coverage_uncorrected']:13.1%}"
            f"{row['anomalous_share']:11.2%}{row['largest_evidence']:18.1e}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
