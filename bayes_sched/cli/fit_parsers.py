"""The subcommands that ask a fit (sla, plan, compare, predictor): options and cheap checks."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from bayes_sched.cli import command
from bayes_sched.cli.command import Call, Command, Parser, at_least, milliseconds, option_of
from bayes_sched.errors import InputError
from bayes_sched.files import COMPARISON, PLAN, SLA, fit_file

LIMITS = ("ttft_ms", "tpot_ms", "e2e_ms")
"""Limits on a request, as options and as arguments of the library."""
TRUST = ("quantile", "confidence", "probability", "extrapolate", "accept_unconverged")
"""How sure an answer has to be, as options and as arguments of the library."""
PREDICTOR = "predictor.npz"

_FIT = "folder of a fit, such as results/h100, or its posterior.nc"
_MODEL = "the fit's model, where it is not one of the project's; it is run"
_CONTEXT = "of each decoding request, in place of what the trace shows at steps like those asked for"
_MAX_NAME = 100


def _add_question(parser: Parser, *, verbs: str) -> None:
    """Add the fit that is asked, how sure the answer has to be, and what is trusted."""
    add, share = parser.add_argument, command.probability
    add("fit", type=Path, metavar="FIT", help=_FIT)
    add("--quantile", type=share, default=0.99, metavar="Q", help="share that must keep a limit")
    add("--confidence", type=share, default=0.95, metavar="C", help="how sure that it does")
    add = parser.add_argument_group("what is trusted").add_argument
    verb = verbs.split()[-1]
    add("--extrapolate", action="store_true", help=f"{verbs} outside of the data too, marked")
    add("--accept-unconverged", action="store_true", help=f"{verb} on a fit that has not converged")
    add("--model", metavar="FILE.py", help=_MODEL)
    add("--context", type=at_least(0), metavar="TOKENS", help=_CONTEXT)
    add("--probability", type=share, default=0.9, metavar="P", help="of credible intervals")


def _add_limits(add: Any) -> None:
    ms = milliseconds
    add("--ttft-ms", type=ms, metavar="MS", help="limit on the time to first token")
    add("--tpot-ms", type=ms, metavar="MS", help="limit on the time per output token, a request's mean")
    add("--e2e-ms", type=ms, metavar="MS", help="limit on the end-to-end time")


def _add_sla(parser: Parser) -> None:
    one = at_least(1)
    _add_question(parser, verbs="search and promise")
    add = parser.add_argument
    add("--decodes", type=at_least(0), metavar="N", help="decoding requests in every step")
    add("--token-budget", type=one, metavar="S", help="tokens of a step, decodes included")
    add = parser.add_argument_group("steps").add_argument
    add("--slo-ms", type=milliseconds, metavar="MS", help="limit on a step")
    add("--batch-size", type=one, metavar="B", help="judge decode-only batches of up to so many requests")
    add = parser.add_argument_group("requests").add_argument
    add("--prompt-tokens", type=one, metavar="L", help="tokens to prefill, in chunks, beside --decodes")
    add("--output-tokens", type=one, metavar="L", help="tokens to generate")
    _add_limits(add)
    command.add_report_options(parser, name="the fit's, and -sla")


def _check_sla(options: argparse.Namespace, call: Call) -> None:
    limits = [name for name in LIMITS if getattr(options, name) is not None]
    is_request = options.prompt_tokens is not None
    if limits and not is_request:
        raise InputError(f"{option_of(limits[0])} is a limit on requests: give --prompt-tokens too")
    if options.slo_ms is None and not is_request:
        raise InputError(
            "there is no promise to judge: give --slo-ms, or --prompt-tokens and limits on requests"
        )
    for name in ("tpot_ms", "e2e_ms"):
        if name in limits and options.output_tokens is None:
            raise InputError(f"{option_of(name)} needs --output-tokens")
    if options.output_tokens is not None and not is_request:
        raise InputError("--output-tokens belongs to a request: give --prompt-tokens too")
    if options.batch_size is not None and options.slo_ms is None:
        raise InputError("--batch-size is judged by a limit on steps: give --slo-ms too")
    if options.token_budget is not None and options.decodes is None and not is_request:
        raise InputError("--token-budget is one of steps with some running decodes: give --decodes too")
    _check_fit(options, holds=SLA)


def _check_fit(options: argparse.Namespace, *, holds: str) -> None:
    options.posterior = fit_file(options.fit)
    name = f"{options.posterior.resolve().parent.name}-{options.kind}"
    options.folder = command.check_report(options, name, holds=holds)


def _add_optimize(parser: Parser) -> None:
    _add_question(parser, verbs="plan")
    add = parser.add_argument
    add("--slo-ms", type=milliseconds, required=True, metavar="MS", help="limit on a step")
    add("--draws", type=at_least(1), default=1000, metavar="N", help="posterior draws")
    command.add_report_options(parser, name="the fit's, and -optimize")


def _check_plan(options: argparse.Namespace, call: Call) -> None:
    _check_fit(options, holds=PLAN)


def _add_capacity(parser: Parser) -> None:
    count = at_least(1)
    spread = command.number_option(float, lambda x: 1.0 <= x <= 100.0, "a factor from 1 to 100")
    overhead = command.number_option(float, lambda x: 0.0 <= x < 1e6, "milliseconds, 0 or more")
    _add_question(parser, verbs="plan")
    add = parser.add_argument_group("workload").add_argument
    file, rate = (
        ".csv or .jsonl: arrival_s, prompt_tokens, output_tokens",
        "requests a second, such as 5/s or 300/min: Poisson arrivals",
    )
    add("--workload", type=Path, metavar="FILE", help=file)
    add("--rate", type=_rate, metavar="R", help=rate)
    add("--prompt-tokens", type=count, metavar="L", help="of a generated request, median")
    add("--output-tokens", type=count, metavar="L", help="of a generated request, median")
    add("--prompt-spread", type=spread, metavar="F", help="two in three are within this factor (default: 1)")
    add("--output-spread", type=spread, metavar="F", help="the same of outputs (default: 1)")
    add("--requests", type=count, metavar="N", help="how many are generated (default: 1000)")
    add = parser.add_argument_group("scheduler").add_argument
    add("--token-budget", type=count, metavar="S", help="max_num_batched_tokens (default: as traced)")
    add("--max-num-seqs", type=count, default=256, metavar="B", help="most running requests")
    add("--kv-tokens", type=count, metavar="N", help="tokens that the KV cache holds (default: no limit)")
    add("--step-overhead-ms", type=overhead, default=0.0, metavar="MS", help="between two steps")
    add = parser.add_argument_group("limits and servers").add_argument
    _add_limits(add)
    add("--replicas", type=count, metavar="N", help="judge so many servers, in place of finding the fewest")
    add("--max-replicas", type=count, default=64, metavar="N", help="most servers to try")
    add = parser.add_argument_group("simulation").add_argument
    add("--draws", type=count, default=200, metavar="N", help="posterior draws, a replay each")
    add("--seed", type=at_least(0), default=0, metavar="N", help="the same seed gives the same numbers")
    command.add_report_options(parser, name="the fit's, and -capacity")


def _rate(text: str) -> float:
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


def _check_capacity(options: argparse.Namespace, call: Call) -> None:
    if (options.workload is None) == (options.rate is None):
        raise InputError(
            "give one workload: --workload FILE, or --rate with --prompt-tokens and --output-tokens"
        )
    generated = ("prompt_tokens", "output_tokens", "prompt_spread", "output_spread", "requests")
    given = [name for name in generated if getattr(options, name) is not None]
    if options.workload is not None:
        if given:
            raise InputError(f"{option_of(given[0])} is of generated requests: it goes with --rate")
        if not options.workload.is_file():
            raise InputError(f"{options.workload}: no such file")
    for name in generated[:2]:
        if options.rate is not None and name not in given:
            raise InputError(f"--rate needs {option_of(name)}")
    _check_fit(options, holds=PLAN)


def _add_budget(parser: Parser) -> None:
    _add_question(parser, verbs="plan")
    zero, add = at_least(0), parser.add_argument
    add("--slo-ms", type=milliseconds, required=True, metavar="MS", help="limit on the step")
    add("--decodes", type=zero, required=True, metavar="N", help="running decodes")
    add("--waiting-tokens", type=zero, default=0, metavar="N", help="prompt tokens that wait")
    add("--json", action="store_true", help="print one JSON document in place of the text")


def _check_budget(options: argparse.Namespace, call: Call) -> None:
    if options.decodes + options.waiting_tokens < 1:
        raise InputError("a step without decodes and waiting tokens: give --decodes or --waiting-tokens")
    options.posterior = fit_file(options.fit)


def _add_compare(parser: Parser) -> None:
    add = parser.add_argument
    add("fits", nargs="+", type=Path, metavar="RESULT", help=f"{_FIT}; two or more")
    add("--model", metavar="FILE.py", help=_MODEL)
    add("--context", type=at_least(0), metavar="TOKENS", help=_CONTEXT)
    command.add_result_options(parser, name="compare-A-B", replaced="comparison", bare="numbers and tables")
    add = parser.add_argument_group("verdicts").add_argument
    rope = "ratios within it of 1 count as equal, such as 5%%"
    add("--rope", type=_share_or_percent, default=0.05, metavar="X", help=rope)
    add("--probability", type=command.probability, default=0.95, metavar="P", help="of intervals")
    add("--draws", type=at_least(100), default=4000, metavar="N", help="of each fit, at most")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of the random pairing")
    add = parser.add_argument_group("throughput and cost").add_argument
    price = "an hour's price of a server, by its label or the name of its result; all in one currency"
    add("--price", type=_price, action="append", default=[], metavar="LABEL=PRICE", help=price)
    add("--slo-ms", type=milliseconds, metavar="MS", help="latency limit of a step, for throughput")
    add(
        "--slo-quantile", type=command.probability, default=0.95, metavar="Q", help="share of steps within it"
    )


def _price(text: str) -> tuple[str, float]:
    """Read LABEL=PRICE, with or without /h."""
    label, sign, number = text.rpartition("=")
    if not sign or not label:
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=PRICE, such as h100=2.50")
    try:
        value = float(number.removesuffix("/h"))
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{number!r} of {text!r} is no positive price an hour, such as 2.50")
    return label, value


def _share_or_percent(text: str) -> float:
    """Read 5% or 0.05."""
    try:
        value = float(text.removesuffix("%")) * (0.01 if text.endswith("%") else 1.0)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to below 1, such as 5% or 0.05")
    return value


def _check_compare(options: argparse.Namespace, call: Call) -> None:
    options.posteriors = [fit_file(path) for path in options.fits]
    if len(options.posteriors) < 2:
        raise InputError(f"{options.fits[0]}: one fit; a comparison takes two or more")
    resolved = [file.resolve() for file in options.posteriors]
    for number, file in enumerate(resolved):
        if file in resolved[:number]:
            raise InputError(f"{options.fits[number]}: the same fit twice; a comparison takes different ones")
    options.prices = {}
    for label, value in options.price:
        if label in options.prices:
            raise InputError(f"--price {label}: given twice")
        options.prices[label] = value
    names = [file.absolute().parent.name for file in options.posteriors]
    name = f"compare-{'-'.join(names)}"
    if len(name) > _MAX_NAME:
        name = f"compare-{names[0]}-and-{len(names) - 1}-more"[:_MAX_NAME]
    options.folder = command.check_named(options, name, holds=COMPARISON)


def _add_predictor(parser: Parser) -> None:
    add = parser.add_argument
    add("result", type=Path, metavar="RESULT", help=_FIT)
    add("--output", type=Path, metavar="FILE", help=f"where to write (default: RESULT/{PREDICTOR})")
    add("--overwrite", action="store_true", help="replace an existing file")
    add("--model", metavar="FILE.py", help=_MODEL)
    add("--context", type=at_least(0), metavar="TOKENS", help=_CONTEXT)
    add("--allow-unconverged", action="store_true", help="compile a fit that has not converged, marked")
    add("--json", action="store_true", help="print one JSON document in place of the text")


def _check_predictor(options: argparse.Namespace, call: Call) -> None:
    options.posterior = fit_file(options.result)
    if options.output is None:
        options.output = options.posterior.parent / PREDICTOR
    command.check_output(options.output, inputs=[str(options.posterior)], overwrite=options.overwrite)


SLA_COMMAND = Command(
    name="sla",
    summary="say what a fitted server may promise",
    description="Say what a fitted server may promise: of its steps, and of requests.",
    script="sla.py",
    add_options=_add_sla,
    check=_check_sla,
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
)


def _plan(name: str, summary: str, add_options: Any, check: Any) -> Command:
    return Command(
        name=name,
        summary=summary,
        description=f"Find {summary}.",
        module="plan",
        add_options=add_options,
        check=check,
    )


_BEST = "the settings with the most throughput under a limit on steps"
PLAN_COMMAND = Command(
    name="plan",
    summary="settings, number of servers, the next step's budget",
    description="Plan a server: settings with most throughput, how many servers a workload needs, the next "
    "step's budget.",
    script="plan.py",
    epilog="""\
examples:
  bayes-sched plan optimize results/h100 --slo-ms 50 --quantile 0.99 --confidence 0.95
  bayes-sched plan capacity results/h100 --rate 5/s --prompt-tokens 512 --output-tokens 128 \\
      --max-num-seqs 24 --ttft-ms 500 --tpot-ms 40
  bayes-sched plan capacity results/h100 --workload requests.csv --kv-tokens 100000 --replicas 2 --json
  bayes-sched plan budget results/h100 --slo-ms 40 --decodes 12 --waiting-tokens 2000

exit status: 0 the plan can be made: some settings keep the limit, so many servers keep every limit on
requests (without limits: keep up with the arrivals), the next step keeps the limit; 1 it cannot (a fit that
has not converged included); 2 bad input or usage; 130 interrupted.
""",
    commands=(
        _plan("optimize", _BEST, _add_optimize, _check_plan),
        _plan("capacity", "how many servers a workload needs, by simulation", _add_capacity, _check_capacity),
        _plan("budget", "the token budget of the next step", _add_budget, _check_budget),
    ),
)
COMPARE = Command(
    name="compare",
    summary="compare servers: which is faster, and what it costs",
    description="Compare servers by their fits: which is faster, by how much, how sure that is, and what it "
    "costs.",
    script="compare_gpus.py",
    add_options=_add_compare,
    check=_check_compare,
    epilog="""\
examples:
  bayes-sched compare results/h100 results/a6000
  bayes-sched compare results/h100 results/a6000 --price h100=2.50 --price a6000=0.90 --slo-ms 50
  bayes-sched compare results/a results/b results/c --rope 10% --json | jq .shares

exit status: 0 done; 2 bad input or usage; 3 a fit has not converged (the comparison is made, marked as such);
130 interrupted. A run that fails leaves an existing result as it was.
""",
)
PREDICTOR_COMMAND = Command(
    name="predictor",
    summary="compile a fit to tables that a scheduler can ask",
    description="Compile a fit to a small file of tables that a scheduler can ask: microseconds a step.",
    script="compile_predictor.py",
    add_options=_add_predictor,
    check=_check_predictor,
    epilog="""\
examples:
  bayes-sched predictor results/h100
  bayes-sched predictor results/h100 --output h100.npz --overwrite

then, in the scheduler:
  predictor = bayes_sched.Predictor.load("results/h100/predictor.npz")
  predictor.quantile(16, 512, 0.99)          # ms; 16 requests, 512 tokens, contexts as in the trace
  predictor.quantile(16, 512, 0.99, context_tokens=32000, prefill_pairs=1500000)
  predictor.probability_below(16, 512, 50.0)
  predictor.observe(16, 512, 47.1).alarm     # None while the fit describes the server

exit status: 0 done; 2 bad input or usage, a fit that has not converged included; 130 interrupted.
""",
)
