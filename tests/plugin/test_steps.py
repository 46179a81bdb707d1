"""From a scheduler's calls to lines: what they say, times under overlap, what is counted, what is dropped."""

import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from bayes_sched_vllm.recorder.steps import (
    MAX_IN_FLIGHT,
    MAX_QUEUED,
    Recorder,
    Scheduled,
    Step,
    as_fields,
    as_line,
)

from bayes_sched.trace.formats import FIELDS, parse_line
from tests.plugin.conftest import Engine, wait_for
from tests.plugin.fake_vllm import make_output, make_request, make_scheduler_class, run_step

SCHEMA = json.loads(files("bayes_sched_vllm.recorder").joinpath("step.schema.json").read_text())


def step_of(**changes: Any) -> Step:
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
    return Step(batch_id=7, scheduled=Scheduled(**values | changes), device_begin=10.010, end=10.050)


def schedule_step(recorder: Recorder) -> Any:
    scheduler, output = make_scheduler_class()(), make_output({"a": 1}, new=[])
    scheduler.requests["a"] = make_request(100, 1)
    recorder.scheduled(scheduler, output, timestamp=1.0, begin=0.0, end=0.0)
    return output


def test_a_line_has_exactly_the_fields_of_the_schema_and_the_reader_takes_them() -> None:
    assert list(as_fields(step_of())) == list(SCHEMA["properties"]) == SCHEMA["required"]
    step = parse_line(as_line(step_of()))
    assert step is not None
    row = dict(zip(FIELDS, step.row, strict=True))
    assert row["context_tokens"] == 512 + 99 + 300
    assert row["prefill_pairs"] == 512 * 512 + 512 * 513 / 2 + 99 + 1
    assert (row["batch_size"], row["total_tokens"], row["latency_ms"]) == (3, 514, 40)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {},
            {
                "prefill_chunk_sizes": [512, 1],  # the last chunk of a prompt may be one token
                "prefill_context_lens": [512, 99],
                "decode_chunk_sizes": [1],
                "decode_context_lens": [300],
                "schedule_duration_ms": 5.0,
                "model_run_duration_ms": 40.0,
                "total_step_duration_ms": 50.0,
            },
            id="a mixed step",
        ),
        pytest.param(
            {"sizes": (4, 4), "computed": (504, 504), "prompts": (100, 100), "speculative": (3, 0)},
            {"decode_chunk_sizes": [4], "prefill_chunk_sizes": [4]},
            id="draft tokens, and a request computed again",
        ),
        pytest.param(
            {"sizes": (1,), "computed": (201,), "prompts": (100,), "num_tokens": 1},
            {f"{kind}_prefill_chunk_size": 0 for kind in ("avg", "max", "min")}
            | {"avg_decode_chunk_size": 1},
            id="no prefill",
        ),
    ],
)
def test_fields_say_what_was_scheduled(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    fields = as_fields(step_of(**changes))
    assert {name: fields[name] for name in expected} == expected


def test_cached_tokens_are_those_that_beginning_and_resumed_requests_found(engine: Engine) -> None:
    scheduler = engine.scheduler
    run_step(scheduler, {"old": 100})
    scheduler.requests |= {"new": make_request(90, 80 + 10), "resumed": make_request(80, 64 + 16)}
    scheduler.requests["old"].num_computed_tokens += 1
    output = make_output({"old": 1, "new": 10, "resumed": 16}, new=["new"], resumed={"resumed"})
    engine.recorder.scheduled(scheduler, output, timestamp=1.0, begin=0.0, end=0.0)
    scheduler.update_from_output(output, None)
    step = engine.steps(2)[-1]
    assert step["num_cached_tokens"] == 80 + 64
    assert step["prefill_context_lens"] == [80, 64]


def test_a_step_that_waits_for_the_one_before_is_not_charged_for_the_wait(engine: Engine) -> None:
    scheduler = engine.scheduler
    run_step(scheduler, {"a": 100}, device_s=0.01)
    scheduler.next_sizes = {"a": 1}
    first = scheduler.schedule()
    second = scheduler.schedule()  # before the result of the first: two batches in flight
    time.sleep(0.2)
    scheduler.update_from_output(first, None)
    time.sleep(0.1)
    scheduler.update_from_output(second, None)
    steps = engine.steps(3)
    waits = [step["total_step_duration_ms"] - step["model_run_duration_ms"] for step in steps]
    assert waits[0] == pytest.approx(steps[0]["schedule_duration_ms"], abs=1e-3), "nothing overlaps"
    assert steps[1]["model_run_duration_ms"] >= 200
    assert steps[2]["model_run_duration_ms"] >= 100
    assert waits[2] >= 200


def test_a_step_without_tokens_is_neither_recorded_nor_counted(engine: Engine) -> None:
    for sizes in ({"a": 4}, {}, {"a": 1}):
        run_step(engine.scheduler, sizes)
    assert engine.ids(2) == [0, 1]


def test_a_full_queue_drops_steps_counts_them_and_leaves_a_gap_in_the_ids() -> None:
    recorder = Recorder()
    for _ in range(MAX_QUEUED + 3):
        recorder.finished(schedule_step(recorder))
    assert (len(recorder.queue), recorder.num_dropped) == (MAX_QUEUED, 3)
    recorder.queue.clear()
    recorder.finished(schedule_step(recorder))
    assert recorder.queue[0].batch_id == MAX_QUEUED + 3


def test_steps_whose_model_run_failed_do_not_pile_up() -> None:
    recorder = Recorder()
    for _ in range(10 * MAX_IN_FLIGHT):
        schedule_step(recorder)
    assert len(recorder._in_flight) == MAX_IN_FLIGHT


def test_a_control_file_stops_and_starts_recording_also_before_the_first_step(
    engine: Engine, log: Path
) -> None:
    pause = log.with_name(log.name + ".pause")
    pause.touch()
    run_step(engine.scheduler, {"a": 4})
    pause.unlink()
    wait_for(lambda: not engine.recorder.is_paused)
    run_step(engine.scheduler, {"a": 2})
    assert engine.ids(1) == [0]
    pause.touch()
    wait_for(lambda: engine.recorder.is_paused)
    run_step(engine.scheduler, {"a": 1})
    engine.sidecar(state="paused")
    pause.unlink()
    wait_for(lambda: not engine.recorder.is_paused)
    run_step(engine.scheduler, {"a": 3})
    assert [step["total_scheduled_tokens"] for step in engine.steps(2)] == [2, 3]
