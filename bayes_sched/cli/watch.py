"""``bayes-sched watch``: a growing log as one live line of a terminal, or as plain lines elsewhere."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING

from bayes_sched.cli.command import DONE, Call
from bayes_sched.trace.watch import LiveWindow, LogFollower, check_followable

if TYPE_CHECKING:
    from rich.live import Live


def run(options: argparse.Namespace, call: Call) -> int:
    """Follow the log until an interrupt, which is how it ends well."""
    check_followable(options.trace, is_needed=options.once)
    with suppress(KeyboardInterrupt):
        watch(
            options.trace,
            interval_s=options.interval,
            window_s=options.window,
            duration_s=0.0 if options.once else options.duration,
            say=call.say,
        )
    return DONE


def watch(
    path: str,
    *,
    interval_s: float,
    window_s: float,
    duration_s: float | None,
    say: Callable[[str], None],
) -> None:
    """Follow a log until it is time to end, or for ever.

    Parameters
    ----------
    path : str
        Checked by `bayes_sched.analysis.following.check_followable`.
    interval_s : float
        Between two looks, s.
    window_s : float
        Time that the figures are of, s.
    duration_s : float or None
        End after so long, s; after one look for 0; None does not end.
    say : callable
        Told what becomes of the file, where there is no live line to show it.
    """
    window = LiveWindow(window_s)
    begin_s = next_s = time.monotonic()
    with LogFollower(path) as follower, _display(is_lasting=duration_s != 0.0) as live:
        while True:
            new = follower.look()
            window.add(new.rows, now_s=time.time())
            _show(live, window, follower, new.events, say)
            next_s = max(next_s + interval_s, time.monotonic())
            if duration_s is not None and next_s - begin_s > duration_s:
                return
            time.sleep(max(0.0, next_s - time.monotonic()))


def _display(*, is_lasting: bool) -> AbstractContextManager[Live | None]:
    if not (is_lasting and sys.stdout.isatty()):
        return nullcontext()
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(), auto_refresh=False)


def _show(
    live: Live | None,
    window: LiveWindow,
    follower: LogFollower,
    events: list[str],
    say: Callable[[str], None],
) -> None:
    if live is None:
        for event in events:
            say(event)
        _print_line(window, follower)
        return
    from rich.text import Text

    for event in events:
        live.console.print(Text(f"{time.strftime('%H:%M:%S')} {event}", style="dim"))
    live.update(Text(_line(window, follower)), refresh=True)


def _print_line(window: LiveWindow, follower: LogFollower) -> None:
    sys.stdout.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}  {_line(window, follower)}\n")
    sys.stdout.flush()


def _line(window: LiveWindow, follower: LogFollower) -> str:
    line = window.figures(now_s=time.time()).text
    num_bad = sum(follower.bad.values())
    state = "" if follower.is_there else f"  waiting for {follower.path}"
    return f"{line}{f'  {num_bad:,} bad line' + 's' * (num_bad > 1) if num_bad else ''}{state}"
