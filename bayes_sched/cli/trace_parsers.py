"""The subcommands that read traces (fit, pool, analyze, watch, models): options and cheap checks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_sched.cli import command
from bayes_sched.cli.command import Call, Command, Parser, at_least, milliseconds, option_of, share
from bayes_sched.errors import InputError
from bayes_sched.files import ANALYSIS, POPULATION, POSTERIOR, UNSEEN, fit_file, is_name, population_file
from bayes_sched.model.priors import Prior, Priors, read_prior_overrides
from bayes_sched.model.protocol import shipped_models
from bayes_sched.trace.opening import check_followable, expand_paths, result_name

FITTING = (
    *("model", "noise", "min_latency_ms", "max_latency_ms", "max_bad_share", "max_rows"),
    *("draws", "tune", "chains", "seed", "sampler"),
)
"""Options that make a fit what it is."""

_FIT_END = """\
exit status: 0 done; 2 bad input or usage; 3 the chains have not converged (the fit is saved, marked as such);
130 interrupted. A run that fails leaves an existing result as it was.
"""


def add_traces(parser: Parser) -> None:
    """Add the traces that are read as one."""
    add = parser.add_argument
    add("traces", nargs="+", metavar="TRACE", help="file (.gz, .zst, plain), 'PATTERN', or - for stdin")


def add_latency_limits(add: Any) -> None:
    """Add which steps are left out as too short or too long."""
    ms, unless = milliseconds, "where that would remove more than 1%% of a kind"
    add("--min-latency-ms", type=ms, metavar="MS", help=f"remove shorter steps (default: 1, less {unless})")
    add("--max-latency-ms", type=ms, metavar="MS", help=f"remove longer steps (default: 300, more {unless})")


def add_sampling(parser: Parser, *, least_draws: int = 1) -> Any:
    """Add how long is sampled, as a group of options that may grow."""
    add, one = parser.add_argument_group("sampling").add_argument, at_least(1)
    add("--draws", type=at_least(least_draws), default=1000, metavar="N", help="draws kept of each chain")
    add("--tune", type=one, default=50, metavar="N", help="tuning draws of each chain, for each part")
    add("--chains", type=one, default=4, metavar="N", help="number of chains")
    add("--seed", type=at_least(0), default=0, metavar="N", help="the same seed gives the same numbers")
    return add


def add_fitting(parser: Parser) -> None:
    """Add what fitting a trace takes, whatever the priors."""
    add = parser.add_argument_group("model").add_argument
    names = ", ".join(shipped_models())
    add("--model", default="saturation", help=f"{names}, or a .py file, which is run")
    add("--noise", metavar="OPTION", help="noise option of the model, such as constant (default: its first)")
    add("--probability", type=command.probability, default=0.9, metavar="P", help="of intervals")
    add = parser.add_argument_group("steps").add_argument
    add_latency_limits(add)
    add("--max-bad-share", type=share, default=0.05, metavar="X", help="of unusable lines")
    add("--max-rows", type=at_least(20), default=20_000, metavar="N", help="use at most so many steps")
    add = add_sampling(parser)
    add("--sampler", choices=("nutpie", "pymc"), default="nutpie", help="whose NUTS")


def check_limits(options: argparse.Namespace) -> None:
    """Make sure that the cleaning can leave steps."""
    least, most = options.min_latency_ms or 1.0, options.max_latency_ms or 300.0
    if least >= most:
        raise InputError(
            f"--min-latency-ms {least:g} is not below --max-latency-ms {most:g}: no step could stay"
        )


def check_model(model: str) -> None:
    """Make sure that there is such a model; its file is not run."""
    if model not in shipped_models() and not Path(model).is_file():
        names = ", ".join(shipped_models())
        raise InputError(f"--model {model}: no such model; give one of {names} or the path of a .py file")


def _add_fit(parser: Parser) -> None:
    add_traces(parser)
    command.add_result_options(parser, name="the trace's", replaced="result", bare="posterior.nc")
    add = parser.add_argument
    add("--gpu", metavar="LABEL", help="GPU, for reports (default: what the trace's side-car says)")
    add("--llm", metavar="LABEL", help="LLM, for reports (default: what the trace's side-car says)")
    add_fitting(parser)
    add = parser.add_argument_group("prior").add_argument
    add("--priors", type=Path, metavar="FILE.toml", help="prior overrides, as in examples/priors.toml")
    add("--prior-from", type=Path, metavar="POOL", help="a pool: what its servers tell of this one")
    add("--server", metavar="LABEL", help="server of that pool that the trace is of (default: by its labels)")
    add("--accept-unconverged", action="store_true", help="use a pool even if it has not converged")


def _check_fit(options: argparse.Namespace, call: Call) -> None:
    check_limits(options)
    if options.prior_from is None and (options.server is not None or options.accept_unconverged):
        given = "--accept-unconverged" if options.server is None else "--server"
        raise InputError(f"{given} goes with --prior-from or bayes-sched pool")
    if options.prior_from is not None and options.priors is not None:
        raise InputError("--priors with --prior-from: a fit has one prior, give one of them")
    files, _ = expand_paths(options.traces)
    options.folder = command.check_named(options, result_name(files))
    options.overrides = None if options.priors is None else _read_priors(options.priors)
    options.population = None if options.prior_from is None else population_file(options.prior_from)
    check_model(options.model)


def _read_priors(path: Path) -> dict[str, Any]:
    """Read the overrides and check their form; which names there are only the model knows."""
    table = read_prior_overrides(path)
    try:
        Priors(Prior(name, 1.0, 2.0) for name in table).override(table)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return table


_OF_A_POOL = {
    "gpu": "say with --server NAME=LABEL which server a trace is of",
    "llm": "say with --server NAME=LABEL which server a trace is of",
    "priors": "traces are pooled under the documented priors",
    "prior_from": "traces are pooled under the documented priors, so that none counts twice",
}
"""Options of ``fit`` that ``pool`` does not take, and why."""


def _add_pool(parser: Parser) -> None:
    add = parser.add_argument
    what = "trace (file, 'PATTERN', NAME=FILE) or result of a fit (folder, posterior.nc); two or more"
    add("members", nargs="+", metavar="TRACE|RESULT", help=what)
    what = "server that a trace is of (default: its GPU and LLM as labelled, else a server of its own)"
    add("--server", type=_named_label, action="append", default=[], metavar="NAME=LABEL", help=what)
    add("--accept-unconverged", action="store_true", help="pool fits even if they have not converged")
    replaced = "pool, and fits of other options"
    command.add_result_options(parser, name="pool", replaced=replaced, bare="posteriors")
    add_fitting(parser)
    for name in _OF_A_POOL:
        add(option_of(name), help=argparse.SUPPRESS)


def _named_label(text: str) -> tuple[str, str]:
    name, sign, label = text.partition("=")
    if not (name and sign and label.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LABEL, such as h100-night=H100")
    return name, label.strip()


def _check_pool(options: argparse.Namespace, call: Call) -> None:
    """Read who the members are, and check the options, cheapest first; no trace and no fit is opened."""
    for name, why in _OF_A_POOL.items():
        if getattr(options, name) is not None:
            raise InputError(f"{option_of(name)} with a pool: {why}")
    check_limits(options)
    options.members = _pool_members(options.members)
    options.servers = _pool_servers(options.server, options.members)
    folder = command.check_named(options, "pool", holds=POPULATION)
    for member in options.members:
        if member.name == folder.name and member.traces:
            raise InputError(f"{member.name} is the name of a trace: give the pool another --name")
        if member.traces:
            command.check_result(options.results_dir, member.name, overwrite=True)
    options.folder = folder
    check_model(options.model)


@dataclass(frozen=True)
class PoolMember:
    """One of a pool: a fit's file, or the files of a trace that is yet to be fitted."""

    name: str
    fit_file: Path | None = None
    traces: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> PoolMember:
        """Read a trace (file, pattern, ``NAME=FILE``) or the result of a fit (folder, its file)."""
        name, sign, rest = text.partition("=")
        if not (sign and is_name(name)) or Path(text).exists():
            name, rest = "", text
        if Path(rest).is_dir() or rest.endswith(".nc"):
            file = fit_file(Path(rest))
            found = file.absolute()
            member = cls(name or (found.parent.name if found.name == POSTERIOR else found.stem), file)
        else:
            files = expand_paths(rest)[0]
            member = cls(name or result_name(files), traces=tuple(files))
        if not is_name(member.name):
            raise InputError(f"{text}: {member.name!r} cannot name a member; name it: NAME={rest}")
        return member

    @property
    def paths(self) -> set[Path]:
        """What it is read from."""
        given = self.traces if self.fit_file is None else (self.fit_file,)
        return {Path(path).resolve() for path in given}


def _pool_members(texts: Sequence[str]) -> tuple[PoolMember, ...]:
    members = tuple(PoolMember.of(text) for text in texts)
    if len(members) < 2:
        raise InputError(f"{members[0].name}: one trace; a pool takes two or more")
    for number, member in enumerate(members):
        if member.name == UNSEEN:
            raise InputError(f"{UNSEEN!r} is the name of the server not yet seen: name the trace, NAME=FILE")
        for other in members[:number]:
            if member.paths & other.paths:
                raise InputError(f"{member.name}: the same trace twice; a pool takes each once")
            if member.name == other.name:
                raise InputError(f"two traces have the name {member.name}: tell them apart, NAME=FILE")
    return members


def _pool_servers(given: Sequence[tuple[str, str]], members: Sequence[PoolMember]) -> dict[str, str]:
    names = [member.name for member in members]
    found: dict[str, str] = {}
    for name, label in given:
        if name not in names:
            raise InputError(f"--server {name}: no such trace; the pool has {', '.join(names)}")
        if name in found:
            raise InputError(f"--server {name}: given twice")
        found[name] = label
    return found


def _add_analyze(parser: Parser) -> None:
    add_traces(parser)
    add = parser.add_argument
    add("--max-bad-share", type=share, default=0.05, metavar="X", help="of unusable lines")
    add = command.add_report_options(parser, name="the trace's, and -analysis")
    add("--csv", type=Path, metavar="PATH", help="write the statistics as a CSV table")
    add = parser.add_argument_group("what is a finding").add_argument
    factor = command.number_option(float, lambda x: 1 < x < math.inf, "a factor above 1")
    use = command.number_option(float, lambda x: 0 < x <= 1, "a share above 0 and at most 1")
    slow, rise = "scheduling above it", "sudden rise by so much"
    add("--slow-schedule-ms", type=milliseconds, default=10.0, metavar="MS", help=slow)
    add("--schedule-rise", type=factor, default=2.0, metavar="X", help=rise)
    add("--long-queue", type=at_least(1), default=10, metavar="N", help="more waiting requests")
    add("--full-kv-cache", type=use, default=0.95, metavar="X", help="share of it in use")
    add("--top", type=at_least(0), default=10, metavar="N", help="list so many of everything")


def _check_analyze(options: argparse.Namespace, call: Call) -> None:
    files, _ = expand_paths(options.traces)
    options.folder = command.check_report(options, f"{result_name(files)}-analysis", holds=ANALYSIS)
    if options.csv is not None:
        command.check_output(options.csv, inputs=files, overwrite=options.overwrite)


def _add_watch(parser: Parser) -> None:
    seconds = command.number_option(float, lambda x: 0.05 <= x < 1e6, "a number of seconds of at least 0.05")
    add = parser.add_argument
    add("trace", metavar="TRACE", help="the log, plain text; it need not exist yet")
    add("--interval", type=seconds, default=1.0, metavar="S", help="between two figures")
    add("--window", type=seconds, default=10.0, metavar="S", help="that the figures are of")
    add("--duration", type=seconds, metavar="S", help="end after so long (default: never)")
    add("--once", action="store_true", help="one line about the end of the log, and done")


def _check_watch(options: argparse.Namespace, call: Call) -> None:
    check_followable(options.trace, is_needed=options.once)


def _add_models(parser: Parser) -> None:
    add_traces(parser)
    add = parser.add_argument
    what = "what is compared (default: the project's models that the trace has the columns for)"
    add("--models", type=command.names, metavar="A,B", help=what)
    add("--json", action="store_true", help="print one JSON document in place of the tables")
    add("--csv", type=Path, metavar="FILE", help="write the comparison as a table, too")
    add("--figure", type=Path, metavar="FILE.png", help="draw the differences with their intervals, too")
    add("--overwrite", action="store_true", help="replace existing files of these names")
    add = parser.add_argument_group("steps").add_argument
    add("--rows", type=at_least(20), default=2000, metavar="N", help="random steps")
    add_latency_limits(add)
    add_sampling(parser, least_draws=100)


def _check_models(options: argparse.Namespace, call: Call) -> None:
    check_limits(options)
    if options.figure is not None and options.figure.suffix != ".png":
        raise InputError(f"--figure {options.figure}: name a .png file")
    chosen, shipped = options.models or (), shipped_models()
    for number, name in enumerate(chosen):
        if name in chosen[:number]:
            raise InputError(f"--models {name}: given twice")
        model = name.partition(":")[0]
        if model not in shipped and not Path(model).is_file():
            raise InputError(
                f"--models {name}: no such model; give some of {', '.join(shipped)}, MODEL:NOISE, or the "
                "path of a model's .py file"
            )
    files, warnings = expand_paths(options.traces)
    call.warn(warnings)
    for path in filter(None, (options.csv, options.figure)):
        command.check_output(path, inputs=files, overwrite=options.overwrite)


FIT = Command(
    name="fit",
    summary="fit a latency model to a step trace",
    description="Fit a latency model to the step trace of a vLLM scheduler: posterior and report.",
    script="fit_bayes.py",
    add_options=_add_fit,
    check=_check_fit,
    epilog=f"""\
examples:
  bayes-sched fit trace.jsonl
  bayes-sched fit 'logs/*.jsonl.gz' --name h100 --gpu H100 --llm llama-3.1-8b
  zstd -dc trace.jsonl.zst | bayes-sched fit - --name tonight --overwrite
  bayes-sched fit trace.jsonl --max-latency-ms 800 --priors examples/priors.toml
  bayes-sched fit trace.jsonl --model my_model.py --json --no-report
  bayes-sched pool a.jsonl b.jsonl results/h100    # several servers help each other
  bayes-sched fit new.jsonl --prior-from results/pool    # the next server, from fifty steps

{_FIT_END}""",
)
POOL = Command(
    name="pool",
    summary="let the fits of several servers borrow strength",
    description="Pool several fits: servers borrow strength from each other, and the next one from all.",
    script="fit_bayes.py --pool",
    add_options=_add_pool,
    check=_check_pool,
    epilog="""\
examples:
  bayes-sched pool results/h100 results/a6000 results/l40s
  bayes-sched pool a.jsonl 'b-*.jsonl.gz' results/h100 --name pool
  bayes-sched pool a=gpu1/steps.jsonl b=gpu2/steps.jsonl --server a=H100 --server b=H100
  bayes-sched fit new.jsonl --prior-from results/pool

A trace is fitted as if alone, with the options above, into a result of its own (DIR/NAME); where that stands
already, made from the same trace with the same options, it is used. So a pool that is refused, or
interrupted, costs no fit. --draws, --chains, --seed and --sampler hold for the population too.

The pool is DIR/pool: report.html, population.nc (for --prior-from), members/NAME and members/unseen (a server
not yet seen), which are fits like others: to compare, to plan with, to ask what may be promised.

exit status: 0 done; 2 bad input or usage; 3 the pool has not converged (it is saved, marked as such);
130 interrupted.
""",
)
_ANALYZE_END = """\
examples:
  bayes-sched analyze trace.jsonl
  bayes-sched analyze 'logs/*.jsonl.gz' --report --name tonight
  bayes-sched analyze trace.jsonl --json --slow-schedule-ms 5 | jq .findings
  bayes-sched watch scheduler_profiling.jsonl

exit status: 0 done (watch: also when it is interrupted); 2 bad input or usage; 130 interrupted.
A run that fails leaves an existing result as it was.
"""
ANALYZE = Command(
    name="analyze",
    summary="statistics, findings and figures of a trace",
    script="analyze_trace.py analyze",
    add_options=_add_analyze,
    check=_check_analyze,
    epilog=_ANALYZE_END,
)
WATCH = Command(
    name="watch",
    summary="current figures of a log that grows",
    description="Follow a growing log: one line of current figures. It survives that the log is rotated, "
    "truncated, deleted or not there yet. Ctrl-C ends it.",
    script="analyze_trace.py watch",
    add_options=_add_watch,
    check=_check_watch,
    epilog=_ANALYZE_END,
)
ANALYZE_TRACE = Command(
    name="analyze_trace",
    summary="say what a scheduler's step trace shows, without any model",
    script="analyze_trace.py",
    commands=(ANALYZE, WATCH),
    epilog=_ANALYZE_END,
)
MODELS = Command(
    name="models",
    summary="compare models by leave-one-out on one trace",
    description="Compare models by leave-one-out (PSIS) on the same steps of a trace, and by what their "
    "sampling costs.",
    script="compare_models.py",
    add_options=_add_models,
    check=_check_models,
    epilog="""\
models: names of the project's own, such as saturation, with a noise option after a colon if it is not the
  model's first, such as saturation:constant; or a .py file, which is run

examples:
  bayes-sched models trace.jsonl --models saturation,saturation:constant,saturation_context
  bayes-sched models trace.jsonl --rows 1000 --json | jq .best

Leave-one-out answers for steps like those seen. Scores on stretches of time and on token budgets that were
left out: bayes-sched study validate.

exit status: 0 done; 2 bad input or usage; 3 a fit has not converged (its row is marked); 130 interrupted.
""",
)
