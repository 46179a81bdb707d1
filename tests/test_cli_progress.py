"""Progress: words, the share done and the time left, on a pipe as on a terminal."""

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bayes_sched.cli import progress
from bayes_sched.cli.command import Call
from bayes_sched.cli.progress import shown_progress
from tests.conftest import ROOT

CALL = Call("bayes-sched fit", (), ())


class Clock:
    """Time as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def stage_after(clock: Clock, *stages: tuple[float, str, float | None]) -> progress._Stage:
    """Return the last of some stages, each so many seconds after the one before."""
    stage = progress._Stage()
    for seconds, words, share in stages:
        clock.now += seconds
        stage = stage.then(words, share)
    return stage


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([(0, "reading", 0.0), (10, "reading", 0.25)], "reading: 25% done, about 30 s left"),
        ([(0, "reading", None), (10, "reading", 0.5)], "reading: 50% done, about 10 s left"),
        ([(0, "reading", 0.0), (1, "reading", 0.5)], "reading: 50% done"),
        ([(0, "sampling", 0.0), (600, "sampling", 0.5)], "sampling: 50% done, about 10 min left"),
        ([(0, "run 1", 0.0), (3600, "run 2", 0.1)], "run 2: 10% done, about 9 h left"),
        ([(0, "one", 0.9), (99, "two", 0.1), (10, "two", 0.2)], "two: 20% done, about 80 s left"),
        ([(0, "compiling", None), (20, "compiling", None)], "compiling, 20 s so far"),
        ([(0, "compiling", None), (20, "weighing", None)], "weighing, 0 s so far"),
        ([(0, "reading", 0.5), (20, "compiling", None)], "compiling, 0 s so far"),
    ],
)
def test_a_stage_tells_how_much_is_done_and_the_time_left(
    stages: list[tuple[float, str, float | None]], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage_after(Clock(monkeypatch), *stages).text == text


def test_on_a_pipe_a_stage_is_said_once_and_then_now_and_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.05)
    with shown_progress(CALL) as show:
        time.sleep(0.12)  # nothing is done yet, and nothing said
        show("sampling", 0.25)
        show("sampling", 0.5)
        time.sleep(0.22)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "bayes-sched fit: sampling"
    assert 1 <= len(lines[1:]) <= 5
    assert set(lines[1:]) == {"bayes-sched fit: sampling: 50% done"}
    time.sleep(0.1)
    assert not capsys.readouterr().err, "what is over says nothing"


def test_on_a_terminal_a_bar_tells_the_time_left(tmp_path: Path) -> None:
    code = (
        "from bayes_sched.cli import progress\n"
        "from bayes_sched.cli.command import Call\n"
        "progress._SOON_S = 0.0\n"
        "with progress.shown_progress(Call('x', (), ())) as show:\n"
        "    show('reading [it]', 0.0)\n"
        "    show('reading [it]', 0.5)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 2**16).decode()
    os.close(ours)
    assert re.search(r"reading \[it\].*about 0 s left", shown)
