"""The offline `LLM` class, and the EngineCore in front of a simulated device."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bayes_sched.trace.reader import read_trace
from tests.plugin.real.running import Place

pytestmark = pytest.mark.vllm
BENCHMARKS = Path(__file__).resolve().parents[3] / "plugin" / "benchmarks"


def test_offline_runs_are_recorded_step_by_step_until_vllm_renames_an_attribute(place: Place) -> None:
    prompts = [700, 300, 40, 1, 700]
    answers = place.run_offline(20, *prompts, "--", 30, 10, 10, LATE_FAULT="renamed 1000")
    assert answers == [[20] * 5, [30] * 2], "the engine answers whatever becomes of the recorder"
    steps = [json.loads(line) for line in place.log.read_text().splitlines()]
    assert place.validate(place.log) == len(steps)
    assert [step["batch_id"] for step in steps] == list(range(len(steps)))

    _check_against_truth(place, steps)
    _check_tokens(steps[:-1], prompts, max_tokens=20)

    sidecar = json.loads(Path(f"{place.log}.meta.json").read_text())
    expected = {"state": "off", "num_profiler_errors": 20, "num_dropped_steps": 0, "async_scheduling": False}
    expected |= {"model": "tiny-model", "vllm_version": "0.32.0", "max_num_batched_tokens": 256}
    assert {key: sidecar[key] for key in expected} == expected

    trace = read_trace(place.log)
    assert trace.labels == {"gpu": sidecar["device_name"], "llm": "tiny-model"}
    assert {"context_tokens", "prefill_pairs"} <= set(trace.steps)
    assert not trace.warnings
    assert not trace.bad_lines.num_bad


def _check_against_truth(place: Place, steps: list[dict[str, Any]]) -> None:
    """Each step is there once, as another plugin saw it, until the recorder switched itself off."""
    truth = [(tokens, requests) for _, _, tokens, requests in place.truth]
    recorded = [
        (step["total_scheduled_tokens"], step["num_prefill_reqs"] + step["num_decode_reqs"]) for step in steps
    ]
    assert len(truth) == len(steps) + 29, "all but the first of the second round"
    assert truth[: len(steps)] == recorded


def _check_tokens(steps: list[dict[str, Any]], prompts: list[int], *, max_tokens: int) -> None:
    """What was computed and what was found in the cache are the prompts; each further token is a decode."""
    computed = sum(sum(step["prefill_chunk_sizes"]) for step in steps)
    cached = sum(step["num_cached_tokens"] for step in steps)
    assert computed + cached == sum(prompts)
    assert cached >= 256, "the prompts begin alike"
    assert sum(step["num_decode_reqs"] for step in steps) == len(prompts) * (max_tokens - 1)
    assert max(step["total_scheduled_tokens"] for step in steps) == 256, "prompts are cut to the budget"
    last = max(max(step["decode_context_lens"], default=0) for step in steps)
    assert last == max(prompts) + max_tokens - 2
    for step in steps:
        assert step["total_scheduled_tokens"] == sum(step["prefill_chunk_sizes"] + step["decode_chunk_sizes"])
        for phase in ("prefill", "decode"):
            lengths = {len(step[f"{phase}_chunk_sizes"]), len(step[f"{phase}_context_lens"])}
            assert lengths == {step[f"num_{phase}_reqs"]}


def test_model_run_time_is_that_of_the_device_also_where_two_steps_are_in_flight(vllm_python: str) -> None:
    command = [vllm_python, str(BENCHMARKS / "timing.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results = {result["scheduling"]: result for result in json.loads(done.stdout.splitlines()[-1])}
    for scheduling in ("synchronous", "asynchronous"):
        error, num_steps = results[scheduling]["median_error"], results[scheduling]["num_steps"]
        print(f"{scheduling}: median error {error:.2%} over {num_steps} steps")
        assert error <= 0.02
    assert results["asynchronous"]["naive_median_error"] > 0.5, "the time since scheduling is another"
