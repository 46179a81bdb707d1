"""See how often promises of latency are kept: by simulated servers, and by steps held out of real traces.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError
from bayes_sched.studies.runs import SETTINGS, StudyFolder

if TYPE_CHECKING:
    from bayes_sched.reports.studies import Summary
    from bayes_sched.studies.sla_servers import ServerStudy
    from bayes_sched.studies.sla_traces import TraceStudy

PROGRAM = "calibrate_promises"
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"
SPLITS = ("random", "blocks")
FOLDERS = SERVERS, TRACES = "servers", "traces"
say = partial(command.say, PROGRAM)

EPILOG = """\
example:
  python scripts/calibrate_promises.py --servers 200 --traces h100.jsonl.gz a6000.jsonl.gz

Two studies, each in a folder of its own inside --results-dir. servers: draw a server, simulate and fit a
trace of it, promise, and hold the promises against the truth. traces: fit four fifths of a trace, promise,
and count how many of the other steps are late. --servers 0 leaves the first out, no --traces the second.

An interrupted study goes on where it stopped when it is called again with --resume.

exit status: 0 done; 2 bad input or usage; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    made = command.Parser(
        prog=PROGRAM,
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog=EPILOG,
    )
    zero, one = command.at_least(0), command.at_least(1)
    add = made.add_argument
    add("--seed", type=zero, default=1, metavar="N", help=DEFAULT)
    add("--quantile", type=command.probability, default=0.99, metavar="Q", help=f"of promises {DEFAULT}")
    add("--confidence", type=command.probability, default=0.95, metavar="C", help=f"of promises {DEFAULT}")
    add("--draws", type=command.at_least(50), default=500, metavar="N", help=f"kept of each chain {DEFAULT}")
    add("--tune", type=one, default=200, metavar="N", help=f"of each chain and part {DEFAULT}")
    add("--chains", type=command.at_least(2), default=2, metavar="N", help=DEFAULT)
    add("--json", action="store_true", help="print one JSON document in place of the tables")
    command.add_study_options(made, folder="results/promises")
    add = made.add_argument_group("simulated servers").add_argument
    add("--servers", type=zero, default=200, metavar="N", help=DEFAULT)
    add("--design", type=Path, default=EXAMPLE, metavar="TRACE", help="its (B, S) (default: the example's)")
    add("--rows", type=command.at_least(20), default=500, metavar="N", help=f"steps of a server {DEFAULT}")
    add = made.add_argument_group("real traces").add_argument
    add("--traces", nargs="+", default=[], metavar="FILE", help="hold a fifth of each out, in two ways")
    add("--max-rows", type=command.at_least(20), default=3000, metavar="N", help=f"fitted of each {DEFAULT}")
    return made


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Check the arguments as far as that goes without reading a trace."""
    options = parser().parse_args(arguments)
    if not options.servers and not options.traces:
        raise InputError("--servers 0 and no --traces: nothing to do")
    if options.servers and not options.design.is_file():
        raise InputError(f"--design {options.design}: no such file")
    from bayes_sched.trace.opening import expand_paths

    options.traces, warnings = expand_paths(options.traces) if options.traces else ([], [])
    for warning in warnings:
        say(f"warning: {warning}")
    if options.resume and not any((options.results_dir / name / SETTINGS).exists() for name in FOLDERS):
        raise InputError(f"--resume: {options.results_dir} holds no study")
    for part in parts_of(options):
        part.check(resume=resumes(part, options), overwrite=options.overwrite)
    options.command = command.shown_study(f"scripts/{PROGRAM}.py", arguments)
    return options


def resumes(part: StudyFolder, options: argparse.Namespace) -> bool:
    """Say whether a part goes on; one that has not begun begins, whatever became of the other."""
    return bool(options.resume) and (part.folder / SETTINGS).exists()


def parts_of(options: argparse.Namespace) -> list[StudyFolder]:
    """Return the studies that are asked for."""
    parts = [servers_of(options)] if options.servers else []
    return [*parts, traces_of(options)] if options.traces else parts


def common(options: argparse.Namespace) -> dict[str, Any]:
    names = ("seed", "quantile", "confidence", "draws", "tune", "chains")
    return {name: getattr(options, name) for name in names}


def servers_of(options: argparse.Namespace) -> StudyFolder:
    settings = common(options) | {"rows": options.rows, "design": options.design.name}
    return StudyFolder(
        folder=options.results_dir / SERVERS, table="servers.csv", number="server", settings=settings
    )


def traces_of(options: argparse.Namespace) -> StudyFolder:
    names = [Path(name).name for name in options.traces]
    settings = common(options) | {"max_rows": options.max_rows, "traces": names}
    return StudyFolder(
        folder=options.results_dir / TRACES, table="cells.csv", number="run", settings=settings
    )


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; return the exit status."""
    with command.noticed_interrupts() as check_interrupts, command.shown_progress(PROGRAM) as show:
        show("loading the libraries", None)
        import logging

        logging.getLogger("pymc").setLevel(logging.WARNING)
        servers = make_server_study(options) if options.servers else None
        traces = make_trace_study(options) if options.traces else None  # what cannot be used leaves no folder
        if servers is not None:
            run_servers(options, servers, show, check_interrupts)
        if traces is not None:
            run_traces(options, traces, show, check_interrupts)
    found = summaries(options)
    if options.json:
        numbers = {name: numbers for name, (_, numbers) in found.items()}
        print(json.dumps({**numbers, "command": options.command}, indent=2, allow_nan=False))
    else:
        print("\n\n".join(text for text, _ in found.values()))
    return command.DONE


def run_servers(
    options: argparse.Namespace,
    study: ServerStudy,
    show: command.Progress,
    check_interrupts: Callable[[], None],
) -> None:
    """Simulate, fit and promise, and keep each server as it is done."""
    part = servers_of(options)
    for number in range(part.begin(resume=resumes(part, options)), options.servers):
        show(f"simulated servers, from {number - number % 10:,}", number / options.servers)
        server = study.run_one(number)
        check_interrupts()
        part.append(server.rows)
        if server.account.get("error"):
            say(f"server {number}: {server.account['error']}")


def run_traces(
    options: argparse.Namespace,
    study: TraceStudy,
    show: command.Progress,
    check_interrupts: Callable[[], None],
) -> None:
    """Hold out, fit and promise, and keep each run as it is done."""
    part = traces_of(options)
    for number in range(part.begin(resume=resumes(part, options)), len(study)):
        show(study.title(number), number / len(study))
        rows = study.run_one(number)
        check_interrupts()
        part.append(rows)
        if error := rows["error"].iloc[0]:
            say(f"{study.title(number)}: {error}")


def make_server_study(options: argparse.Namespace) -> ServerStudy:
    from bayes_sched.model.protocol import load_model_file
    from bayes_sched.sampling.nuts import SamplerSettings
    from bayes_sched.studies.sbc import CalibrationStudy
    from bayes_sched.studies.sla_servers import ServerStudy
    from bayes_sched.trace.cleaning import clean_steps
    from bayes_sched.trace.reader import read_trace

    loaded = load_model_file("saturation")
    fits = CalibrationStudy.of_design(
        clean_steps(read_trace(options.design).steps).steps,
        rows=options.rows,
        model=loaded.model,
        settings=SamplerSettings(
            draws=options.draws, tune=options.tune, chains=options.chains, seed=options.seed
        ),
    )
    return ServerStudy(fits, loaded, quantile=options.quantile, confidence=options.confidence)


def make_trace_study(options: argparse.Namespace) -> TraceStudy:
    from bayes_sched.sampling.nuts import SamplerSettings
    from bayes_sched.studies.prediction import servers_of as grouped
    from bayes_sched.studies.sla_traces import TraceStudy
    from bayes_sched.trace.reader import read_trace

    settings = SamplerSettings(
        draws=options.draws, tune=options.tune, chains=options.chains, seed=options.seed
    )
    return TraceStudy(
        grouped([read_trace(name) for name in options.traces], pooled=False),
        splits=SPLITS,
        settings=settings,
        max_rows=options.max_rows,
        quantile=options.quantile,
        confidence=options.confidence,
    )


def summaries(options: argparse.Namespace) -> dict[str, Summary]:
    """Write the tables, the figures and the accounts; return each in words and in numbers."""
    from bayes_sched.reports.studies import write_server_summary, write_trace_summary

    found = {}
    if options.servers:
        part = servers_of(options)
        found["servers"] = write_server_summary(
            part.folder, part.read(), settings=part.settings, command=options.command
        )
    if options.traces:
        part = traces_of(options)
        found["traces"] = write_trace_summary(
            part.folder, part.read(), settings=part.settings, command=options.command
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
