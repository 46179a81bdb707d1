"""A server that is the simulator itself, seen from outside: its trace, and what its clients measured."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.format import records
from bayes_sched.planning.replay import Replay, SchedulerSettings, StepTimes, replay
from bayes_sched.planning.server_record import ServerRecord
from bayes_sched.planning.workload import MeasuredRequests, PoissonWorkload
from tests.conftest import documented_record
from tests.synthetic_fit import synthetic_fit

START_S = 1_700_000_000.0
LATE_MS = 4.0
"""What clients see beside the engine, ms."""


def simulated_server(
    settings: SchedulerSettings, requests: PoissonWorkload, *, ingress_ms: float = 0.0, seed: int = 2
) -> ServerRecord:
    """Serve requests, and record steps and times as a recorder and clients would.

    A request reaches the scheduler `ingress_ms` after it was sent, and its tokens reach the client so late
    that both ways together take `LATE_MS`.
    """
    workload = requests.draw(np.random.default_rng(seed))
    fit = synthetic_fit(spread=0.01)
    times = StepTimes.of(
        fit, max_batch_size=settings.max_num_seqs, max_tokens=settings.token_budget, max_draws=1
    )
    table = times.table(0, overhead_ms=settings.step_overhead_ms)
    done = replay(workload, settings, table, rng=np.random.default_rng(seed), num_logged=100_000)
    measured = MeasuredRequests(
        arrival_s=START_S + workload.arrival_s,
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        times_ms={"ttft": done.ttft_ms + LATE_MS, "tpot": done.tpot_ms, "e2e": done.e2e_ms + LATE_MS},
    )
    return ServerRecord.of(_steps(done, settings, ingress_ms), measured)


def _steps(done: Replay, settings: SchedulerSettings, ingress_ms: float) -> pd.DataFrame:
    steps, overhead = done.steps, settings.step_overhead_ms
    whole = [name for name in steps if name not in ("start_ms", "duration_ms", "prefill_pairs")]
    table = steps.astype(dict.fromkeys(whole, np.int64))
    latency = steps["duration_ms"] - overhead
    return table.assign(
        timestamp=START_S + (steps["start_ms"] + ingress_ms) / 1000.0,
        latency_ms=latency,
        step_ms=latency,
        num_decode_reqs=table["batch_size"] - table["num_prefill_reqs"],
    )


def write_server(record: ServerRecord, folder: Path) -> dict[str, Path]:
    """Write a record as the recorder and the clients' driver do."""
    requests = record.requests
    table = pd.DataFrame(
        {
            "arrival_s": requests.arrival_s,
            "prompt_tokens": requests.prompt_tokens,
            "output_tokens": requests.output_tokens,
            **{f"{key}_ms": values for key, values in requests.times_ms.items()},
        }
    )
    lines = [_line(row) for row in records(record.steps)]
    contents = {"trace": lines, "requests": [json.dumps(row) for row in records(table)]}
    paths = {name: folder / f"{name}.jsonl.gz" for name in contents}
    for name, path in paths.items():
        path.write_bytes(gzip.compress("".join(f"{line}\n" for line in contents[name]).encode()))
    return paths


def _line(step: dict[str, Any]) -> str:
    """Write a step; how the tokens divide among the prefills of a step is not looked at."""
    decode, prefills = step["num_decode_reqs"], step["num_prefill_reqs"]
    sizes = [1] * max(prefills - 1, 0)
    if prefills:
        sizes.append(step["total_tokens"] - decode - len(sizes))
    record = documented_record(
        prefill=sizes,
        decode=decode,
        timestamp=step["timestamp"],
        schedule_duration_ms=0.0,
        model_run_duration_ms=step["latency_ms"],
        total_step_duration_ms=step["step_ms"],
        num_waiting_reqs=step["num_waiting_reqs"],
        num_running_reqs=step["num_running_reqs"],
    )
    return json.dumps(record)
