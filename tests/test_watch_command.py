"""The command that follows a log: what it shows, and that it survives whatever befalls the log."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.analyze_trace import main
from tests.conftest import ROOT, as_bytes, documented_record
from tests.running import fails, interrupt

SCRIPT = ROOT / "scripts" / "analyze_trace.py"

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def now(number: int = 0) -> bytes:
    return as_bytes(documented_record(batch_id=number, timestamp=time.time())) + b"\n"


def test_one_look_prints_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("log").write_bytes(now() * 5)
    assert main(["watch", "log", "--once"]) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S+  5\.0 steps/s  2,585 tokens/s  model run p50 45\.2 p99 45\.2 ms  "
        r"running 10  waiting 5  KV 75\.0%\n",
        printed.out,
    )
    assert printed.err == ""


def test_a_watch_goes_through_everything_that_befalls_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Path("log")

    def rotate() -> None:
        log.rename("log.1")
        log.write_bytes(now() + now()[:40])

    events: Iterator[Callable[[], object]] = iter(
        [
            lambda: log.write_bytes(now()),
            rotate,
            lambda: os.truncate(log, 0),
            log.unlink,
            lambda: log.write_bytes(now()),
            interrupt,
        ]
    )
    monkeypatch.setattr("bayes_sched.cli.watching.time.sleep", lambda _: next(events)())
    assert main(["watch", "log"]) == 0
    printed = capsys.readouterr()
    assert [line.removeprefix("analyze_trace: ") for line in printed.err.splitlines()] == [
        "log is there",
        "log was replaced: going on with the new file",
        "log was truncated: reading it from its beginning",
        "log is gone: waiting for it to come back",
        "log was replaced: going on with the new file",
    ]
    lines = printed.out.splitlines()
    assert len(lines) == 6
    assert [line.endswith("waiting for log") for line in lines] == [True, False, False, False, True, False]
    assert [line.endswith("1 bad line") for line in lines] == [False, False, False, True, False, True]
    assert "running 10" in lines[-1]


def test_a_watch_ends_when_its_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "log", "--interval", "0.1", "--duration", "0.35"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def watched(*, stdout: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "130"}
    command = [sys.executable, str(SCRIPT), "watch", "log", "--interval", "0.1"]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=environment)


def test_an_interrupt_ends_the_watch_with_success() -> None:
    Path("log").write_bytes(now())
    process = watched(stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"steps/s" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, b"")


def test_on_a_terminal_the_watch_is_one_line_that_changes() -> None:
    Path("log").write_bytes(now())
    mine, theirs = pty.openpty()
    process = watched(stdout=theirs)
    os.close(theirs)
    shown = b""
    while shown.count(b"steps/s") < 4:
        shown += os.read(mine, 4096)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            if not (piece := os.read(mine, 4096)):
                break
        except OSError:  # the other end is closed
            break
        shown += piece
    os.close(mine)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert shown.count(b"\x1b[2K") >= 2  # the line is wiped and written again
    assert shown.count(b"\n") <= 2


def test_a_compressed_log_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("log").write_bytes(b"\x1f\x8b\x08\x00")
    assert "for a finished trace use analyze" in fails(main, ["watch", "log"], capsys)
