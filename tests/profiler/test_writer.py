"""The writer goes on, stands back, or gives up; the engine never notices."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bayes_sched_profiler import record
from bayes_sched_profiler.fuse import MAX_ERRORS
from bayes_sched_profiler.log_file import LogFile

from tests.profiler.conftest import Engine, wait_for
from tests.profiler.fake_vllm import run_step


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait for a whole second."""
    monkeypatch.setattr("bayes_sched_profiler.writer.BACK_OFF_S", 0.1)


def fail(*args: object, **kwargs: object) -> Any:
    raise RuntimeError("injected")


def test_every_byte_that_is_written_ends_a_line(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    writes = []
    original = os.write

    def write(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_ino == log.stat().st_ino:
            writes.append(bytes(data))
        return original(fd, data)

    monkeypatch.setattr("bayes_sched_profiler.log_file.os.write", write)
    for _ in range(20):
        run_step(engine.scheduler, {"a": 1})
    engine.steps(20)
    assert b"".join(writes) == log.read_bytes()
    assert all(data.endswith(b"\n") for data in writes)


def test_a_step_that_cannot_be_rendered_is_dropped_and_counted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_step(engine.scheduler, {"a": 4})
    engine.steps(1)
    with monkeypatch.context() as patch:
        patch.setattr("bayes_sched_profiler.writer.as_line", fail)
        run_step(engine.scheduler, {"a": 1})
        wait_for(lambda: engine.recorder.num_dropped)
    run_step(engine.scheduler, {"a": 1})
    assert [step["batch_id"] for step in engine.steps(2)] == [0, 2]
    assert "error in the writer" in caplog.text
    assert engine.sidecar(key="num_dropped_steps", value=1)["num_profiler_errors"] == 1


def test_a_writer_that_fails_again_and_again_switches_everything_off(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LogFile, "write", fail)
    run_step(engine.scheduler, {"a": 4})
    wait_for(lambda: engine.fuse.is_blown)
    assert engine.fuse.num_errors >= MAX_ERRORS
    for _ in range(3):
        run_step(engine.scheduler, {"a": 1})
    assert len(engine.recorder.queue) == 0, "nothing is collected for nobody"


def test_a_full_disk_is_told_once_and_steps_wait_for_room(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, log: Path
) -> None:
    caplog.set_level("INFO")
    log.symlink_to("/dev/full")
    run_step(engine.scheduler, {"a": 4})
    wait_for(lambda: "No space left on device" in caplog.text)
    for _ in range(5):
        run_step(engine.scheduler, {"a": 1})
    wait_for(lambda: caplog.text.count("cannot write") == 1)
    log.unlink()
    assert [step["batch_id"] for step in engine.steps(6)] == list(range(6))
    wait_for(lambda: "is written again; 0 steps are lost" in caplog.text)
    assert caplog.text.count("cannot write") == 1
    assert engine.fuse.num_errors == 0, "a full disk is no error of the profiler's"


def test_steps_beyond_the_queue_are_dropped_while_nothing_can_be_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    monkeypatch.setattr("bayes_sched_profiler.recorder.MAX_QUEUED", 3)
    log.mkdir()  # in the way
    run_step(engine.scheduler, {"a": 4})
    wait_for(lambda: not engine.recorder.queue)
    for _ in range(5):
        run_step(engine.scheduler, {"a": 1})
    assert engine.recorder.num_dropped == 2
    log.rmdir()
    assert [step["batch_id"] for step in engine.steps(4)] == [0, 1, 2, 3]
    engine.sidecar(key="num_dropped_steps", value=2)


def test_the_log_may_be_deleted_or_rotated_away_at_any_time(engine: Engine, log: Path) -> None:
    run_step(engine.scheduler, {"a": 4})
    engine.steps(1)
    log.unlink()
    run_step(engine.scheduler, {"a": 1})
    assert [step["batch_id"] for step in engine.steps(1)] == [1]
    log.rename(log.with_suffix(".1"))
    run_step(engine.scheduler, {"a": 1})
    assert [step["batch_id"] for step in engine.steps(1)] == [2]


def test_two_engines_on_one_path_lose_nothing(make_engine: Callable[..., Engine], log: Path) -> None:
    first, second = make_engine(), make_engine()
    for engine in (first, second):
        run_step(engine.scheduler, {"a": 4})
        run_step(engine.scheduler, {"a": 1})
        time.sleep(0.1)
    assert [step["batch_id"] for step in first.steps(2)] == [0, 1]
    other = log.with_name("steps.engine2.jsonl")
    assert [step["batch_id"] for step in second.steps(2, log=other)] == [0, 1]


def test_what_is_left_is_written_when_the_engine_goes(engine: Engine) -> None:
    for _ in range(10):
        run_step(engine.scheduler, {"a": 1})
    engine.scheduler = None
    assert engine.sidecar(key="state", value="closed")["num_recorded_steps"] == 10
    assert len(engine.steps(10)) == 10


def test_the_sidecar_tells_what_was_measured_on(engine: Engine) -> None:
    run_step(engine.scheduler, {"a": 4})
    sidecar = engine.sidecar(key="num_recorded_steps", value=1)
    expected = {
        "model": "org/some-model",
        "served_model_name": "served",
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "max_num_batched_tokens": 2048,
        "async_scheduling": True,
        "state": "recording",
    }
    assert {key: sidecar[key] for key in expected} == expected


def test_a_sidecar_that_cannot_be_written_is_told_once_and_costs_no_step(
    engine: Engine, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log.with_name(log.name + ".meta.json").mkdir()
    for count in range(1, 4):
        run_step(engine.scheduler, {"a": 1})
        engine.steps(count)
    wait_for(lambda: "cannot write the side-car" in caplog.text)
    assert caplog.text.count("cannot write the side-car") == 1
    assert list(log.parent.glob("*.tmp")) == []


def test_the_console_shows_steps_beside_the_log(
    make_engine: Callable[..., Engine], capfd: pytest.CaptureFixture[str]
) -> None:
    engine = make_engine(console=True)
    run_step(engine.scheduler, {"a": 4})
    engine.steps(1)
    assert "step 0: 1 prefill + 0 decode, 4 tokens" in capfd.readouterr().err


def test_a_console_that_is_gone_costs_no_step(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bayes_sched_profiler.console.Console._is_free", fail)
    engine = make_engine(console=True)
    run_step(engine.scheduler, {"a": 4})
    run_step(engine.scheduler, {"a": 1})
    assert len(engine.steps(2)) == 2
    assert caplog.text.count("no steps are shown on the console any more: injected") == 1
    assert engine.fuse.num_errors == engine.recorder.num_dropped == 0


def test_a_process_without_standard_error_is_recorded_all_the_same(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    engine = make_engine(console=True)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", None)
        run_step(engine.scheduler, {"a": 4})
    assert len(engine.steps(1)) == 1


def test_a_line_is_rendered_by_the_writer_not_by_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    original = record.as_line

    def as_line(step: record.Step) -> bytes:
        names.append(threading.current_thread().name)
        return original(step)

    monkeypatch.setattr("bayes_sched_profiler.writer.as_line", as_line)
    run_step(engine.scheduler, {"a": 4})
    engine.steps(1)
    assert names == ["scheduler-profiling"]
