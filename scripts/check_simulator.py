"""Hold the scheduler simulator against a real server: its decisions, and the times that clients measured.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    from bayes_sched.planning.server_record import ServerRecord
    from bayes_sched.posterior.fitted import FittedModel
    from bayes_sched.studies.simulator import SimulatorCheck

PROGRAM = "check_simulator"
SETTINGS = ("token_budget", "max_num_seqs", "kv_tokens", "block_tokens")
say = partial(command.say, PROGRAM)

EXAMPLES = """\
The steps are cut in two where the second half of the requests begins. A model is fitted to the first half;
its posterior draws replay all requests, and those of the second half are held against what clients measured.

examples:
  python scripts/check_simulator.py --trace examples/vllm_cpu_requests_steps.jsonl.gz \\
      --requests examples/vllm_cpu_requests.jsonl.gz
  python scripts/check_simulator.py --trace steps.jsonl --requests requests.csv --report --name tonight
  python scripts/check_simulator.py --trace examples/vllm_cpu_requests_tight_steps.jsonl.gz \\
      --requests examples/vllm_cpu_requests_tight.jsonl.gz

Settings of the scheduler that are not given are taken from the trace's side-car (LOG.meta.json beside it),
and what that does not tell from the steps themselves.

exit status: 0 done, whatever was found; 2 bad input or usage; 3 the chains have not converged;
130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The options; their defaults are those of the library."""
    made = command.Parser(
        prog=PROGRAM,
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog=EXAMPLES,
    )
    count, ms, add = command.at_least(1), command.milliseconds, made.add_argument
    add("--trace", required=True, metavar="FILE", help="the server's steps, as the recorder wrote them")
    add(
        "--requests",
        type=Path,
        required=True,
        metavar="FILE",
        help=".csv or .jsonl (.gz): arrival_s (Unix time), prompt_tokens, output_tokens, ttft_ms, tpot_ms, "
        "e2e_ms",
    )
    add = made.add_argument_group("scheduler").add_argument
    told = "(default: the side-car's, else"
    add("--token-budget", type=count, metavar="S", help=f"max_num_batched_tokens {told} the largest step's)")
    add("--max-num-seqs", type=count, metavar="B", help=f"most running requests {told} what the trace shows)")
    add("--kv-tokens", type=count, metavar="N", help=f"tokens that the KV cache holds {told} no limit)")
    add("--block-tokens", type=count, metavar="N", help=f"of a block of the KV cache {told} 16)")
    add = made.add_argument_group("fit and simulation").add_argument
    add(
        "--model",
        default="saturation",
        help=f"name of a model of B and S, or a .py file, which is run {DEFAULT}",
    )
    add(
        "--max-latency-ms",
        type=ms,
        default=300.0,
        metavar="MS",
        help=f"longer steps are not fitted {DEFAULT}",
    )
    add("--draws", type=count, default=200, metavar="N", help=f"posterior draws, a replay each {DEFAULT}")
    add("--probability", type=command.probability, default=0.9, metavar="P", help=f"of intervals {DEFAULT}")
    add("--seed", type=command.at_least(0), default=0, metavar="N", help=DEFAULT)
    add = made.add_argument_group("what comes out").add_argument
    add("--json", action="store_true", help="print one JSON document in place of the text")
    add("--report", action="store_true", help="write a page of Markdown, tables and figures")
    add("--name", help="name of the report (default: the trace's, and -simulator)")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=DEFAULT)
    add("--overwrite", action="store_true", help="replace an existing report")
    return made


@dataclass(frozen=True)
class Job:
    """What is to be checked, as far as that goes without reading the files."""

    options: argparse.Namespace
    folder: Path | None
    command: str


def prepare(arguments: Sequence[str]) -> Job:
    """Check the arguments, cheapest first."""
    options = parser().parse_args(arguments)
    from bayes_sched.trace.opening import expand_paths

    files, _ = expand_paths(options.trace)
    if not options.requests.is_file():
        raise InputError(f"{options.requests}: no such file")
    line = command.shown_command(f"scripts/{PROGRAM}.py", arguments, [options.trace, str(options.requests)])
    return Job(options, report_folder(options, files), line)


def report_folder(options: argparse.Namespace, files: Sequence[str]) -> Path | None:
    if options.name is not None and not options.report:
        raise InputError("--name names the report: give --report too")
    if not options.report:
        return None
    from bayes_sched.files import SIMULATOR, check_result
    from bayes_sched.trace.opening import result_name

    name = f"{result_name(files)}-simulator" if options.name is None else options.name
    return check_result(options.results_dir, name, overwrite=options.overwrite, holds=SIMULATOR)


def run(job: Job) -> int:
    """Do what was asked for; return the exit status."""
    options = job.options
    record = read(options)
    for warning in record.warnings:
        say(f"warning: {warning}")
    with command.noticed_interrupts() as check_interrupts, command.shown_progress(PROGRAM) as show:
        fit = fit_first_half(record, options, show)
        check_interrupts()
        from bayes_sched.studies.simulator import check_simulator

        found = check_simulator(
            fit,
            record,
            record.settings(**{name: getattr(options, name) for name in SETTINGS}),
            num_draws=options.draws,
            probability=options.probability,
            seed=options.seed,
            progress=show,
        )
        check_interrupts()
        path = write(job, found, show)
    show_result(found, path, is_json=options.json)
    for problem in fit.metadata.problems:
        say(f"not converged: {problem}")
    return command.DONE if fit.converged else command.NOT_CONVERGED


def read(options: argparse.Namespace) -> ServerRecord:
    from bayes_sched.planning.server_record import ServerRecord, read_measured_requests
    from bayes_sched.trace.reader import read_trace
    from bayes_sched.trace.sidecar import read_scheduler

    requests, trace = read_measured_requests(options.requests), read_trace(options.trace)
    told = read_scheduler([source.path for source in trace.sources])
    return ServerRecord.of(trace.steps, requests, told=told)


def fit_first_half(record: ServerRecord, options: argparse.Namespace, show: command.Progress) -> FittedModel:
    show("loading the libraries", None)
    import logging

    from bayes_sched.posterior.fit import fit
    from bayes_sched.sampling.nuts import SamplerSettings

    logging.getLogger("pymc").setLevel(logging.WARNING)
    result = fit(
        record.steps[record.is_first_step].reset_index(drop=True),
        model=options.model,
        max_latency_ms=options.max_latency_ms,
        settings=SamplerSettings(seed=options.seed),
        name="first-half",
        progress=show,
    )
    for warning in result.fit.warnings:
        say(f"warning: {warning}")
    return result.fit


def show_result(found: SimulatorCheck, path: Path | None, *, is_json: bool) -> None:
    if is_json:
        report = {"report": None if path is None else str(path)}
        print(json.dumps({**found.to_dict(), **report}, indent=2, allow_nan=False))
        return
    from bayes_sched.reports.studies import check_text

    print("\n\n".join([check_text(found), *([] if path is None else [f"Saved {path}"])]))


def write(job: Job, found: SimulatorCheck, show: command.Progress) -> Path | None:
    """Write the report where one is wanted; return its page."""
    if job.folder is None:
        return None
    show("writing the report", None)
    from bayes_sched.files import SIMULATOR, result_folder
    from bayes_sched.reports.page import write_json, write_tables
    from bayes_sched.reports.plots.studies import decisions_over_time, predicted_times
    from bayes_sched.reports.plots.style import save_figure

    tables = {"requests": found.table, "decisions": found.of_clock.steps}
    with result_folder(job.folder, overwrite=job.options.overwrite, holds=SIMULATOR) as folder:
        write_tables(tables, folder / "tables")
        (folder / "figures").mkdir()
        save_figure(predicted_times(found), folder / "figures", "predicted_times")
        save_figure(decisions_over_time(found), folder / "figures", "decisions_over_time")
        write_json({**found.to_dict(), "command": job.command}, folder / SIMULATOR)
        command.write_whole(folder / "README.md", readme(job, found))
    return job.folder / "README.md"


def readme(job: Job, found: SimulatorCheck) -> str:
    from bayes_sched.reports.studies import check_text

    return f"""# The simulator beside a real server

Made by

    {job.command}

```
{check_text(found)}
```

*Told the queue*: the simulated scheduler is told, step by step, how many requests wait or run, and nothing
else of what the real one did. *Told the clock*: requests come when clients sent them, plus the typical way to
the scheduler, and steps end when the real ones did. *Error with own steps*: of one replay with the server's
own step times, so that none of it is the fit's.

What clients measured *beyond the engine* is of such a replay of the first half: HTTP, tokenisation, the way
there and back, and whatever the simulation gets wrong. Predictions with it added rest on the second half
being like the first; what the simulator knows by itself are the times of the engine alone.

![Requests answered within a time: measured, and predicted](figures/predicted_times.png)

![Requests and tokens of each step: of vLLM, and simulated](figures/decisions_over_time.png)

| file | what |
|---|---|
| `tables/requests.csv` | the times above, with full precision |
| `tables/decisions.csv` | requests and tokens of each step, real and simulated (told the clock) |
| `simulator.json` | everything, for machines |
"""


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
