"""The log grows by whole lines, whatever happens to it."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bayes_sched_vllm.recorder.log_file import LogFile

LINES = [b'{"step":%d}\n' % number for number in range(100)]


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond `num_bytes`: what a full disk does, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("before", [b"{}\n", b'{}\n{"step":'], ids=["whole", "torn"])
def test_lines_are_appended_to_what_is_there_and_a_torn_line_is_ended_first(log: Path, before: bytes) -> None:
    log.write_bytes(before)
    assert LogFile(str(log)).write(LINES[:2]) == (2, None)
    assert log.read_bytes() == before.rstrip() + b"\n" + LINES[0] + LINES[1]


@pytest.mark.parametrize("is_torn_line_kept", [False, True])
def test_what_finds_room_on_a_full_disk_is_whole_and_the_rest_follows_later(
    log: Path, monkeypatch: pytest.MonkeyPatch, is_torn_line_kept: bool
) -> None:
    file = LogFile(str(log))
    if is_torn_line_kept:
        monkeypatch.setattr(os, "ftruncate", lambda *args: (_ for _ in ()).throw(OSError("no truncation")))
    with room_for(100):
        num_written, error = file.write(LINES)
    assert error is not None
    assert 0 < num_written < len(LINES)
    assert file.write(LINES[num_written:]) == (len(LINES) - num_written, None)
    lines = log.read_bytes().splitlines(keepends=True)
    if is_torn_line_kept:
        torn = lines.pop(num_written)
        assert LINES[num_written].startswith(torn.strip())
    assert lines == LINES


def test_what_takes_no_line_is_an_error_and_no_exception(tmp_path: Path) -> None:
    num_written, error = LogFile("/dev/full").write(LINES)
    assert (num_written, getattr(error, "strerror", "")) == (0, "No space left on device")
    pipe = tmp_path / "pipe that nobody reads"
    os.mkfifo(pipe)
    assert isinstance(LogFile(str(pipe)).write(LINES)[1], OSError)


def test_an_unwritable_path_is_an_error_until_it_can_be_written(tmp_path: Path) -> None:
    log = tmp_path / "folder" / "steps.jsonl"
    log.parent.write_text("a file in the place of the folder")
    file = LogFile(str(log))
    assert isinstance(file.write(LINES)[1], OSError)
    log.parent.unlink()
    assert file.write(LINES) == (len(LINES), None)
    assert log.read_bytes() == b"".join(LINES)


def test_a_log_that_was_deleted_or_rotated_away_is_begun_again(log: Path) -> None:
    file, moved = LogFile(str(log)), log.with_suffix(".old")
    file.write(LINES[:1])
    log.unlink()
    file.write(LINES[1:2])
    assert log.read_bytes() == LINES[1]
    log.rename(moved)
    file.write(LINES[2:3])
    assert (moved.read_bytes(), log.read_bytes()) == (LINES[1], LINES[2])


def test_a_large_log_is_set_aside_and_nothing_is_lost(log: Path) -> None:
    file = LogFile(str(log), rotate_bytes=200)
    for index in range(0, 100, 10):
        file.write(LINES[index : index + 10])
    parts = sorted(log.parent.glob("steps.jsonl.*"), key=lambda part: int(part.suffix[1:]))
    assert len(parts) >= 3
    rest = log.read_bytes() if log.exists() else b""
    assert b"".join(part.read_bytes() for part in parts) + rest == b"".join(LINES)


def test_engines_that_share_a_path_write_a_file_each_until_one_is_gone(log: Path) -> None:
    first, second, third = LogFile(str(log)), LogFile(str(log)), LogFile(str(log))
    first.write(LINES[:1])
    second.write(LINES[1:2])
    assert second.path == str(log.with_name("steps.engine2.jsonl"))
    first.close()
    third.write(LINES[2:3])
    assert third.path == str(log)
    assert log.read_bytes() == LINES[0] + LINES[2]
    assert Path(second.path).read_bytes() == LINES[1]
