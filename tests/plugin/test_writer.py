"""The writer goes on, stands back, or gives up; the engine never notices."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bayes_sched_vllm.recorder import writer
from bayes_sched_vllm.recorder.hook import MAX_ERRORS
from bayes_sched_vllm.recorder.log_file import LogFile
from bayes_sched_vllm.recorder.steps import as_line
from bayes_sched_vllm.recorder.writer import Console

from tests.plugin.conftest import Engine, wait_for
from tests.plugin.fake_vllm import run_step
from tests.plugin.test_steps import step_of


def fail(*args: object, **kwargs: object) -> Any:
    raise RuntimeError("injected")


def test_lines_are_made_by_the_writer_and_every_byte_that_is_written_ends_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    writes, threads = [], set()

    def write(fd: int, data: bytes, original: Any = os.write) -> int:
        if os.fstat(fd).st_ino == log.stat().st_ino:
            writes.append(bytes(data))
        return int(original(fd, data))

    def render(step: Any) -> bytes:
        threads.add(threading.current_thread().name)
        return as_line(step)

    monkeypatch.setattr("bayes_sched_vllm.recorder.log_file.os.write", write)
    monkeypatch.setattr(writer, "as_line", render)
    for _ in range(20):
        run_step(engine.scheduler, {"a": 1})
    engine.steps(20)
    assert b"".join(writes) == log.read_bytes()
    assert all(data.endswith(b"\n") for data in writes)
    assert threads == {"scheduler-profiling"}


def test_a_step_that_cannot_be_rendered_is_dropped_and_counted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_step(engine.scheduler, {"a": 4})
    engine.steps(1)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "as_line", fail)
        run_step(engine.scheduler, {"a": 1})
        wait_for(lambda: engine.recorder.num_dropped)
    run_step(engine.scheduler, {"a": 1})
    assert engine.ids(2) == [0, 2]
    assert "error in the writer" in caplog.text
    engine.sidecar(num_dropped_steps=1, num_profiler_errors=1)


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
    engine: Engine, caplog: pytest.LogCaptureFixture, log: Path
) -> None:
    caplog.set_level("INFO")
    log.symlink_to("/dev/full")
    run_step(engine.scheduler, {"a": 4})
    wait_for(lambda: "No space left on device" in caplog.text)
    for _ in range(5):
        run_step(engine.scheduler, {"a": 1})
    log.unlink()
    assert engine.ids(6) == list(range(6))
    wait_for(lambda: "is written again; 0 steps are lost" in caplog.text)
    assert caplog.text.count("cannot write") == 1
    assert engine.fuse.num_errors == 0, "a full disk is no error of the recorder's"


def test_steps_beyond_the_queue_are_dropped_while_nothing_can_be_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    monkeypatch.setattr("bayes_sched_vllm.recorder.steps.MAX_QUEUED", 3)
    log.mkdir()  # in the way
    run_step(engine.scheduler, {"a": 4})
    wait_for(lambda: not engine.recorder.queue)
    for _ in range(5):
        run_step(engine.scheduler, {"a": 1})
    assert engine.recorder.num_dropped == 2
    log.rmdir()
    assert engine.ids(4) == [0, 1, 2, 3]
    engine.sidecar(num_dropped_steps=2)


def test_the_side_car_tells_what_was_measured_on_and_the_rest_is_written_when_the_engine_goes(
    engine: Engine,
) -> None:
    run_step(engine.scheduler, {"a": 4})
    engine.sidecar(
        model="org/some-model",
        served_model_name="served",
        dtype="bfloat16",
        tensor_parallel_size=2,
        max_num_batched_tokens=2048,
        async_scheduling=True,
        num_recorded_steps=1,
        state="recording",
    )
    for _ in range(10):
        run_step(engine.scheduler, {"a": 1})
    engine.scheduler = None
    engine.sidecar(state="closed", num_recorded_steps=11)
    assert len(engine.steps(11)) == 11


def test_a_side_car_that_cannot_be_written_is_told_once_and_costs_no_step(
    engine: Engine, log: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayes_sched_vllm.recorder.sidecar.PERIOD_S", 0.0)
    log.with_name(log.name + ".meta.json").mkdir()
    for count in range(1, 4):
        run_step(engine.scheduler, {"a": 1})
        engine.steps(count)
    wait_for(lambda: "cannot write the side-car" in caplog.text)
    engine.scheduler = None  # the last attempt is over
    assert caplog.text.count("cannot write the side-car") == 1
    assert list(log.parent.glob("*.tmp")) == []


@pytest.mark.parametrize("gone", [None, "bayes_sched_vllm.recorder.writer.Console._is_free", "sys.stderr"])
def test_steps_are_shown_beside_the_log_and_a_console_that_is_gone_costs_none(
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    gone: str | None,
) -> None:
    engine = make_engine(console=True)
    with monkeypatch.context() as patch:
        if gone:
            patch.setattr(gone, None if gone == "sys.stderr" else fail)
        run_step(engine.scheduler, {"a": 4})
        run_step(engine.scheduler, {"a": 1})
        assert engine.ids(2) == [0, 1]
    assert ("step 0: 1 prefill + 0 decode, 4 tokens" in capfd.readouterr().err) == (gone is None)
    assert caplog.text.count("no steps are shown on the console") == (gone is not None)
    assert engine.fuse.num_errors == engine.recorder.num_dropped == 0


def test_the_console_shows_some_steps_and_says_how_many_it_does_not() -> None:
    reader, end = os.pipe()
    console = Console(end)
    for _ in range(4):
        console.show(step_of())
    console._next_time = 0.0
    console.show(step_of())
    lines = os.read(reader, 10_000).decode().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 7: 2 prefill + 1 decode, 514 tokens, schedule 5.00 ms, model 40.00 ms")
    assert lines[1].endswith("(+3 steps not shown)")
    for _ in range(2000):  # far more than a pipe holds: one that nobody reads blocks nothing
        console._next_time = 0.0
        console.show(step_of())
    assert console._num_hidden > 0
    os.close(reader)
    os.close(end)
