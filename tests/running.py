"""Commands run as people run them: in a process of their own, or in this one where they must fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import ROOT


def run_python(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run this interpreter in the current folder as a person would, without a terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], input=stdin, capture_output=True, env=environment)


def fails(main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command, expect exit status 2 and nothing on standard output; return its last word."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    last = printed.err.splitlines()[-1]
    assert last.startswith(f"{main.__module__.rpartition('.')[2]}: ")
    return last


def interrupt(*_args: object, **_options: object) -> None:
    """Do what a person does who presses Ctrl-C."""
    raise KeyboardInterrupt


def full(*_args: object, **_options: object) -> None:
    """Do what a full disk does."""
    raise OSError(28, "No space left on device")
