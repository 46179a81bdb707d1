"""Say what a fitted server may promise: of its steps, and of requests.

Everything heavy is imported where it is used, after the checks: a slip of the pen is answered at once.
"""

from __future__ import annotations

import argparse
import json
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
    from bayes_sched.posterior.fitted import FittedModel
    from bayes_sched.reports.document import Document
    from bayes_sched.sla.request import RequestSLA
    from bayes_sched.sla.steps import StepSLA

PROGRAM = "sla"
REFUSED = 1
"""Exit status where the promise cannot be made: an answer, not an error."""
LIMITS = ("ttft_ms", "tpot_ms", "e2e_ms")
say = partial(command.say, PROGRAM)

EXAMPLES = """\
examples:
  python scripts/sla.py results/h100 --slo-ms 50
  python scripts/sla.py results/h100 --slo-ms 50 --quantile 0.99 --confidence 0.95 --batch-size 24
  python scripts/sla.py results/h100 --slo-ms 60 --decodes 16 --token-budget 512 && ./deploy.sh
  python scripts/sla.py results/h100 --prompt-tokens 4000 --decodes 16 --ttft-ms 800
  python scripts/sla.py results/h100 --prompt-tokens 4000 --output-tokens 300 --e2e-ms 10000 --json

exit status: 0 the promise can be made: what --batch-size and --token-budget ask for and every limit on
requests (without such, --slo-ms alone: some decode-only batch, or with --decodes some token budget); 1 it
cannot (a limit that no step keeps included, and a fit that has not converged); 2 bad input or usage; 130
interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The options; their defaults are those of the library, which a test holds them to."""
    made = command.Parser(
        prog=PROGRAM,
        description="Say what a fitted server may promise: of its steps, and of requests.",
        epilog=EXAMPLES,
    )
    ms, one, zero, share = command.milliseconds, command.at_least(1), command.at_least(0), command.probability
    add = made.add_argument
    add("fit", type=Path, metavar="FIT", help="folder of a fit, such as results/h100, or its posterior.nc")
    add("--quantile", type=share, default=0.99, metavar="Q", help=f"share that must keep a limit {DEFAULT}")
    add("--confidence", type=share, default=0.95, metavar="C", help=f"how sure that it does {DEFAULT}")
    add("--decodes", type=zero, metavar="N", help="decoding requests in every step")
    add("--token-budget", type=one, metavar="S", help="tokens of a step, decodes included")
    add = made.add_argument_group("steps").add_argument
    add("--slo-ms", type=ms, metavar="MS", help="limit on a step")
    add("--batch-size", type=one, metavar="B", help="judge decode-only batches of up to so many requests")
    add = made.add_argument_group("requests").add_argument
    add("--prompt-tokens", type=one, metavar="L", help="tokens to prefill, in chunks, beside --decodes")
    add("--output-tokens", type=one, metavar="L", help="tokens to generate")
    add("--ttft-ms", type=ms, metavar="MS", help="limit on the time to first token")
    add("--tpot-ms", type=ms, metavar="MS", help="limit on the time per output token, a request's mean")
    add("--e2e-ms", type=ms, metavar="MS", help="limit on the end-to-end time")
    add = made.add_argument_group("what is trusted").add_argument
    add("--extrapolate", action="store_true", help="search and promise outside of the data too, marked")
    add("--accept-unconverged", action="store_true", help="promise on a fit that has not converged")
    add("--model", metavar="FILE.py", help="the fit's model, where it is not one of the project's; it is run")
    add("--probability", type=share, default=0.9, metavar="P", help=f"of credible intervals {DEFAULT}")
    add = made.add_argument_group("what comes out").add_argument
    add("--json", action="store_true", help="print one JSON document in place of the text")
    add("--report", action="store_true", help="write an HTML page, tables and figures")
    add("--name", help="name of the report (default: the fit's, and -sla)")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=DEFAULT)
    add("--overwrite", action="store_true", help="replace an existing report")
    return made


@dataclass(frozen=True)
class Job:
    """What is to be answered, checked as far as that goes without reading the fit."""

    options: argparse.Namespace
    posterior: Path
    folder: Path | None
    command: str


def prepare(arguments: Sequence[str]) -> Job:
    """Check the arguments, cheapest first."""
    options = parser().parse_intermixed_args(arguments)
    check_questions(options)
    from bayes_sched.files import SLA, check_result, fit_file

    posterior = fit_file(options.fit)
    if options.name is not None and not options.report:
        raise InputError("--name names the report: give --report too")
    folder = None
    if options.report:
        name = f"{posterior.resolve().parent.name}-sla" if options.name is None else options.name
        folder = check_result(options.results_dir, name, overwrite=options.overwrite, holds=SLA)
    line = command.shown_command(f"scripts/{PROGRAM}.py", arguments, [])
    return Job(options, posterior, folder, line)


def check_questions(options: argparse.Namespace) -> None:
    """Check that the options together ask something."""
    limits = [name for name in LIMITS if getattr(options, name) is not None]
    if options.slo_ms is None and options.prompt_tokens is None:
        if limits:
            raise InputError(f"{_option(limits[0])} is a limit on requests: give --prompt-tokens too")
        raise InputError(
            "there is no promise to judge: give --slo-ms, or --prompt-tokens and limits on requests"
        )
    if limits and options.prompt_tokens is None:
        raise InputError(f"{_option(limits[0])} is a limit on requests: give --prompt-tokens too")
    for name in ("tpot_ms", "e2e_ms"):
        if getattr(options, name) is not None and options.output_tokens is None:
            raise InputError(f"{_option(name)} needs --output-tokens")
    if options.output_tokens is not None and options.prompt_tokens is None:
        raise InputError("--output-tokens belongs to a request: give --prompt-tokens too")
    if options.batch_size is not None and options.slo_ms is None:
        raise InputError("--batch-size is judged by a limit on steps: give --slo-ms too")
    if options.token_budget is not None and options.decodes is None and options.prompt_tokens is None:
        raise InputError("--token-budget is one of steps with some running decodes: give --decodes too")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def run(job: Job) -> int:
    """Do what was asked for; return the exit status."""
    options = job.options
    from bayes_sched.posterior.fitted import FittedModel

    start = time.perf_counter()
    fit = FittedModel.load(job.posterior, model=options.model)
    steps, request = answer_steps(fit, options), answer_request(fit, options)
    from bayes_sched.reports import sla as _  # noqa: F401, it registers the report
    from bayes_sched.reports.document import report
    from bayes_sched.reports.terminal import terminal
    from bayes_sched.sla.sla import SLA

    answer = SLA.of(fit, steps, request, is_drawn=job.folder is not None)
    seconds = time.perf_counter() - start
    unconverged = () if fit.converged else ("the fit has not converged", *fit.metadata.problems)
    for warning in dict.fromkeys((*fit.warnings, *unconverged)):
        say(f"warning: {warning}")
    document = report(answer, command=job.command)
    paths = write(job, document)
    if options.json:
        numbers = {**answer.to_dict(), "paths": paths, "seconds": round(seconds, 2)}
        print(json.dumps(numbers, indent=2, allow_nan=False))
    else:
        saved = [f"Saved {paths['report']}"] if paths else []
        print("\n\n".join([terminal(document), *saved]))
    is_promised = answer.is_promised
    return command.DONE if is_promised else REFUSED


def answer_steps(fit: FittedModel, options: argparse.Namespace) -> StepSLA | None:
    from bayes_sched.sla.steps import step_sla

    if options.slo_ms is None:
        return None
    return step_sla(
        fit,
        slo_ms=options.slo_ms,
        batch_size=options.batch_size,
        decodes=options.decodes,
        token_budget=None if options.decodes is None else options.token_budget,
        **trust(options),
    )


def answer_request(fit: FittedModel, options: argparse.Namespace) -> RequestSLA | None:
    from bayes_sched.sla.request import request_sla

    if options.prompt_tokens is None:
        return None
    budget = options.token_budget
    if budget is None:
        budget = int(fit.cells["total_tokens"].max())
        say(f"--token-budget is taken to be {budget:,}, the most tokens of a step of the trace")
    return request_sla(
        fit,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        decodes=options.decodes or 0,
        token_budget=budget,
        **{name: getattr(options, name) for name in LIMITS},
        **trust(options),
    )


def trust(options: argparse.Namespace) -> dict[str, Any]:
    names = ("quantile", "confidence", "probability", "extrapolate", "accept_unconverged")
    return {name: getattr(options, name) for name in names}


def write(job: Job, document: Document) -> dict[str, str]:
    """Write the report where one is wanted; return its files by what they are."""
    if job.folder is None:
        return {}
    from bayes_sched.files import SLA, result_folder
    from bayes_sched.reports.write import write_report

    with command.shown_progress(PROGRAM) as show:
        show("writing the report", None)
        with result_folder(job.folder, overwrite=job.options.overwrite, holds=SLA) as folder:
            write_report(document, folder)
    names = {"folder": "", "report": "report.html", "sla": SLA}
    return {what: str(job.folder / name) for what, name in names.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    return command.exit_status(PROGRAM, lambda: run(prepare(given)))


if __name__ == "__main__":
    sys.exit(main())
