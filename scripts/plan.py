"""Plan a server: settings with most throughput, how many servers a workload needs, the next step's budget.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    from bayes_sched.planning.capacity import CapacityPlan
    from bayes_sched.planning.settings import Optimum
    from bayes_sched.planning.workload import PoissonWorkload, Workload
    from bayes_sched.posterior.fitted import FittedModel
    from bayes_sched.reports.document import Document

PROGRAM = "plan"
REFUSED = 1
"""Exit status where the plan cannot be made: an answer, not an error."""
LIMITS = ("ttft_ms", "tpot_ms", "e2e_ms")
GENERATED = ("prompt_tokens", "output_tokens", "prompt_spread", "output_spread", "requests")
say = partial(command.say, PROGRAM)

EXAMPLES = """\
examples:
  python scripts/plan.py optimize results/h100 --slo-ms 50 --quantile 0.99 --confidence 0.95
  python scripts/plan.py capacity results/h100 --rate 5/s --prompt-tokens 512 --output-tokens 128 \\
      --max-num-seqs 24 --ttft-ms 500 --tpot-ms 40
  python scripts/plan.py capacity results/h100 --workload requests.csv --kv-tokens 100000 --replicas 2 --json
  python scripts/plan.py budget results/h100 --slo-ms 40 --decodes 12 --waiting-tokens 2000

exit status: 0 the plan can be made: some settings keep the limit, so many servers keep every limit on
requests (without limits: keep up with the arrivals), the next step keeps the limit; 1 it cannot (a fit that
has not converged included); 2 bad input or usage; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The options; their defaults are those of the library, which a test holds them to."""
    made = command.Parser(
        prog=PROGRAM,
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog=EXAMPLES,
    )
    kinds = made.add_subparsers(dest="kind", required=True, metavar="optimize | capacity | budget")
    for name, words, add_options in (
        ("optimize", "the settings with the most throughput under a limit on steps", _optimize_options),
        ("capacity", "how many servers a workload needs, by simulation", _capacity_options),
        ("budget", "the token budget of the next step", _budget_options),
    ):
        one = kinds.add_parser(
            name,
            help=words,
            description=f"Find {words}.",
            epilog=EXAMPLES,
        )
        _shared_options(one)
        add_options(one)
    return made


def _shared_options(one: argparse.ArgumentParser) -> None:
    share, add = command.probability, one.add_argument
    add("fit", type=Path, metavar="FIT", help="folder of a fit, such as results/h100, or its posterior.nc")
    add("--quantile", type=share, default=0.99, metavar="Q", help=f"share that must keep a limit {DEFAULT}")
    add("--confidence", type=share, default=0.95, metavar="C", help=f"how sure that it does {DEFAULT}")
    add = one.add_argument_group("what is trusted").add_argument
    add("--extrapolate", action="store_true", help="plan outside of the data too, marked")
    add("--accept-unconverged", action="store_true", help="plan on a fit that has not converged")
    add("--model", metavar="FILE.py", help="the fit's model, where it is not one of the project's; it is run")
    add("--probability", type=share, default=0.9, metavar="P", help=f"of credible intervals {DEFAULT}")
    add = one.add_argument_group("what comes out").add_argument
    add("--json", action="store_true", help="print one JSON document in place of the text")


def _report_options(one: argparse.ArgumentParser) -> None:
    add = one.add_argument_group("report").add_argument
    add("--report", action="store_true", help="write an HTML page, tables and figures")
    add("--name", help="name of the report (default: the fit's, and -optimize or -capacity)")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=DEFAULT)
    add("--overwrite", action="store_true", help="replace an existing report")


def _optimize_options(one: argparse.ArgumentParser) -> None:
    add = one.add_argument
    add("--slo-ms", type=command.milliseconds, required=True, metavar="MS", help="limit on a step")
    add("--draws", type=command.at_least(1), default=1000, metavar="N", help=f"posterior draws {DEFAULT}")
    _report_options(one)


def _capacity_options(one: argparse.ArgumentParser) -> None:
    ms, count = command.milliseconds, command.at_least(1)
    add = one.add_argument_group("workload").add_argument
    add(
        "--workload",
        type=Path,
        metavar="FILE",
        help=".csv or .jsonl: arrival_s, prompt_tokens, output_tokens",
    )
    add("--rate", type=rate, metavar="R", help="requests a second, such as 5/s or 300/min: Poisson arrivals")
    add("--prompt-tokens", type=count, metavar="L", help="of a generated request, median")
    add("--output-tokens", type=count, metavar="L", help="of a generated request, median")
    add(
        "--prompt-spread", type=spread, metavar="F", help="two in three within this factor (default: 1, none)"
    )
    add("--output-spread", type=spread, metavar="F", help="the same of outputs (default: 1, none)")
    add("--requests", type=count, metavar="N", help="how many are generated (default: 1000)")
    add = one.add_argument_group("scheduler").add_argument
    add(
        "--token-budget",
        type=count,
        metavar="S",
        help="max_num_batched_tokens (default: the trace's largest)",
    )
    add("--max-num-seqs", type=count, default=256, metavar="B", help=f"most running requests {DEFAULT}")
    add("--kv-tokens", type=count, metavar="N", help="tokens that the KV cache holds (default: no limit)")
    add("--step-overhead-ms", type=overhead, default=0.0, metavar="MS", help=f"between two steps {DEFAULT}")
    add = one.add_argument_group("limits and servers").add_argument
    add("--ttft-ms", type=ms, metavar="MS", help="limit on the time to first token")
    add("--tpot-ms", type=ms, metavar="MS", help="limit on the time per output token, a request's mean")
    add("--e2e-ms", type=ms, metavar="MS", help="limit on the end-to-end time")
    add("--replicas", type=count, metavar="N", help="judge so many servers, in place of finding the fewest")
    add("--max-replicas", type=count, default=64, metavar="N", help=f"most servers to try {DEFAULT}")
    add = one.add_argument_group("simulation").add_argument
    add("--draws", type=count, default=200, metavar="N", help=f"posterior draws, a replay each {DEFAULT}")
    add("--seed", type=command.at_least(0), default=0, metavar="N", help=DEFAULT)
    _report_options(one)


def _budget_options(one: argparse.ArgumentParser) -> None:
    zero, add = command.at_least(0), one.add_argument
    add("--slo-ms", type=command.milliseconds, required=True, metavar="MS", help="limit on the step")
    add("--decodes", type=zero, required=True, metavar="N", help="running decodes")
    add("--waiting-tokens", type=zero, default=0, metavar="N", help=f"prompt tokens that wait {DEFAULT}")


def rate(text: str) -> float:
    """Read 5/s, 300/min or 5: requests a second."""
    number, _, unit = text.partition("/")
    per_s = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}.get(unit)
    try:
        value = math.nan if per_s is None else float(number) / per_s
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive rate such as 5/s, 300/min or 900/h")
    return value


spread = command.number_option(float, lambda x: 1.0 <= x <= 100.0, "a factor from 1 to 100")
overhead = command.number_option(float, lambda x: 0.0 <= x < 1e6, "milliseconds, 0 or more")


@dataclass(frozen=True)
class Job:
    """What is to be planned, checked as far as that goes without reading the fit."""

    options: argparse.Namespace
    posterior: Path
    folder: Path | None
    command: str


def prepare(arguments: Sequence[str]) -> Job:
    """Check the arguments, cheapest first."""
    options = parser().parse_args(arguments)
    if options.kind == "capacity":
        check_workload(options)
    if options.kind == "budget" and options.decodes + options.waiting_tokens < 1:
        raise InputError("a step without decodes and waiting tokens: give --decodes or --waiting-tokens")
    from bayes_sched.files import fit_file

    posterior = fit_file(options.fit)
    line = command.shown_command(f"scripts/{PROGRAM}.py", arguments, [])
    return Job(options, posterior, report_folder(options, posterior), line)


def check_workload(options: argparse.Namespace) -> None:
    """Check that the options describe one workload."""
    if (options.workload is None) == (options.rate is None):
        raise InputError(
            "give one workload: --workload FILE, or --rate with --prompt-tokens and --output-tokens"
        )
    given = [name for name in GENERATED if getattr(options, name) is not None]
    if options.workload is not None:
        if given:
            raise InputError(f"--{given[0].replace('_', '-')} is of generated requests: it goes with --rate")
        if not options.workload.is_file():
            raise InputError(f"{options.workload}: no such file")
    for name in GENERATED[:2]:
        if options.rate is not None and name not in given:
            raise InputError(f"--rate needs --{name.replace('_', '-')}")


def report_folder(options: argparse.Namespace, posterior: Path) -> Path | None:
    if options.kind == "budget":
        return None
    if options.name is not None and not options.report:
        raise InputError("--name names the report: give --report too")
    if not options.report:
        return None
    from bayes_sched.files import PLAN, check_result

    name = f"{posterior.resolve().parent.name}-{options.kind}" if options.name is None else options.name
    return check_result(options.results_dir, name, overwrite=options.overwrite, holds=PLAN)


def run(job: Job) -> int:
    """Do what was asked for; return the exit status."""
    options = job.options
    from bayes_sched.posterior.fitted import FittedModel

    workload = read_workload(options) if options.kind == "capacity" else None
    fit = FittedModel.load(job.posterior, model=options.model)
    unconverged = () if fit.converged else ("the fit has not converged", *fit.metadata.problems)
    for warning in dict.fromkeys((*fit.warnings, *unconverged)):
        say(f"warning: {warning}")
    if options.kind == "budget":
        return show_budget(fit, options)
    start = time.perf_counter()
    with command.noticed_interrupts() as check_interrupts, command.shown_progress(PROGRAM) as show:
        plan: Optimum | CapacityPlan
        plan = optimize(fit, options) if workload is None else capacity(fit, workload, options, show)
        check_interrupts()
        seconds = time.perf_counter() - start
        from bayes_sched.reports import planning as _  # noqa: F401, it registers the report
        from bayes_sched.reports.document import report

        document = report(plan, command=job.command)
        paths = write(job, document, show)
    if options.json:
        about = {"kind": options.kind, "fit": fit.metadata.name, "converged": fit.converged}
        numbers = {**about, **plan.to_dict(), "paths": paths, "seconds": round(seconds, 2)}
        print(json.dumps(numbers, indent=2, allow_nan=False))
    else:
        from bayes_sched.reports.terminal import terminal

        print("\n\n".join([terminal(document), *([f"Saved {paths['report']}"] if paths else [])]))
    return command.DONE if plan.is_promised else REFUSED


def read_workload(options: argparse.Namespace) -> Workload | PoissonWorkload:
    from bayes_sched.planning.workload import Lengths, PoissonWorkload, read_workload

    if options.workload is not None:
        return read_workload(options.workload)
    return PoissonWorkload(
        rate_per_s=options.rate,
        prompt=Lengths(options.prompt_tokens, options.prompt_spread or 1.0),
        output=Lengths(options.output_tokens, options.output_spread or 1.0),
        num_requests=options.requests or 1000,
    )


def optimize(fit: FittedModel, options: argparse.Namespace) -> Optimum:
    from bayes_sched.planning.settings import optimize_steps

    return optimize_steps(fit, slo_ms=options.slo_ms, max_draws=options.draws, **trust(options))


def capacity(
    fit: FittedModel,
    workload: Workload | PoissonWorkload,
    options: argparse.Namespace,
    show: command.Progress,
) -> CapacityPlan:
    from bayes_sched.planning.capacity import plan_capacity
    from bayes_sched.planning.replay import SchedulerSettings

    budget = options.token_budget
    if budget is None:
        budget = int(fit.cells["total_tokens"].max())
        say(f"--token-budget is taken to be {budget:,}, the most tokens of a step of the trace")
    settings = SchedulerSettings(
        token_budget=budget,
        max_num_seqs=options.max_num_seqs,
        kv_tokens=options.kv_tokens,
        step_overhead_ms=options.step_overhead_ms,
    )
    return plan_capacity(
        fit,
        workload,
        settings,
        **{name: getattr(options, name) for name in LIMITS},
        replicas=options.replicas,
        max_replicas=options.max_replicas,
        num_draws=options.draws,
        seed=options.seed,
        progress=show,
        **trust(options),
    )


def trust(options: argparse.Namespace) -> dict[str, Any]:
    names = ("quantile", "confidence", "probability", "extrapolate", "accept_unconverged")
    return {name: getattr(options, name) for name in names}


def show_budget(fit: FittedModel, options: argparse.Namespace) -> int:
    """Answer for one step, and say how long an answer takes."""
    from bayes_sched.planning.next_step import plan_next_step
    from bayes_sched.reports import planning as _  # noqa: F401, it registers the report
    from bayes_sched.reports.document import report
    from bayes_sched.reports.terminal import terminal

    names = (
        "slo_ms",
        "decodes",
        "waiting_tokens",
        "quantile",
        "confidence",
        "extrapolate",
        "accept_unconverged",
    )
    answer = plan_next_step(fit, **{name: getattr(options, name) for name in names})
    print(json.dumps(answer.to_dict(), indent=2) if options.json else terminal(report(answer)))
    return command.DONE if answer.is_promised else REFUSED


def write(job: Job, document: Document, show: command.Progress) -> dict[str, str]:
    """Write the report where one is wanted; return its files by what they are."""
    if job.folder is None:
        return {}
    from bayes_sched.files import PLAN, result_folder
    from bayes_sched.reports.write import write_report

    show("writing the report", None)
    with result_folder(job.folder, overwrite=job.options.overwrite, holds=PLAN) as folder:
        write_report(document, folder)
    names = {"folder": "", "report": "report.html", "plan": PLAN}
    return {what: str(job.folder / name) for what, name in names.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
