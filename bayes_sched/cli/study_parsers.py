"""The studies as subcommands: their options, and what is refused before anything is read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bayes_sched.cli import command
from bayes_sched.cli.command import Call, Command, Parser, at_least, milliseconds, probability
from bayes_sched.cli.trace_parsers import add_latency_limits, add_traces, check_limits, check_model
from bayes_sched.errors import InputError
from bayes_sched.files import SIMULATOR, VALIDATION, fit_file
from bayes_sched.studies.folder import StudyFolder
from bayes_sched.studies.names import SPLIT_TITLES, check_competitors, check_splits
from bayes_sched.trace.opening import expand_paths, result_name

SCHEDULER = ("token_budget", "max_num_seqs", "kv_tokens", "block_tokens")
"""Settings of a scheduler, as options and as arguments of the library."""
_DESIGN = Path(__file__).resolve().parents[2] / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"
_RESUME = "An interrupted study goes on where it stopped when it is called again with --resume.\n\n"
_STATUS = "exit status: 0 done; 2 bad input or usage; 130 interrupted.\n"


def _add_study(parser: Parser, *, folder: str) -> None:
    """Add what every study takes that grows run by run."""
    add = parser.add_argument
    add("--results-dir", type=Path, default=Path(folder), metavar="DIR", help="where results go")
    add("--resume", action="store_true", help="go on with the study in the folder")
    add("--overwrite", action="store_true", help="replace the study in the folder")


def _add_sampling(add: Any, *, draws: int, chains: int, least: int = 50, tune: int | None = 50) -> None:
    add("--draws", type=at_least(least), default=draws, metavar="N", help="kept of each chain")
    if tune is not None:
        words = "tuning draws of each chain, for each part"
        add("--tune", type=at_least(1), default=tune, metavar="N", help=words)
    add("--chains", type=at_least(2), default=chains, metavar="N", help="number of chains")


def _add_design(add: Any, *, rows: int, of: str) -> None:
    add("--design", type=Path, default=_DESIGN, metavar="TRACE", help="its (B, S) (default: the example's)")
    add("--rows", type=at_least(20), default=rows, metavar="N", help=f"steps of a {of}")


def _add_seed(add: Any, *, default: int = 1, of: str = "of everything random") -> None:
    add("--seed", type=at_least(0), default=default, metavar="N", help=f"{of}".strip())


def _study(
    options: argparse.Namespace,
    call: Call,
    names: str,
    *,
    table: str,
    number: str,
    folder: Path | None = None,
    check: bool = True,
    **more: Any,
) -> StudyFolder:
    """Return the folder of a study and note the command; refuse what is there and may not be touched."""
    settings = command.given(options, *names.split()) | more
    made = StudyFolder(folder=folder or options.results_dir, table=table, number=number, settings=settings)
    if options.resume and options.overwrite:
        raise InputError("--resume and --overwrite contradict each other")
    if made.folder.exists() and not made.folder.is_dir():
        raise InputError(f"--results-dir {made.folder}: not a folder")
    if options.resume and check:
        try:
            made.check_settings()
        except InputError as error:
            raise InputError(f"--resume: {error}") from error
    elif made.path.exists() and not options.overwrite:
        raise InputError(f"{made.folder} holds a study: give --resume, --overwrite or another --results-dir")
    options.command = call.line(without=("--resume", "--overwrite"))
    return made


def _check_file(option: str, path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{option} {path}: no such file".strip())


def _expand(call: Call, traces: Sequence[str]) -> list[str]:
    files, warnings = expand_paths(traces)
    call.warn(warnings)
    return files


def _add_validate(parser: Parser) -> None:
    add_traces(parser)
    add = parser.add_argument
    add("--name", default="validation", help="name of the result")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="where results go")
    add("--overwrite", action="store_true", help="replace an existing validation, its whole folder")
    add("--resume", action="store_true", help="go on with an interrupted run of this name")
    add("--keep", action="store_true", help="keep the forecasts for --resume, to add models or splits later")
    add("--no-report", action="store_true", help="write numbers and tables alone")
    add("--svg", action="store_true", help="write the figures of the report as SVG files, too")
    add("--json", action="store_true", help="print one JSON document in place of the tables")
    add = parser.add_argument_group("what is compared").add_argument
    some, everything = command.names, tuple(SPLIT_TITLES)
    add("--models", type=some, metavar="A,B", help="contenders (default: all, see below)")
    held = "ways of holding steps out (default: all)"
    add("--splits", type=some, default=everything, metavar="A,B", help=held)
    add("--repeats", type=at_least(1), default=1, metavar="N", help="of the random splits")
    _add_seed(add, default=0)
    add("--max-train", type=at_least(20), default=4000, metavar="N", help="steps learned from")
    rare = "choose the steps learned from as a fit does, the rare sizes first (default: at random)"
    add("--rare-first", action="store_true", help=rare)
    add("--max-test", type=at_least(20), default=2000, metavar="N", help="steps predicted")
    add = parser.add_argument_group("traces").add_argument
    add("--each", action="store_true", help="take each trace alone (default: those of one server are pooled)")
    mark = "without labels, what stands before it in a trace's name is its server"
    add("--server-mark", default="_chunk", metavar="TEXT", help=mark)
    add_latency_limits(add)
    add = parser.add_argument_group("sampling of the project's models").add_argument
    _add_sampling(add, draws=500, chains=4, least=1)


def _check_validate(options: argparse.Namespace, call: Call) -> None:
    """Check the arguments; forecasts of another run are neither mixed in nor lost."""
    _as_option("--splits", check_splits, options.splits)
    check_limits(options)
    _as_option("--models", check_competitors, options.models or ())
    options.files = _expand(call, options.traces)
    # A resumed run may replace the result: that is how models are added to a validation that was kept.
    options.replace = options.overwrite or options.resume
    folder = command.check_result(
        options.results_dir, options.name, overwrite=options.replace, holds=VALIDATION
    )
    unfinished = folder.with_name(f".{folder.name}.unfinished.tmp")
    if options.resume and options.overwrite:
        raise InputError("--resume and --overwrite contradict each other")
    if options.resume and not unfinished.is_dir():
        raise InputError(f"--resume: there are no forecasts of {options.name} ({unfinished}) to go on with")
    if unfinished.exists() and not options.replace:
        raise InputError(
            f"{unfinished} holds forecasts of a run that was interrupted or kept: give --resume to go on, "
            "--overwrite to start anew, or another --name"
        )
    options.folder, options.unfinished = folder, unfinished
    options.command = call.line(without=("--resume", "--overwrite"))


def _as_option(option: str, check: Callable[[Sequence[str]], None], names: Sequence[str]) -> None:
    try:
        check(names)
    except InputError as error:
        raise InputError(f"{option} {error}") from error


def _add_validate_pool(parser: Parser) -> None:
    add, what = parser.add_argument, "the trace of one of them; repeatable"
    fits = "folders of fits, such as results/h100: the pool"
    add("fits", nargs="+", type=Path, metavar="FIT", help=fits)
    add("--trace", action="append", required=True, metavar="FILE", help=what)
    add("--steps", type=at_least(20), default=50, metavar="N", help="to learn from")
    add("--consecutive", action="store_true", help="steps in a row, not a random choice")
    add("--runs", type=at_least(1), default=20, metavar="N", help="of each trace")
    add("--max-test", type=at_least(20), default=2000, metavar="N", help="steps to predict")
    _add_seed(add)
    _add_sampling(add, draws=500, chains=2, tune=None)
    _add_study(parser, folder="results/pool_validation")


def _check_validate_pool(options: argparse.Namespace, call: Call) -> None:
    options.posteriors = [fit_file(path) for path in options.fits]
    options.trace, _ = expand_paths(options.trace)
    options.study = _study(
        options,
        call,
        "steps consecutive runs max_test seed draws chains",
        table="runs.csv",
        number="number",
        fits=[path.parent.name for path in options.posteriors],
        traces=[Path(path).name for path in options.trace],
    )


def _add_calibrate(parser: Parser) -> None:
    add = parser.add_argument
    add("--simulations", type=at_least(10), default=200, metavar="N", help="how many")
    _add_seed(add)
    _add_design(add, rows=160, of="simulation")
    add("--model", default="saturation", help="name of a model, or a .py file, which is run")
    add("--noise", help="noise option of the model (default: its first)")
    _add_sampling(add, draws=500, chains=2, least=25)
    _add_study(parser, folder="results/calibration")


def _check_calibrate(options: argparse.Namespace, call: Call) -> None:
    _check_file("--design", options.design)
    if options.draws * options.chains < 100:
        raise InputError(
            f"{options.chains} chains of {options.draws} draws are too few: 100 are needed in all"
        )
    options.study = _study(
        options,
        call,
        "seed rows model noise draws tune chains",
        table="simulations.csv",
        number="simulation",
        design=options.design.name,
    )


def _add_promises(parser: Parser) -> None:
    add = parser.add_argument
    _add_seed(add)
    add("--quantile", type=probability, default=0.99, metavar="Q", help="of promises")
    add("--confidence", type=probability, default=0.95, metavar="C", help="of promises")
    _add_sampling(add, draws=500, chains=2)
    add("--json", action="store_true", help="print one JSON document in place of the tables")
    _add_study(parser, folder="results/promises")
    add = parser.add_argument_group("simulated servers").add_argument
    add("--servers", type=at_least(0), default=200, metavar="N", help="how many")
    _add_design(add, rows=500, of="server")
    add = parser.add_argument_group("real traces").add_argument
    add("--traces", nargs="+", default=[], metavar="FILE", help="hold a fifth of each out, in two ways")
    add("--max-rows", type=at_least(20), default=3000, metavar="N", help="fitted of each")


def _check_promises(options: argparse.Namespace, call: Call) -> None:
    """Check both studies: a part that has not begun begins, whatever became of the other."""
    if not options.servers and not options.traces:
        raise InputError("--servers 0 and no --traces: nothing to do")
    if options.servers:
        _check_file("--design", options.design)
    options.traces = _expand(call, options.traces) if options.traces else []
    parts = {"servers": options.results_dir / "servers", "traces": options.results_dir / "traces"}
    begun = {
        name: StudyFolder(folder=path, table="", number="", settings={}).has_settings
        for name, path in parts.items()
    }
    if options.resume and not any(begun.values()):
        raise InputError(f"--resume: {options.results_dir} holds no study")
    common, options.studies = "seed quantile confidence draws tune chains", {}
    if options.servers:
        options.studies["servers"] = _study(
            options,
            call,
            f"{common} rows",
            table="servers.csv",
            number="server",
            folder=parts["servers"],
            check=begun["servers"],
            design=options.design.name,
        )
    if options.traces:
        options.studies["traces"] = _study(
            options,
            call,
            f"{common} max_rows",
            table="cells.csv",
            number="run",
            folder=parts["traces"],
            check=begun["traces"],
            traces=[Path(name).name for name in options.traces],
        )


def _add_comparison(parser: Parser) -> None:
    add = parser.add_argument
    add("--pairs", type=at_least(10), default=100, metavar="N", help="how many")
    _add_seed(add)
    _add_design(add, rows=80, of="server")
    add("--probability", type=probability, default=0.9, metavar="P", help="of intervals")
    _add_sampling(add, draws=300, chains=2)
    _add_study(parser, folder="results/comparison_calibration")


def _check_comparison(options: argparse.Namespace, call: Call) -> None:
    _check_file("--design", options.design)
    options.study = _study(
        options,
        call,
        "seed rows probability draws tune chains",
        table="pairs.csv",
        number="pair",
        design=options.design.name,
    )


def _add_simulator(parser: Parser) -> None:
    count, add = at_least(1), parser.add_argument
    add("--trace", required=True, metavar="FILE", help="the server's steps, as the recorder wrote them")
    log = (
        ".csv or .jsonl (.gz): arrival_s (Unix time), prompt_tokens, output_tokens, ttft_ms, tpot_ms, e2e_ms"
    )
    add("--requests", type=Path, required=True, metavar="FILE", help=log)
    add = parser.add_argument_group("scheduler").add_argument
    told = "(default: the side-car's, else"
    add("--token-budget", type=count, metavar="S", help=f"max_num_batched_tokens {told} the largest step's)")
    add("--max-num-seqs", type=count, metavar="B", help=f"most running requests {told} what the trace shows)")
    add("--kv-tokens", type=count, metavar="N", help=f"tokens that the KV cache holds {told} no limit)")
    add("--block-tokens", type=count, metavar="N", help=f"of a block of the KV cache {told} 16)")
    add = parser.add_argument_group("fit and simulation").add_argument
    model = "name of a model of B and S, or a .py file, which is run"
    add("--model", default="saturation", help=model)
    longer = "longer steps are not fitted"
    add("--max-latency-ms", type=milliseconds, default=300.0, metavar="MS", help=longer)
    add("--draws", type=count, default=200, metavar="N", help="posterior draws, a replay each")
    add("--probability", type=probability, default=0.9, metavar="P", help="of intervals")
    _add_seed(add, default=0)
    add = parser.add_argument_group("what comes out").add_argument
    add("--json", action="store_true", help="print one JSON document in place of the text")
    add("--report", action="store_true", help="write a page of Markdown, tables and figures")
    add("--name", help="name of the report (default: the trace's, and -simulator)")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="where results go")
    add("--overwrite", action="store_true", help="replace an existing report")


def _check_simulator(options: argparse.Namespace, call: Call) -> None:
    files, _ = expand_paths(options.trace)
    _check_file("", options.requests)
    options.folder = command.check_report(options, f"{result_name(files)}-simulator", holds=SIMULATOR)
    options.command = call.line(traces=[options.trace, str(options.requests)])


def _add_benchmark(parser: Parser) -> None:
    parser.add_argument(
        "traces", nargs="+", metavar="TRACE", help="trace file (.gz, .zst, plain) or 'PATTERN'"
    )
    parser.add_argument("--model", default="saturation", help="name of a model, or a .py file")
    parser.add_argument("--json", action="store_true", help="print one JSON document in place of the tables")


def _add_benchmark_sampling(parser: Parser) -> None:
    _add_benchmark(parser)
    add, one = parser.add_argument, at_least(1)
    add("--rows", type=at_least(20), default=1000, metavar="N", help="steps, chosen at random")
    _add_sampling(add, draws=1000, chains=4, least=1, tune=None)
    tune = "tuning draws of each chain (default: ours 50 for each part, direct 1000)"
    add("--tune", type=one, metavar="N", help=tune)
    _add_seed(add, default=0, of="of the rows and of the samplers")
    depth = "greatest tree depth of the direct formulation, 2**N leapfrog steps a draw"
    add("--max-depth", type=one, default=8, metavar="N", help=depth)


def _add_benchmark_fits(parser: Parser) -> None:
    _add_benchmark(parser)
    add = parser.add_argument
    add("--seeds", type=_seeds, default=(0,), metavar="N,N,...", help="one fit each (default: 0)")
    add("--no-report", action="store_true", help="without the report")


def _check_benchmark(options: argparse.Namespace, call: Call) -> None:
    options.files, _ = expand_paths(options.traces)
    for file in options.files:
        if file == "-" or not Path(file).is_file():
            raise InputError(f"{file}: no such file (a benchmark reads files, each a trace of its own)")
    check_model(options.model)


def _add_predictor(parser: Parser) -> None:
    add = parser.add_argument
    compiled = "a predictor.npz made by bayes-sched predictor"
    add("predictor", type=Path, metavar="PREDICTOR", help=compiled)
    add("trace", metavar="TRACE", help="steps to ask for and to replay, in order (.gz, .zst, plain)")
    add("--fit", type=Path, metavar="RESULT", help="folder of the fit, to measure the accuracy against")
    drifts = (1.1, 1.2, 1.5)
    add(
        "--factors",
        type=_factors,
        default=drifts,
        metavar="X,X,...",
        help="drifts from the middle on (default: 1.1,1.2,1.5)",
    )
    add("--tolerance", type=command.share, metavar="X", help="of the monitor (default: as calibrated)")
    add("--runs", type=at_least(1), default=5, metavar="N", help="fresh processes timed")
    _add_seed(add, default=0, of="of the steps that accuracy is measured at")
    add("--json", action="store_true", help="print one JSON document in place of the text")


def _check_predictor(options: argparse.Namespace, call: Call) -> None:
    for path in (options.predictor, Path(options.trace)):
        _check_file("", path)
    if options.fit is not None:
        options.fit = fit_file(options.fit)


def _seeds(text: str) -> tuple[int, ...]:
    return _listed(text, int, lambda seed: seed >= 0, "whole numbers such as 1,2,3")


def _factors(text: str) -> tuple[float, ...]:
    return _listed(text, float, lambda factor: 0.0 < factor < 100.0, "factors such as 1.1,1.5")


def _listed[T](text: str, kind: Callable[[str], T], check: Callable[[T], bool], words: str) -> tuple[T, ...]:
    """Read values with commas between them."""
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(map(check, found)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {words}")
    return found


def _command(name: str, summary: str, add: Any = None, check: Any = None, **more: Any) -> Command:
    script = "" if more.pop("inner", False) else f"{name.replace('-', '_')}.py"
    return Command(
        name=name,
        summary=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        script=script,
        module="study",
        add_options=add,
        check=check,
        **more,
    )


_BENCHMARKS = """\
examples:
  bayes-sched study benchmark sampling trace.jsonl --rows 1000
  bayes-sched study benchmark fits 'traces/*.jsonl.gz' --seeds 1,2,3,4,5

exit status: 0 done (fits: all converged); 2 bad input or usage; 3 a fit has not converged; 130 interrupted.
"""

STUDIES: tuple[Command, ...] = (
    _command(
        "validate",
        "How well do models predict steps that they have not seen? Ours beside a baseline, a line and "
        "LightGBM.",
        _add_validate,
        _check_validate,
        epilog=f"""\
splits: {", ".join(SPLIT_TITLES)}
models: line, baseline, baseline-huber, lightgbm (B and S), lightgbm-context (all that is known before a
  step), every model of the project, such as saturation, or with a noise option saturation:constant, or a
  .py file, which is run

examples:
  bayes-sched study validate 'traces/h100_*.jsonl.gz'
  bayes-sched study validate trace.jsonl --models line,lightgbm,saturation --splits random,rows-200
  bayes-sched study validate trace.jsonl --json --no-report | jq .text

{_RESUME}{_STATUS.rstrip()} A run that fails leaves an existing result as it
was.
""",
    ),
    _command(
        "validate-pool",
        "Fit a few steps of a trace with and without a pool of other servers, and score both on the rest.",
        _add_validate_pool,
        _check_validate_pool,
        epilog=f"""\
example:
  bayes-sched study validate-pool results/h100_* results/a6000x2_* --trace '../traces/a6000x2_*512*'

The fits are the pool; each --trace is one of theirs, from which a few steps are drawn again and again. It is
left out of the pool, and so are, for the prior of a new server, all traces of its server.
{_RESUME}{_STATUS}""",
    ),
    _command(
        "calibrate",
        "Simulation-based calibration: fit simulated traces, and see whether the true values rank evenly.",
        _add_calibrate,
        _check_calibrate,
        epilog=f"""\
example:
  bayes-sched study calibrate --simulations 200 --seed 1

{_RESUME}{_STATUS}""",
    ),
    _command(
        "calibrate-promises",
        "See how often promises of latency are kept: by simulated servers, and by steps held out of real "
        "traces.",
        _add_promises,
        _check_promises,
        epilog=f"""\
example:
  bayes-sched study calibrate-promises --servers 200 --traces h100.jsonl.gz a6000.jsonl.gz

Two studies, each in a folder of its own inside --results-dir. servers: draw a server, simulate and fit a
trace of it, promise, and hold the promises against the truth. traces: fit four fifths of a trace, promise,
and count how many of the other steps are late. --servers 0 leaves the first out, no --traces the second.

{_RESUME}{_STATUS}""",
    ),
    _command(
        "calibrate-comparison",
        "Simulate pairs of servers with a known ratio, compare their fits, and see how often that is right.",
        _add_comparison,
        _check_comparison,
        epilog=f"""\
example:
  bayes-sched study calibrate-comparison --pairs 100 --seed 1

{_RESUME}{_STATUS}""",
    ),
    _command(
        "check-simulator",
        "Hold the scheduler simulator against a real server: its decisions, and the times that clients "
        "measured.",
        _add_simulator,
        _check_simulator,
        epilog="""\
The steps are cut in two where the second half of the requests begins. A model is fitted to the first half;
its posterior draws replay all requests, and those of the second half are held against what clients measured.

examples:
  bayes-sched study check-simulator --trace examples/vllm_cpu_requests_steps.jsonl.gz \\
      --requests examples/vllm_cpu_requests.jsonl.gz
  bayes-sched study check-simulator --trace steps.jsonl --requests requests.csv --report --name tonight
  bayes-sched study check-simulator --trace examples/vllm_cpu_requests_tight_steps.jsonl.gz \\
      --requests examples/vllm_cpu_requests_tight.jsonl.gz

Settings of the scheduler that are not given are taken from the trace's side-car (LOG.meta.json beside it),
and what that does not tell from the steps themselves.

exit status: 0 done, whatever was found; 2 bad input or usage; 3 the chains have not converged;
130 interrupted.
""",
    ),
    _command(
        "benchmark",
        "Measure the sampler: beside the model file as it stands (sampling), or over whole fits (fits).",
        epilog=_BENCHMARKS,
        commands=(
            _command(
                "sampling",
                "Sample the same rows as the model file stands (the logarithms of its parameters, each of "
                "nutpie's adaptations) and as the library does. Effective draws: smallest bulk ESS of all "
                "that the gate sees.",
                _add_benchmark_sampling,
                _check_benchmark,
                inner=True,
                epilog=_BENCHMARKS,
            ),
            _command(
                "fits",
                "Fit each trace with the default settings, each in a process of its own: seconds from the "
                "cold start to the finished report, and the process's peak memory.",
                _add_benchmark_fits,
                _check_benchmark,
                inner=True,
                epilog=_BENCHMARKS,
            ),
        ),
    ),
    _command(
        "benchmark-predictor",
        "Try out a compiled predictor: how fast, how close to its fit, and how soon it notices a drift.",
        _add_predictor,
        _check_predictor,
        epilog="""\
example:
  bayes-sched study benchmark-predictor results/h100/predictor.npz trace.jsonl --fit results/h100

LightGBM is timed beside it where it is installed. exit status: 0 done; 2 bad input or usage.
""",
    ),
)
