"""What a line says of a step."""

import json
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import pytest
from bayes_sched_profiler.record import Scheduled, Step, as_fields, as_line

from bayes_sched.trace.formats import FIELDS, parse_line
from tests.profiler.conftest import Engine
from tests.profiler.fake_vllm import Output, Request, run_step

SCHEMA = json.loads(files("bayes_sched_profiler").joinpath("step.schema.json").read_text())


def scheduled(**changes: Any) -> Scheduled:
    """Two chunks of prompts, the second the last of its prompt, and one decode; each with a context."""
    values: dict[str, Any] = {
        "timestamp": 1.7e9,
        "begin": 10.0,
        "end": 10.005,
        "num_tokens": 514,
        "sizes": (512, 1, 1),
        "computed": (1024, 100, 301),
        "prompts": (2000, 100, 200),
        "speculative": None,
        "num_cached": 512,
        "num_waiting": 3,
        "num_running": 3,
        "kv_cache_usage": 0.5,
    }
    return Scheduled(**values | changes)


def step_of(**changes: Any) -> Step:
    return Step(batch_id=7, scheduled=scheduled(**changes), device_begin=10.010, end=10.050)


def test_the_last_chunk_of_a_prompt_is_prefill_though_it_is_one_token() -> None:
    fields = as_fields(step_of())
    assert (fields["prefill_chunk_sizes"], fields["prefill_context_lens"]) == ([512, 1], [512, 99])
    assert (fields["decode_chunk_sizes"], fields["decode_context_lens"]) == ([1], [300])


def test_draft_tokens_are_decode_and_a_recomputed_request_is_prefill() -> None:
    fields = as_fields(step_of(sizes=(4, 4), computed=(504, 504), prompts=(100, 100), speculative=(3, 0)))
    assert (fields["decode_chunk_sizes"], fields["prefill_chunk_sizes"]) == ([4], [4])


def test_durations_are_those_between_the_three_times() -> None:
    fields = as_fields(step_of())
    assert fields["schedule_duration_ms"] == pytest.approx(5)
    assert fields["model_run_duration_ms"] == pytest.approx(40)
    assert fields["total_step_duration_ms"] == pytest.approx(50)


def test_a_step_without_prefill_has_sizes_of_zero() -> None:
    fields = as_fields(step_of(sizes=(1,), computed=(201,), prompts=(100,), num_tokens=1))
    sizes = [fields[f"{kind}_prefill_chunk_size"] for kind in ("avg", "max", "min")]
    assert sizes == [0, 0, 0]
    assert fields["avg_decode_chunk_size"] == 1


def test_a_line_has_exactly_the_fields_of_the_schema() -> None:
    assert list(as_fields(step_of())) == list(SCHEMA["properties"]) == SCHEMA["required"]


def test_the_reader_takes_context_columns_from_a_line() -> None:
    step = parse_line(as_line(step_of()))
    assert step is not None
    row = dict(zip(FIELDS, step.row, strict=True))
    assert row["context_tokens"] == 512 + 99 + 300
    assert row["prefill_pairs"] == 512 * 512 + 512 * 513 / 2 + 99 + 1
    assert (row["batch_size"], row["total_tokens"], row["latency_ms"]) == (3, 514, 40)


def test_cached_tokens_are_those_that_beginning_and_resumed_requests_found(engine: Engine) -> None:
    scheduler = engine.scheduler
    run_step(scheduler, {"old": 100})
    scheduler.requests |= {"new": Request(90), "resumed": Request(80)}
    scheduler.requests["old"].num_computed_tokens += 1
    scheduler.requests["new"].num_computed_tokens = 80 + 10
    scheduler.requests["resumed"].num_computed_tokens = 64 + 16
    output = Output({"old": 1, "new": 10, "resumed": 16}, [SimpleNamespace(req_id="new")])
    output.scheduled_cached_reqs.resumed_req_ids = {"resumed"}
    engine.recorder.scheduled(scheduler, output, timestamp=1.0, begin=0.0, end=0.0)
    scheduler.update_from_output(output, None)
    step = engine.steps(2)[-1]
    assert step["num_cached_tokens"] == 80 + 64
    assert step["prefill_context_lens"] == [80, 64]
