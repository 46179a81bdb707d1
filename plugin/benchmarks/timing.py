"""How true `model_run_duration_ms` is: vLLM's EngineCore and schedulers on a device of known service time.

VLLM_PYTHON plugin/benchmarks/timing.py            # synchronous and asynchronous scheduling
VLLM_PYTHON plugin/benchmarks/timing.py --json
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from simulated_engine import add_requests, make_engine, prepare_environment, run_steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="steps in each mode (default 200)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    prepare_environment()
    with TemporaryDirectory() as folder:
        os.environ |= {"ENABLE_SCHEDULER_PROFILING": "1", "SCHEDULER_PROFILING_LOG": f"{folder}/steps.jsonl"}
        results = [measure(is_async, num_steps=options.steps) for is_async in (False, True)]
    if options.json:
        print(json.dumps(results))
        return
    print("scheduling    steps  median error  p95 error  of t2 - t1: median error")
    for result in results:
        print(
            f"{result['scheduling']:12s} {result['num_steps']:6d} {result['median_error']:12.2%} "
            f"{result['p95_error']:10.2%} {result['naive_median_error']:18.2%}"
        )


def measure(is_async: bool, *, num_steps: int) -> dict[str, Any]:
    """Record steps and hold their times against those that the device took."""
    folder = Path(os.environ["SCHEDULER_PROFILING_LOG"]).parent
    steps, truth_ms = _run(is_async, folder, num_steps)
    recorded_ms = [step["model_run_duration_ms"] for step in steps]
    # The first definition, t2 - t1, also counts the step before where two are in flight.
    naive_ms = [step["total_step_duration_ms"] - step["schedule_duration_ms"] for step in steps]
    errors = [abs(a / b - 1) for a, b in zip(recorded_ms, truth_ms, strict=True)]
    naive_errors = [abs(a / b - 1) for a, b in zip(naive_ms, truth_ms, strict=True)]
    return {
        "scheduling": "asynchronous" if is_async else "synchronous",
        "num_steps": len(steps),
        "median_error": statistics.median(errors),
        "p95_error": statistics.quantiles(errors, n=20)[-1],
        "naive_median_error": statistics.median(naive_errors),
    }


def _run(is_async: bool, folder: Path, num_steps: int) -> tuple[list[dict[str, Any]], list[float]]:
    def service_ms(scheduler_output: Any) -> float:
        # Unlike its neighbours: a time that is given to the wrong step shows.
        index = len(engine.model_executor.device.service_ms)
        return float(30 + 5 * (index * 7 % 5) + 0.02 * scheduler_output.total_num_scheduled_tokens)

    engine = make_engine(is_async=is_async, service_ms=service_ms, max_num_seqs=16)
    add_requests(engine, 8, max_tokens=num_steps // 2, prompt_tokens=700)
    begin = time.time()
    for index, _ in enumerate(run_steps(engine)):
        if index == num_steps // 4:
            add_requests(engine, 8, max_tokens=num_steps // 2, prompt_tokens=1100)
    truth_ms = engine.model_executor.device.service_ms
    return _recorded(folder, begin, len(truth_ms)), truth_ms


def _recorded(folder: Path, begin: float, count: int) -> list[dict[str, Any]]:
    """Wait for the steps since `begin`; a second engine of this process has a file of its own."""
    for _ in range(100):
        time.sleep(0.05)
        lines = [line for log in folder.glob("*.jsonl") for line in log.read_text().splitlines()]
        steps = [step for step in map(json.loads, lines) if step["timestamp"] >= begin]
        if len(steps) >= count:
            break
    return steps


if __name__ == "__main__":
    main()
