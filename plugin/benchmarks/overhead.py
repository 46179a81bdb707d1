"""What the recorder costs the host part of a step: on against off, in pairs, at several batch sizes.

vLLM's EngineCore and scheduler run in front of a device that answers at once, so that nothing but the host
part is left of a step. One step with the hooks and one without take turns, the first of each pair by lot.
Three figures, in microseconds a step:

- wall: what the engine's thread takes longer, median of the differences with its 95 % interval;
- CPU: what it computes more, mean of the differences with its 95 % interval;
- writer: what the writer's thread computes for a step, most of it while an engine waits for its device.

    VLLM_PYTHON plugin/benchmarks/overhead.py                  # about two minutes
    VLLM_PYTHON plugin/benchmarks/overhead.py --json --pairs 500
"""

import argparse
import json
import math
import os
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from simulated_engine import add_requests, make_engine, prepare_environment, run_steps

METHODS = ("schedule", "update_from_output")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64, 256], metavar="B")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of steps (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    prepare_environment()
    with TemporaryDirectory() as folder:
        os.environ |= {"ENABLE_SCHEDULER_PROFILING": "1", "SCHEDULER_PROFILING_LOG": f"{folder}/steps.jsonl"}
        results = []
        for batch_size in options.batch_sizes:
            lot = random.Random(options.seed)
            results.append(measure(batch_size, num_pairs=options.pairs, lot=lot, folder=Path(folder)))
            if not options.json:
                print(as_row(results[-1]), flush=True)
    if options.json:
        print(json.dumps(results))


def as_row(result: dict[str, Any]) -> str:
    wall, cpu = result["wall_us"], result["cpu_us"]
    return (
        f"B = {result['batch_size']:4d}: a step {result['off_us']:7.1f} us off; "
        f"wall {wall[0]:+6.1f} us ({wall[1]:+.1f} to {wall[2]:+.1f}), "
        f"CPU {cpu[0]:+6.1f} us ({cpu[1]:+.1f} to {cpu[2]:+.1f}); writer {result['writer_us']:.0f} us"
    )


def measure(batch_size: int, *, num_pairs: int, lot: random.Random, folder: Path) -> dict[str, Any]:
    """Measure at one batch size; each figure is (value, low, high), microseconds a step."""
    engine = make_engine(is_async=False, service_ms=lambda output: 0.0, max_num_seqs=256)
    add_requests(engine, batch_size, max_tokens=2 * num_pairs + 300)
    switch, steps = Switch(), run_steps(engine)
    for _ in range(100):  # the prompts, and what is slow the first time
        next(steps)
    wall: dict[bool, list[float]] = {True: [], False: []}
    cpu: dict[bool, list[float]] = {True: [], False: []}
    writer_begin_s = writer_cpu_s()
    for _ in range(num_pairs):
        for is_on in lot.sample([True, False], 2):
            switch.turn(is_on)
            wall_s, cpu_s = _time_step(steps)
            wall[is_on].append(1e6 * wall_s)
            cpu[is_on].append(1e6 * cpu_s)
    time.sleep(0.3)  # the writer's last turns
    writer_s = writer_cpu_s() - writer_begin_s
    _check_recorded(folder, batch_size, at_least=num_pairs)
    return {
        "batch_size": batch_size,
        "num_pairs": num_pairs,
        "off_us": statistics.median(wall[False]),
        "wall_us": _median(_differences(wall)),
        "cpu_us": _mean(_differences(cpu)),
        "writer_us": 1e6 * writer_s / num_pairs,
    }


class Switch:
    """Puts vLLM's own methods in the place of the hooked ones, and back."""

    def __init__(self) -> None:
        from vllm.v1.core.sched.scheduler import Scheduler

        self._scheduler = Scheduler
        self._hooked = {name: Scheduler.__dict__[name] for name in METHODS}
        assert all(hasattr(hooked, "__wrapped__") for hooked in self._hooked.values()), "not hooked"

    def turn(self, is_on: bool) -> None:
        for name, hooked in self._hooked.items():
            setattr(self._scheduler, name, hooked if is_on else hooked.__wrapped__)


def _time_step(steps: Iterator[None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.thread_time()
    next(steps)
    return time.perf_counter() - wall, time.thread_time() - cpu


def writer_cpu_s() -> float:
    """Give the CPU time of the writers' threads."""
    threads = [thread for thread in threading.enumerate() if thread.name == "scheduler-profiling"]
    clocks = [time.pthread_getcpuclockid(thread.ident or 0) for thread in threads]
    return sum(map(time.clock_gettime, clocks))


def _differences(samples: dict[bool, list[float]]) -> list[float]:
    return [on - off for on, off in zip(samples[True], samples[False], strict=True)]


def _median(values: Sequence[float]) -> tuple[float, float, float]:
    """Give the median and its interval from the order statistics: no distribution is assumed."""
    ordered, half = sorted(values), 0.98 * math.sqrt(len(values))
    middle = len(values) / 2
    return statistics.median(ordered), ordered[int(middle - half)], ordered[math.ceil(middle + half)]


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    mean, half = statistics.mean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _check_recorded(folder: Path, batch_size: int, *, at_least: int) -> None:
    newest = max(folder.glob("*.jsonl"), key=lambda log: log.stat().st_mtime)
    steps = [json.loads(line) for line in newest.read_text().splitlines()]
    num_recorded = sum(step["num_decode_reqs"] == batch_size for step in steps)
    assert num_recorded >= at_least, f"only {num_recorded} steps were recorded"


if __name__ == "__main__":
    main()
