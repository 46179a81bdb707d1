"""What a long command shows of itself, and the interrupts that a sampler would swallow."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bayes_sched.cli.command import Call

EVERY_S = 10.0
"""Seconds between the lines that say how far a stage is, where there is no terminal."""
_SOON_S = 2.0
"""A guess of the time left that is made earlier is none."""

type Show = Callable[[str, float | None], None]
"""Called with a stage in words and the share of it that is done, None where that is not known."""


@contextmanager
def shown_progress(call: Call) -> Iterator[Show]:
    """Give what shows stages on standard error: as a bar on a terminal, elsewhere as a line now and then.

    The samplers take an interrupt as a wish for fewer draws and return those they have: with the next stage
    it is raised again.
    """
    seen: list[int] = []

    def notice(number: int, _frame: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if seen:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, notice)
    try:
        with _bar() if sys.stderr.isatty() else _lines(call) as update:

            def show(stage: str, share: float | None = None) -> None:
                check()
                update(stage, share)

            yield show
        check()
    except Exception:
        check()
        raise
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class _Stage:
    """What is being done, since when, and what that tells of the time left."""

    words: str = ""
    share: float | None = None
    began_s: float = 0.0
    began_share: float = 0.0

    def then(self, words: str, share: float | None) -> _Stage:
        """Return how it goes on; stages whose shares grow on are one stretch of work."""
        goes_on = words == self.words if share is None or self.share is None else share >= self.share
        began = (self.began_s, self.began_share) if goes_on else (time.monotonic(), share or 0.0)
        return _Stage(words, share, *began)

    @property
    def left(self) -> str:
        """The time left as far as it can be told, in words; empty where it cannot."""
        seconds = time.monotonic() - self.began_s
        if self.share is None or self.share <= self.began_share or seconds < _SOON_S:
            return ""
        return f"about {_duration(seconds * (1.0 - self.share) / (self.share - self.began_share))} left"

    @property
    def text(self) -> str:
        """A line for those who look at no terminal."""
        if self.share is None:
            return f"{self.words}, {_duration(time.monotonic() - self.began_s)} so far"
        return ", ".join(filter(None, (f"{self.words}: {self.share:.0%} done", self.left)))


def _duration(seconds: float) -> str:
    """Write how long something takes, as exactly as one cares."""
    return next(
        f"{seconds / unit:.0f} {name}"
        for name, unit, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, math.inf))
        if seconds < most
    )


@contextmanager
def _lines(call: Call) -> Iterator[Show]:
    """Say each stage once, and every `EVERY_S` how far it is."""
    shown: set[str] = set()
    stage, is_over = _Stage(), threading.Event()

    def update(words: str, share: float | None) -> None:
        nonlocal stage
        stage = stage.then(words, share)
        if words not in shown:
            shown.add(words)
            call.say(words)

    def say_on() -> None:
        while not is_over.wait(EVERY_S):
            if stage.words:
                call.say(stage.text)

    saying = threading.Thread(target=say_on, daemon=True)
    saying.start()
    try:
        yield update
    finally:
        is_over.set()
        saying.join()


@contextmanager
def _bar() -> Iterator[Show]:
    words = TextColumn("{task.description}", markup=False)
    columns = (words, BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    stage = _Stage()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, left="")

        def update(words: str, share: float | None) -> None:
            nonlocal stage
            stage = stage.then(words, share)
            total = None if share is None else 1.0
            bar.update(task, description=words, total=total, completed=share or 0.0, left=stage.left)

        yield update


def prefixed(which: str, show: Show) -> Show:
    """Say of every stage what it is one of."""
    return lambda stage, share: show(f"{which}: {stage}", share)
