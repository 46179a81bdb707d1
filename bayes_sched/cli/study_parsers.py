"""The studies as subcommands: their options, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

from bayes_sched.cli.command import Command
from bayes_sched.studies.names import SPLIT_TITLES

SCHEDULER = ("token_budget", "max_num_seqs", "kv_tokens", "block_tokens")
"""Settings of a scheduler, as options and as arguments of the library."""
_DESIGN = Path(__file__).resolve().parents[2] / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"
_RESUME = "An interrupted study goes on where it stopped when it is called again with --resume.\n\n"
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
