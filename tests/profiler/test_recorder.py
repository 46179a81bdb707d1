"""From calls to steps: times under overlap, what is counted, what is dropped."""

import time
from pathlib import Path

import pytest
from bayes_sched_profiler.recorder import MAX_IN_FLIGHT, MAX_QUEUED, Recorder

from tests.profiler.conftest import Engine, wait_for
from tests.profiler.fake_vllm import Output, Request, make_scheduler_class, run_step


def take_step(recorder: Recorder) -> None:
    output = schedule_step(recorder)
    recorder.finished(output)


def schedule_step(recorder: Recorder) -> Output:
    scheduler, output = make_scheduler_class()(), Output({"a": 1})
    scheduler.requests["a"] = Request(100, 1)
    recorder.scheduled(scheduler, output, timestamp=1.0, begin=0.0, end=0.0)
    return output


def test_a_step_that_waits_for_the_one_before_is_not_charged_for_the_wait(engine: Engine) -> None:
    scheduler = engine.scheduler
    run_step(scheduler, {"a": 100})
    scheduler.next_sizes = {"a": 1}
    first = scheduler.schedule()
    second = scheduler.schedule()  # before the result of the first: two batches in flight
    time.sleep(0.2)
    scheduler.update_from_output(first, None)
    time.sleep(0.1)
    scheduler.update_from_output(second, None)
    steps = engine.steps(3)
    assert [step["batch_id"] for step in steps] == [0, 1, 2]
    assert steps[1]["model_run_duration_ms"] >= 200
    assert steps[2]["model_run_duration_ms"] >= 100
    assert steps[2]["total_step_duration_ms"] - steps[2]["model_run_duration_ms"] >= 200


def test_where_nothing_overlaps_a_step_is_schedule_and_model_run(engine: Engine) -> None:
    for _ in range(3):
        run_step(engine.scheduler, {"a": 1}, device_s=0.01)
    for step in engine.steps(3):
        parts = step["schedule_duration_ms"] + step["model_run_duration_ms"]
        assert step["total_step_duration_ms"] == pytest.approx(parts, abs=1e-3)


def test_a_step_without_tokens_is_neither_recorded_nor_counted(engine: Engine) -> None:
    for sizes in ({"a": 4}, {}, {"a": 1}):
        run_step(engine.scheduler, sizes)
    assert [step["batch_id"] for step in engine.steps(2)] == [0, 1]


def test_a_full_queue_drops_steps_counts_them_and_leaves_a_gap_in_the_ids() -> None:
    recorder = Recorder()
    for _ in range(MAX_QUEUED + 3):
        take_step(recorder)
    assert (len(recorder.queue), recorder.num_dropped) == (MAX_QUEUED, 3)
    recorder.queue.clear()
    take_step(recorder)
    assert recorder.queue[0].batch_id == MAX_QUEUED + 3


def test_steps_whose_model_run_failed_do_not_pile_up() -> None:
    recorder = Recorder()
    for _ in range(10 * MAX_IN_FLIGHT):
        schedule_step(recorder)
    assert len(recorder._in_flight) == MAX_IN_FLIGHT


def test_a_control_file_stops_and_starts_recording(engine: Engine, log: Path) -> None:
    run_step(engine.scheduler, {"a": 4})
    engine.steps(1)
    pause = log.with_name(log.name + ".pause")
    pause.touch()
    wait_for(lambda: engine.recorder.is_paused)
    run_step(engine.scheduler, {"a": 1})
    engine.sidecar(key="state", value="paused")
    pause.unlink()
    wait_for(lambda: not engine.recorder.is_paused)
    run_step(engine.scheduler, {"a": 2})
    steps = engine.steps(2)
    assert [step["batch_id"] for step in steps] == [0, 1]
    assert steps[1]["total_scheduled_tokens"] == 2


def test_an_engine_that_starts_paused_records_nothing(engine: Engine, log: Path) -> None:
    log.with_name(log.name + ".pause").touch()
    run_step(engine.scheduler, {"a": 4})
    time.sleep(0.2)
    assert not log.exists()
