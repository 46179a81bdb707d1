"""``bayes-sched watch``: a growing log as one live line of a terminal, or as plain lines elsewhere."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bayes_sched.cli.command import DONE, Call
from bayes_sched.format import NONE, counted
from bayes_sched.trace.watch import LiveFigures, LiveWindow, LogFollower


def run(options: argparse.Namespace, call: Call) -> int:
    """Follow the log until an interrupt, which is how it ends well."""
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
    """Follow a log, checked before, for `duration_s`: one look for 0, for ever for None.

    There is a look every `interval_s`; the figures are those of `window_s`. `say` is told what becomes of the
    file where there is no live line to show it.
    """
    window = LiveWindow(window_s)
    begin_s = next_s = time.monotonic()
    with LogFollower(path) as follower, _display(is_lasting=duration_s != 0.0) as live:
        while True:
            new = follower.look()
            window.add(new.rows, now_s=time.time())
            _show(live, _line(window, follower), new.events, say)
            next_s = max(next_s + interval_s, time.monotonic())
            if duration_s is not None and next_s - begin_s > duration_s:
                return
            time.sleep(max(0.0, next_s - time.monotonic()))


def _display(*, is_lasting: bool) -> AbstractContextManager[Live | None]:
    if not (is_lasting and sys.stdout.isatty()):
        return nullcontext()
    return Live(console=Console(), auto_refresh=False)


def _show(live: Live | None, line: str, events: list[str], say: Callable[[str], None]) -> None:
    if live is None:
        for event in events:
            say(event)
        sys.stdout.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}  {line}\n")
        sys.stdout.flush()
        return
    for event in events:
        live.console.print(Text(f"{time.strftime('%H:%M:%S')} {event}", style="dim"))
    live.update(Text(line), refresh=True)


def _line(window: LiveWindow, follower: LogFollower) -> str:
    num_bad = follower.bad.total()
    bad = f"  {counted(num_bad, 'bad line')}" if num_bad else ""
    state = "" if follower.is_there else f"  waiting for {follower.path}"
    return f"{figures_text(window.figures(now_s=time.time()))}{bad}{state}"


def figures_text(figures: LiveFigures) -> str:
    """Write what a server does as one line."""

    def shown(value: float | None, template: str) -> str:
        return NONE if value is None else template.format(value)

    return "  ".join(
        [
            f"{figures.steps_per_s:,.1f} steps/s",
            f"{figures.tokens_per_s:,.0f} tokens/s",
            f"model run p50 {shown(figures.p50_ms, '{:,.1f}')} p99 {shown(figures.p99_ms, '{:,.1f}')} ms",
            f"running {shown(figures.running, '{:,}')}",
            f"waiting {shown(figures.waiting, '{:,}')}",
            f"KV {shown(figures.kv_cache, '{:.1%}')}",
        ]
    )
