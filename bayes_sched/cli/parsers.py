"""The subcommands: their options, and what is refused before anything is read."""

from __future__ import annotations

import argparse
from pathlib import Path

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT, Call, Command, Parser, option_of
from bayes_sched.errors import InputError
from bayes_sched.files import SLA, fit_file

LIMITS = ("ttft_ms", "tpot_ms", "e2e_ms")
"""Limits on a request, as options and as arguments of the library."""


def add_trust_options(parser: Parser, *, verb: str) -> None:
    """Add what decides how far a fit is trusted."""
    add = parser.add_argument_group("what is trusted").add_argument
    add("--extrapolate", action="store_true", help=f"{verb} outside of the data too, marked")
    on = f"{verb.rpartition(' ')[2]} on a fit that has not converged"
    add("--accept-unconverged", action="store_true", help=on)
    add("--model", metavar="FILE.py", help="the fit's model, where it is not one of the project's; it is run")
    what = f"of credible intervals {DEFAULT}"
    add("--probability", type=command.probability, default=0.9, metavar="P", help=what)


def add_fit(parser: Parser) -> None:
    """Add the fit that is asked, and how sure the answer has to be."""
    add, share = parser.add_argument, command.probability
    add("fit", type=Path, metavar="FIT", help="folder of a fit, such as results/h100, or its posterior.nc")
    add("--quantile", type=share, default=0.99, metavar="Q", help=f"share that must keep a limit {DEFAULT}")
    add("--confidence", type=share, default=0.95, metavar="C", help=f"how sure that it does {DEFAULT}")


def add_limits(parser: argparse._ArgumentGroup) -> None:
    """Add the limits on a request."""
    add, ms = parser.add_argument, command.milliseconds
    add("--ttft-ms", type=ms, metavar="MS", help="limit on the time to first token")
    add("--tpot-ms", type=ms, metavar="MS", help="limit on the time per output token, a request's mean")
    add("--e2e-ms", type=ms, metavar="MS", help="limit on the end-to-end time")


def add_report_options(parser: Parser, *, default_name: str, what: str = "report") -> None:
    """Add whether a report is written, and where."""
    add = parser.add_argument_group("what comes out").add_argument
    add("--json", action="store_true", help="print one JSON document in place of the text")
    add("--report", action="store_true", help="write an HTML page, tables and figures")
    add("--name", help=f"name of the report (default: {default_name})")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=DEFAULT)
    add("--overwrite", action="store_true", help=f"replace an existing {what}")


def add_sla(parser: Parser) -> None:
    """Add the options of ``sla``."""
    ms, one, zero = command.milliseconds, command.at_least(1), command.at_least(0)
    add_fit(parser)
    add = parser.add_argument
    add("--decodes", type=zero, metavar="N", help="decoding requests in every step")
    add("--token-budget", type=one, metavar="S", help="tokens of a step, decodes included")
    add = parser.add_argument_group("steps").add_argument
    add("--slo-ms", type=ms, metavar="MS", help="limit on a step")
    add("--batch-size", type=one, metavar="B", help="judge decode-only batches of up to so many requests")
    requests = parser.add_argument_group("requests")
    add = requests.add_argument
    add("--prompt-tokens", type=one, metavar="L", help="tokens to prefill, in chunks, beside --decodes")
    add("--output-tokens", type=one, metavar="L", help="tokens to generate")
    add_limits(requests)
    add_trust_options(parser, verb="search and promise")
    add_report_options(parser, default_name="the fit's, and -sla")


def check_sla(options: argparse.Namespace, call: Call) -> None:
    """Check that the options together ask something, and that there is such a fit."""
    limits = [name for name in LIMITS if getattr(options, name) is not None]
    if limits and options.prompt_tokens is None:
        raise InputError(f"{option_of(limits[0])} is a limit on requests: give --prompt-tokens too")
    if options.slo_ms is None and options.prompt_tokens is None:
        raise InputError(
            "there is no promise to judge: give --slo-ms, or --prompt-tokens and limits on requests"
        )
    for name in ("tpot_ms", "e2e_ms"):
        if name in limits and options.output_tokens is None:
            raise InputError(f"{option_of(name)} needs --output-tokens")
    if options.output_tokens is not None and options.prompt_tokens is None:
        raise InputError("--output-tokens belongs to a request: give --prompt-tokens too")
    if options.batch_size is not None and options.slo_ms is None:
        raise InputError("--batch-size is judged by a limit on steps: give --slo-ms too")
    if options.token_budget is not None and options.decodes is None and options.prompt_tokens is None:
        raise InputError("--token-budget is one of steps with some running decodes: give --decodes too")
    options.posterior = fit_file(options.fit)
    name = f"{options.posterior.resolve().parent.name}-sla"
    options.folder = command.check_report(options, name, holds=SLA)


COMMANDS = (
    Command(
        name="sla",
        summary="say what a fitted server may promise: of its steps, and of requests",
        script="sla.py",
        add_options=add_sla,
        check=check_sla,
        epilog="""\
examples:
  bayes-sched sla results/h100 --slo-ms 50
  bayes-sched sla results/h100 --slo-ms 50 --quantile 0.99 --confidence 0.95 --batch-size 24
  bayes-sched sla results/h100 --slo-ms 60 --decodes 16 --token-budget 512 && ./deploy.sh
  bayes-sched sla results/h100 --prompt-tokens 4000 --decodes 16 --ttft-ms 800
  bayes-sched sla results/h100 --prompt-tokens 4000 --output-tokens 300 --e2e-ms 10000 --json

exit status: 0 the promise can be made: what --batch-size and --token-budget ask for and every limit on
requests (without such, --slo-ms alone: some decode-only batch, or with --decodes some token budget); 1 it
cannot (a limit that no step keeps included, and a fit that has not converged); 2 bad input or usage; 130
interrupted.
""",
    ),
)
POOL = ANALYZE_TRACE = COMMANDS[0]
