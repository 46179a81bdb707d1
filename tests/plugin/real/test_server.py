"""A real OpenAI-compatible server under concurrent requests: it answers whatever happens to the recorder."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.conftest import wait_for
from tests.plugin.real.running import Place, Server

pytestmark = pytest.mark.vllm

REQUESTS = [(5, 12), (400, 8), (40, 20), (700, 4), (1, 16), (90, 12), (300, 6), (20, 20)]
"""Tokens of the prompt and of the answer, all at once."""


def read_steps(*logs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for log in logs for line in log.read_bytes().splitlines()]


def serve_until(server: Server, condition: Callable[[], object]) -> None:
    """Put requests again and again; each must be answered."""
    end = time.monotonic() + 30
    while True:
        server.serve(REQUESTS)
        if condition():
            return
        assert time.monotonic() < end, server.output.read_text()[-3000:]


def wait_until_written(place: Place) -> None:
    """Wait for the last steps: the writer has them on the disk within a twentieth of a second."""
    time.sleep(0.3)


@contextmanager
def under_load(server: Server) -> Iterator[None]:
    """Do something while the server answers; each answer must come."""
    with ThreadPoolExecutor(1) as pool:
        answers = [pool.submit(server.serve, REQUESTS) for _ in range(3)]
        time.sleep(0.2)
        yield
    for answer in answers:
        answer.result()


@contextmanager
def no_step_lost(server: Server, *logs: Path, missing: int = 0) -> Iterator[None]:
    """Hold the steps that come to the logs (the log and what becomes of it) against the tests' own count."""
    place = server.place
    wait_until_written(place)
    num_before = len(place.truth)
    before = {step["batch_id"] for log in {place.log, *logs} if log.is_file() for step in read_steps(log)}
    yield
    wait_until_written(place)
    steps = read_steps(*(log for log in {place.log, *logs} if log.is_file()))
    fresh = [step for step in steps if step["batch_id"] not in before]
    assert len(fresh) == len({step["batch_id"] for step in fresh}), "a step was recorded twice"
    assert len(fresh) + missing == len(place.truth) - num_before


def test_concurrent_requests_are_recorded_step_by_step(server: Server) -> None:
    place = server.place
    server.serve(REQUESTS)
    wait_until_written(place)
    steps = read_steps(place.log)
    assert [step["batch_id"] for step in steps] == list(range(len(steps)))
    assert place.validate(place.log) == len(steps)
    sizes = [
        (step["total_scheduled_tokens"], step["num_prefill_reqs"] + step["num_decode_reqs"]) for step in steps
    ]
    assert sizes == [(tokens, requests) for _, _, tokens, requests in place.truth]
    assert sum(sum(step["prefill_chunk_sizes"]) for step in steps) == sum(size for size, _ in REQUESTS)
    assert sum(step["num_decode_reqs"] for step in steps) == sum(tokens - 1 for _, tokens in REQUESTS)
    assert any(step["num_prefill_reqs"] and step["num_decode_reqs"] for step in steps), "mixed steps"
    for step, following in pairwise(steps):
        assert step["timestamp"] + step["total_step_duration_ms"] / 1000 <= following["timestamp"] + 0.002


@pytest.mark.parametrize("fate", ["deleted", "rotated away"])
def test_the_log_goes_under_load(server: Server, fate: str) -> None:
    log = server.place.log
    kept = log.with_name(f"{fate}.jsonl")
    with no_step_lost(server, kept), under_load(server):
        if fate == "deleted":
            os.link(log, kept)
            log.unlink()
        else:
            log.rename(kept)
        wait_for(log.exists)
    assert read_steps(log), "the log was begun again"


def test_the_disk_is_full(server: Server) -> None:
    log = server.place.log
    kept = log.with_name("before_full.jsonl")
    with no_step_lost(server, kept):
        log.rename(kept)
        log.symlink_to("/dev/full")
        serve_until(server, lambda: "No space left on device" in server.output.read_text())
        log.unlink()
        serve_until(server, lambda: log.is_file() and read_steps(log))
    assert server.output.read_text().count("No space left on device") == 1


def test_the_path_cannot_be_written(server: Server) -> None:
    folder = server.place.log.parent
    kept = folder.with_name("kept")
    with no_step_lost(server):
        num_steps = len(read_steps(server.place.log))
        folder.rename(kept)
        folder.write_text("a file in the place of the folder")
        num_warnings = server.output.read_text().count("cannot write")
        serve_until(server, lambda: server.output.read_text().count("cannot write") > num_warnings)
        folder.unlink()
        kept.rename(folder)
        serve_until(server, lambda: len(read_steps(server.place.log)) > num_steps)


@pytest.mark.parametrize(("fault", "where"), [("hook", "hook"), ("writer", "writer"), ("renamed", "hook")])
def test_an_exception_inside_costs_its_own_steps_alone(server: Server, fault: str, where: str) -> None:
    with no_step_lost(server, missing=4):
        server.place.fault.write_text(f"{fault} 4")
        server.serve(REQUESTS)
        server.serve(REQUESTS)
    assert f"Scheduler profiling: error in the {where}" in server.output.read_text()


def test_recording_stops_and_starts_by_a_control_file(server: Server) -> None:
    log = server.place.log
    pause = log.with_name(log.name + ".pause")
    wait_until_written(server.place)
    num_steps = len(read_steps(log))
    pause.touch()
    time.sleep(0.2)
    server.serve(REQUESTS)
    time.sleep(0.2)
    assert len(read_steps(log)) == num_steps
    pause.unlink()
    time.sleep(0.2)
    server.serve(REQUESTS)
    wait_for(lambda: len(read_steps(log)) > num_steps)


def test_another_engine_is_started_on_the_same_log(server: Server) -> None:
    place = server.place
    other = place.log.with_name("steps.engine2.jsonl")
    with no_step_lost(server):
        server.serve(REQUESTS)
        second = place.run_offline(10, 20, 30, TRUTH=str(place.folder / "other_truth"))
        server.serve(REQUESTS)
    assert second == [[10, 10]]
    steps = read_steps(other)
    assert [step["batch_id"] for step in steps] == list(range(10))
    assert place.validate(place.log, other) == len(read_steps(place.log, other))


def test_sigterm_under_load_leaves_whole_lines_and_all_but_the_last_steps(server: Server) -> None:
    place = server.place
    wait_until_written(place)
    num_before, last_id = len(place.truth), read_steps(place.log)[-1]["batch_id"]
    server.load_in_background(8)
    time.sleep(2)
    engine = server.engine_pid
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not _is_running(engine), timeout_s=30)  # the server itself waits for its clients
    _check_after_the_end(place, num_before=num_before, last_id=last_id)


def test_sigkill_under_load_leaves_whole_lines_and_all_but_the_last_steps(place: Place) -> None:
    # The engine is forked here, as it is on a GPU; the other server spawns its own.
    server = Server(place, VLLM_WORKER_MULTIPROC_METHOD="fork")
    try:
        server.load_in_background(8)
        wait_for(lambda: place.log.exists() and len(place.log.read_bytes().splitlines()) > 100, timeout_s=60)
        engine = server.engine_pid
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: not _is_running(engine))
        _check_after_the_end(place)
    finally:
        server.end()


def _is_running(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()  # ended, and its parent not told yet
    except OSError:
        return False


def _check_after_the_end(place: Place, *, num_before: int = 0, last_id: int = -1) -> None:
    """No torn line but the last; what is missing happened in the last tenth of a second.

    It is about the steps after the first `num_before`, and the ids after `last_id`.
    """
    *lines, last = place.log.read_bytes().splitlines(keepends=True)
    ids = [json.loads(line)["batch_id"] for line in [*lines, last] if line.endswith(b"\n")]
    fresh = [batch_id for batch_id in ids if batch_id > last_id]
    assert len(fresh) > 50
    assert fresh == list(range(last_id + 1, last_id + 1 + len(fresh)))
    times = [when for _, when, _, _ in place.truth]
    lost = times[num_before + len(fresh) :]
    lost_s = times[-1] - lost[0] if lost else 0.0
    print(f"{len(lost)} steps lost, the first of them {1000 * lost_s:.0f} ms before the last step")
    assert lost_s <= 0.1
