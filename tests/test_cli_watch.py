"""The command ``watch``: what it shows, and that it survives whatever befalls the log."""

from __future__ import annotations

import os
import pty
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import as_bytes, documented_record
from tests.running import fails, interrupt, subcommand

main = subcommand("watch")
SLEEP = "bayes_sched.cli.watch.time.sleep"

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def now(number: int = 0) -> bytes:
    return as_bytes(documented_record(batch_id=number, timestamp=time.time())) + b"\n"


def test_one_look_prints_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("log").write_bytes(now() * 5)
    assert main(["log", "--once"]) == 0
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
    monkeypatch.setattr(SLEEP, lambda _: next(events)())
    assert main(["log"]) == 0
    printed = capsys.readouterr()
    assert [line.removeprefix("bayes-sched watch: ") for line in printed.err.splitlines()] == [
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
    assert main(["log", "--interval", "0.1", "--duration", "0.35"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_on_a_terminal_the_watch_is_one_line_that_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("log").write_bytes(now())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "130")
    looks = iter([None, None, None, interrupt])
    monkeypatch.setattr(SLEEP, lambda _: (next(looks) or str)())
    mine, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        assert main(["log"]) == 0
        monkeypatch.undo()
    shown = b""
    with suppress(OSError):  # the other end is closed
        while piece := os.read(mine, 65536):
            shown += piece
    os.close(mine)
    assert shown.count(b"steps/s") >= 4
    assert shown.count(b"\x1b[2K") >= 2  # the line is wiped and written again
    assert shown.count(b"\n") <= 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-"], "watch follows a file by its name"),
        (["."], "is a directory: name the log in it"),
        (["missing.jsonl", "--once"], "no such file: missing.jsonl"),
        (["compressed"], "for a finished trace use analyze"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("compressed").write_bytes(b"\x1f\x8b\x08\x00")
    assert message in fails(main, arguments, capsys)
