"""Analyse the step trace of a vLLM scheduler, or watch one as it grows.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    from bayes_sched.reports.document import Document
    from bayes_sched.trace.findings import Limits

PROGRAM = "analyze_trace"
say = partial(command.say, PROGRAM)

EXAMPLES = """\
examples:
  python scripts/analyze_trace.py analyze trace.jsonl
  python scripts/analyze_trace.py analyze 'logs/*.jsonl.gz' --report --name tonight
  python scripts/analyze_trace.py analyze trace.jsonl --json --slow-schedule-ms 5 | jq .findings
  python scripts/analyze_trace.py watch scheduler_profiling.jsonl

exit status: 0 done (watch: also when it is interrupted); 2 bad input or usage; 130 interrupted.
A run that fails leaves an existing result as it was.
"""


def parser() -> argparse.ArgumentParser:
    """The options; their defaults are those of the library, which a test holds them to."""
    made = command.Parser(
        prog=PROGRAM,
        description="Say what a scheduler's step trace shows, without any model.",
        epilog=EXAMPLES,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_analyze(commands)
    _add_watch(commands)
    return made


def _add_analyze(commands: argparse._SubParsersAction[command.Parser]) -> None:
    made = commands.add_parser(
        "analyze",
        help="statistics, findings and figures of a trace",
        epilog=EXAMPLES,
    )
    add = made.add_argument
    add("traces", nargs="+", metavar="TRACE", help="file (.gz, .zst, plain), 'PATTERN', or - for stdin")
    add("--max-bad-share", type=command.share, default=0.05, metavar="X", help=f"of unusable lines {DEFAULT}")
    add = made.add_argument_group("what comes out").add_argument
    add("--json", action="store_true", help="print one JSON document in place of the tables")
    add("--csv", type=Path, metavar="PATH", help="write the statistics as a CSV table")
    add("--report", action="store_true", help="write an HTML page, tables and figures")
    add("--name", help="name of the report (default: the trace's, and -analysis)")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=DEFAULT)
    add("--overwrite", action="store_true", help="replace an existing report or CSV table")
    add = made.add_argument_group("what is a finding").add_argument
    ms, one, zero = command.milliseconds, command.at_least(1), command.at_least(0)
    factor = command.number_option(float, lambda x: 1 < x < float("inf"), "a factor above 1")
    use = command.number_option(float, lambda x: 0 < x <= 1, "a share above 0 and at most 1")
    add("--slow-schedule-ms", type=ms, default=10.0, metavar="MS", help=f"scheduling above it {DEFAULT}")
    add("--schedule-rise", type=factor, default=2.0, metavar="X", help=f"sudden rise by so much {DEFAULT}")
    add("--long-queue", type=one, default=10, metavar="N", help=f"more waiting requests {DEFAULT}")
    add("--full-kv-cache", type=use, default=0.95, metavar="X", help=f"share of it in use {DEFAULT}")
    add("--top", type=zero, default=10, metavar="N", help=f"list so many of everything {DEFAULT}")


def _add_watch(commands: argparse._SubParsersAction[command.Parser]) -> None:
    made = commands.add_parser(
        "watch",
        help="current figures of a log that grows",
        description="Follow a growing log: one line of current figures. It survives that the log is rotated, "
        "truncated, deleted or not there yet. Ctrl-C ends it.",
        epilog=EXAMPLES,
    )
    seconds = command.number_option(float, lambda x: 0.05 <= x < 1e6, "a number of seconds of at least 0.05")
    add = made.add_argument
    add("trace", metavar="TRACE", help="the log, plain text; it need not exist yet")
    add("--interval", type=seconds, default=1.0, metavar="S", help=f"between two figures {DEFAULT}")
    add("--window", type=seconds, default=10.0, metavar="S", help=f"that the figures are of {DEFAULT}")
    add("--duration", type=seconds, metavar="S", help="end after so long (default: never)")
    add("--once", action="store_true", help="one line about the end of the log, and done")


@dataclass(frozen=True)
class Job:
    """What is to be analysed, checked as far as that goes without reading the trace."""

    options: argparse.Namespace
    folder: Path | None
    command: str


def prepare(options: argparse.Namespace, arguments: Sequence[str]) -> Job:
    """Check the arguments, cheapest first."""
    from bayes_sched.files import ANALYSIS, check_result
    from bayes_sched.trace.opening import expand_paths, result_name

    if options.name is not None and not options.report:
        raise InputError("--name names the report: give --report too")
    files, _ = expand_paths(options.traces)
    folder = None
    if options.report:
        name = f"{result_name(files)}-analysis" if options.name is None else options.name
        folder = check_result(options.results_dir, name, overwrite=options.overwrite, holds=ANALYSIS)
    if options.csv is not None:
        command.check_output(options.csv, inputs=files, overwrite=options.overwrite)
    line = command.shown_command(f"scripts/{PROGRAM}.py", arguments, options.traces)
    return Job(options, folder, line)


def run_analyze(job: Job) -> int:
    start = time.perf_counter()
    options = job.options
    with command.shown_progress(PROGRAM) as show:
        show("reading the trace", None)
        from bayes_sched.trace.analysis import analyze
        from bayes_sched.trace.reader import read_trace

        trace = read_trace(options.traces, max_bad_share=options.max_bad_share)
        show("analysing", None)
        found = analyze(trace, limits=limits(options))
        from bayes_sched.reports import trace as _  # noqa: F401, it registers the report
        from bayes_sched.reports.document import report

        document = report(found, command=job.command)
        paths = write(job, document, show)
    for warning in found.warnings:
        say(f"warning: {warning}")
    seconds = time.perf_counter() - start
    if options.json:
        numbers = {**document.numbers, "paths": paths, "seconds": round(seconds, 1)}
        del numbers["command"]
        print(json.dumps(numbers, indent=2, allow_nan=False))
        return command.DONE
    from bayes_sched.reports.terminal import terminal

    print(terminal(document))
    saved = [f"Saved {path}" for name, path in paths.items() if name in {"csv", "report"}]
    print("\n".join(["", *saved, f"Took {seconds:.1f} s"]))
    return command.DONE


def limits(options: argparse.Namespace) -> Limits:
    from bayes_sched.trace.findings import Limits

    return Limits(
        slow_schedule_ms=options.slow_schedule_ms,
        schedule_rise=options.schedule_rise,
        long_queue=options.long_queue,
        full_kv_cache=options.full_kv_cache,
        num_slowest=options.top,
    )


def write(job: Job, document: Document, show: command.Progress) -> dict[str, str]:
    """Write what was asked for; return the files by what they are."""
    paths: dict[str, str] = {}
    if job.options.csv is not None:
        text = document.frames["statistics"].to_csv(index=False, lineterminator="\n")
        command.write_whole(job.options.csv, text)
        paths["csv"] = str(job.options.csv)
    if job.folder is None:
        return paths
    show("writing the report", None)
    from bayes_sched.files import ANALYSIS, result_folder
    from bayes_sched.reports.write import write_report

    with result_folder(job.folder, overwrite=job.options.overwrite, holds=ANALYSIS) as folder:
        write_report(document, folder)
    paths["folder"] = str(job.folder)
    return paths | {
        "report": str(job.folder / "report.html"),
        "analysis": str(job.folder / ANALYSIS),
    }


def run_watch(options: argparse.Namespace) -> int:
    from bayes_sched.cli.watching import watch
    from bayes_sched.trace.opening import check_followable

    check_followable(options.trace, is_needed=options.once)
    end_s = 0.0 if options.once else options.duration
    with suppress(KeyboardInterrupt):
        watch(options.trace, interval_s=options.interval, window_s=options.window, duration_s=end_s, say=say)
    return command.DONE


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments; traces may stand before and after the options."""
    made = parser()
    (commands,) = (a for a in made._actions if isinstance(a, argparse._SubParsersAction))
    if arguments and arguments[0] in commands.choices:
        chosen = commands.choices[arguments[0]]
        options: argparse.Namespace = chosen.parse_intermixed_args(arguments[1:])
        options.command = arguments[0]
        return options
    return made.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments

    def body() -> int:
        options = options_of(given)
        return run_watch(options) if options.command == "watch" else run_analyze(prepare(options, given))

    return command.exit_status(PROGRAM, body)


if __name__ == "__main__":
    sys.exit(main())
