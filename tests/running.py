"""Commands run as people run them, in this process: what they say when they fail, and what befalls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from bayes_sched.cli.main import main

type Run = Callable[[list[str]], int]


def subcommand(*names: str) -> Run:
    """Return the command ``bayes-sched NAMES``, which takes the other arguments."""
    return lambda arguments: main([*names, *arguments])


def fails(run: Run, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command, expect exit status 2 and nothing on standard output; return its last word."""
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err.splitlines()[-1]


def printed_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the one document on standard output."""
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def interrupt(*_args: object, **_options: object) -> None:
    """Do what a person does who presses Ctrl-C."""
    raise KeyboardInterrupt


def full(*_args: object, **_options: object) -> None:
    """Do what a full disk does."""
    raise OSError(28, "No space left on device")


def fail(*_args: object, **_options: object) -> None:
    """Do what a bug does."""
    raise RuntimeError("a bug")
