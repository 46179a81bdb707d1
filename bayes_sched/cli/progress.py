"""What a long command shows of itself, and the interrupts that a sampler would swallow."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bayes_sched.cli.command import Call

type Show = Callable[[str, float | None], None]
"""Called with a stage in words and the share of it that is done, None where that is not known."""


@contextmanager
def shown_progress(call: Call) -> Iterator[Show]:
    """Give what shows stages on standard error: as a bar on a terminal, elsewhere as one line each.

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


@contextmanager
def _lines(call: Call) -> Iterator[Show]:
    shown: set[str] = set()

    def update(stage: str, _share: float | None) -> None:
        if stage not in shown:
            shown.add(stage)
            call.say(stage)

    yield update


@contextmanager
def _bar() -> Iterator[Show]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def update(stage: str, share: float | None) -> None:
            total = None if share is None else 1.0
            bar.update(task, description=stage, total=total, completed=share or 0.0)

        yield update


def prefixed(which: str, show: Show) -> Show:
    """Say of every stage what it is one of."""
    return lambda stage, share: show(f"{which}: {stage}", share)
