"""A log that grows: every line once, whatever becomes of the file."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sched.cli.watch import figures_text
from bayes_sched.errors import InputError
from bayes_sched.trace.opening import check_followable
from bayes_sched.trace.watch import TAIL_BYTES, LiveWindow, LogFollower
from tests.conftest import as_bytes, documented_record, iteration_line
from tests.made_trace import START


def lines(*latencies_ms: float) -> bytes:
    return b"".join(as_bytes(documented_record(model_run_duration_ms=ms)) + b"\n" for ms in latencies_ms)


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.fixture
def follower(log: Path) -> Iterator[LogFollower]:
    with LogFollower(str(log)) as made:
        yield made


def seen(follower: LogFollower) -> list[float]:
    """Model-run times of the new steps."""
    return [row["latency_ms"] for row in follower.look().rows]


def test_each_look_gives_what_is_new(log: Path, follower: LogFollower) -> None:
    log.write_bytes(lines(1, 2))
    assert seen(follower) == [1, 2]
    assert seen(follower) == []
    for number in range(3, 20):
        append(log, lines(number))
        assert seen(follower) == [number]
    assert (follower.num_steps, follower.num_bytes) == (19, log.stat().st_size)


def test_a_log_that_does_not_exist_yet_is_waited_for(log: Path, follower: LogFollower) -> None:
    assert follower.look().rows == []
    assert not follower.is_there
    log.write_bytes(lines(*range(1, 2000)))
    new = follower.look()
    assert (len(new.rows), new.events) == (1999, [f"{log} is there"])


def test_of_a_long_log_only_the_end_is_read_at_first(log: Path, follower: LogFollower) -> None:
    log.write_bytes(lines(*range(1, 4001)))
    assert log.stat().st_size > 4 * TAIL_BYTES
    got = seen(follower)
    assert got == list(range(int(got[0]), 4001))
    assert follower.num_bytes == TAIL_BYTES
    assert not follower.bad
    append(log, lines(9999))
    assert seen(follower) == [9999]


def test_a_rotated_log_is_read_to_its_end_and_the_next_one_after_it(log: Path, follower: LogFollower) -> None:
    log.write_bytes(lines(1))
    assert seen(follower) == [1]
    append(log, lines(2) + b'{"batch_id": 1')
    log.rename(log.with_suffix(".1"))
    log.write_bytes(lines(3))
    new = follower.look()
    assert [row["latency_ms"] for row in new.rows] == [2, 3]
    assert new.events == [f"{log} was replaced: going on with the new file"]
    assert follower.bad == {"torn last line": 1}


def test_a_truncated_or_rewritten_log_is_read_from_its_beginning(log: Path, follower: LogFollower) -> None:
    log.write_bytes(lines(1, 2, 3))
    follower.look()
    os.truncate(log, 0)
    append(log, lines(4))
    new = follower.look()
    assert [row["latency_ms"] for row in new.rows] == [4]
    assert new.events == [f"{log} was truncated: reading it from its beginning"]
    with log.open("r+b") as file:  # the same file, other content, longer than it was
        file.write(lines(7, 8, 9))
    assert seen(follower) == [7, 8, 9]


def test_a_removed_log_is_waited_for_while_its_writer_goes_on(log: Path, follower: LogFollower) -> None:
    log.write_bytes(lines(1))
    follower.look()
    with log.open("ab") as writer:
        log.unlink()
        writer.write(lines(2))
    new = follower.look()
    assert [row["latency_ms"] for row in new.rows] == [2]
    assert new.events == [f"{log} is gone: waiting for it to come back"]
    assert follower.look().events == []
    log.write_bytes(lines(3))
    assert seen(follower) == [3]


def test_damage_and_idle_steps_are_counted_and_the_noise_of_a_log_is_not(
    log: Path, follower: LogFollower
) -> None:
    noise, idle = b"INFO Started server process\n\0\0{\n", as_bytes(documented_record([], 0)) + b"\n"
    log.write_bytes(noise + b"{torn\n" + iteration_line().encode() + b"\n" + idle + lines(4))
    assert seen(follower) == [45.1, 4]
    assert follower.bad == {"not valid JSON": 1}
    assert (follower.num_steps, follower.num_idle) == (3, 1)


def test_an_endless_line_fills_no_memory(log: Path, follower: LogFollower) -> None:
    log.write_bytes(b"")
    follower.look()
    log.write_bytes(b"{" + b" " * (9 * 2**20))
    assert seen(follower) == []
    append(log, b"}\n" + lines(4))
    assert seen(follower) == [4]
    assert follower.bad == {"longer than any step": 1}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 200), max_size=12))
def test_however_the_writing_is_cut_every_line_comes_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    log = tmp_path_factory.mktemp("cut") / "log"
    content, got = lines(1, 2, 3, 4), list[float]()
    log.write_bytes(b"")
    with LogFollower(str(log)) as follower:
        for cut in [*cuts, len(content)]:
            append(log, content[:cut])
            content = content[cut:]
            got += seen(follower)
        assert not follower.bad
    assert got == [1, 2, 3, 4]


def test_paths_that_cannot_be_followed_are_refused(log: Path, tmp_path: Path) -> None:
    for content, message in (
        (gzip.compress(b"{}"), "is compressed: watch follows a plain-text log that is being written"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG image: watch follows"),
    ):
        log.write_bytes(content)
        with pytest.raises(InputError, match=message):
            check_followable(str(log))
    for path, message in (("-", "by its name"), (str(tmp_path), "is a directory"), ("a\0b", "is none")):
        with pytest.raises(InputError, match=message):
            check_followable(path)
    check_followable(str(tmp_path / "later"))
    with pytest.raises(InputError, match="no such file"):
        check_followable(str(tmp_path / "later"), is_needed=True)


def test_a_log_that_becomes_a_directory_ends_the_watching(log: Path, follower: LogFollower) -> None:
    follower.look()
    log.mkdir()
    with pytest.raises(InputError, match="cannot read"):
        follower.look()


# Current figures


def steps(*stamps: float | None, **changes: float) -> list[dict[str, float]]:
    row = {"batch_size": 4.0, "total_tokens": 40.0, "latency_ms": 20.0, **changes}
    return [row | ({} if stamp is None else {"timestamp": stamp}) for stamp in stamps]


def test_figures_are_those_of_the_window() -> None:
    window = LiveWindow(10.0)
    rows = steps(*(START + i for i in range(100)), num_waiting_reqs=3, kv_cache_usage=0.5)
    window.add(rows, now_s=START + 99)
    figures = window.figures(now_s=START + 99)
    assert (figures.num_steps, figures.steps_per_s, figures.tokens_per_s) == (11, 1.1, 44.0)
    assert (figures.p50_ms, figures.p99_ms) == (20.0, 20.0)
    assert (figures.running, figures.waiting, figures.kv_cache) == (None, 3, 0.5)
    assert figures_text(figures) == (
        "1.1 steps/s  44 tokens/s  model run p50 20.0 p99 20.0 ms  running –  waiting 3  KV 50.0%"
    )
    figures = window.figures(now_s=START + 160)
    assert (figures.num_steps, figures.steps_per_s, figures.p50_ms) == (0, 0.0, None)


def test_a_monotonic_clock_is_set_by_the_first_look() -> None:
    window = LiveWindow(10.0)
    window.add(steps(*(5000.0 + i for i in range(100))), now_s=START)
    assert window.figures(now_s=START).num_steps == 11
    window.add(steps(5109.0), now_s=START + 10)
    assert window.figures(now_s=START + 10).num_steps == 2


def test_without_timestamps_a_step_counts_when_it_is_read() -> None:
    window = LiveWindow(10.0)
    window.add(steps(*[None] * 5), now_s=START)
    window.add(steps(*[None] * 3), now_s=START + 8)
    assert window.figures(now_s=START + 8).steps_per_s == 1.0
    assert window.figures(now_s=START + 12).num_steps == 3


def test_a_watch_that_has_just_begun_divides_by_the_time_it_covers() -> None:
    window = LiveWindow(10.0)
    window.add([], now_s=START)
    window.add(steps(START + 1, START + 2), now_s=START + 2)
    assert window.figures(now_s=START + 2).steps_per_s == 1.0


def test_before_anything_is_there_the_figures_are_none() -> None:
    assert figures_text(LiveWindow(10.0).figures(now_s=START)) == (
        "0.0 steps/s  0 tokens/s  model run p50 – p99 – ms  running –  waiting –  KV –"
    )
