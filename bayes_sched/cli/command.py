"""What all commands share: options that are checked at once, one-line errors, progress, interrupts.

It imports nothing heavy, so that a command answers a slip of the pen before it loads what it works with.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from bayes_sched.errors import InputError
from bayes_sched.files import whole_file

DONE, BAD_INPUT, NOT_CONVERGED, INTERRUPTED = 0, 2, 3, 130
"""Exit statuses."""

type Progress = Callable[[str, float | None], None]
"""Called with a stage in words and the share of it that is done, None where that is not known."""

DEFAULT: Final = "(default: %(default)s)"
"""The end of an option's help."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`, one line each.

    Options are not abbreviated, and the texts of ``--help`` keep their lines, unless asked for.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        """Raise what the command turns into a line and an exit status."""
        raise InputError(f"{message} (--help lists the options)")


def number_option(
    kind: Callable[[str], float], check: Callable[[float], bool], words: str
) -> Callable[[str], Any]:
    """Return a `type` for an option: a number that passes a check, `words` says which."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not check(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
        return value

    return parse


milliseconds = number_option(float, lambda x: 0 < x < math.inf, "a positive number of milliseconds")
share = number_option(float, lambda x: 0 <= x <= 1, "a share between 0 and 1")
probability = number_option(float, lambda x: 0 < x < 1, "a probability between 0 and 1")


def names(text: str) -> tuple[str, ...]:
    """Read names with commas between them."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return found


def at_least(least: int) -> Callable[[str], Any]:
    """Return a `type` for an option: a whole number that is not less."""
    return number_option(int, lambda x: x >= least, f"a whole number of at least {least}")


def add_study_options(parser: argparse.ArgumentParser, *, folder: str) -> None:
    """Add what every study takes: its folder, ``--resume`` and ``--overwrite``.

    Parameters
    ----------
    parser : ArgumentParser
    folder : str
        The default of ``--results-dir``.
    """
    add = parser.add_argument
    add("--results-dir", type=Path, default=Path(folder), metavar="DIR", help=DEFAULT)
    add("--resume", action="store_true", help="go on with the study in the folder")
    add("--overwrite", action="store_true", help="replace the study in the folder")


def shown_study(script: str, arguments: Sequence[str]) -> str:
    """Return the command that makes a study in one go, however often it was interrupted and went on."""
    return shown_command(script, [text for text in arguments if text not in ("--resume", "--overwrite")], ())


def shown_command(script: str, arguments: Sequence[str], traces: Sequence[str]) -> str:
    """Return the command as it was given, less the folders in which somebody keeps things."""

    def shown(text: str) -> str:
        option, is_joined, value = text.partition("=") if text.startswith("--") else ("", "", text)
        is_private = value in traces or Path(value).is_absolute()
        return option + is_joined + (Path(value).name if is_private else value)

    return shlex.join(["python", script, *map(shown, arguments)])


def check_output(path: Path, *, inputs: Sequence[str], overwrite: bool) -> None:
    """Check that a file may be written.

    Parameters
    ----------
    path : Path
    inputs : sequence of str
        Files that the command reads; none of them is ever written.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    InputError
        It may not.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory: name a file in it")
    if path.exists() and any(Path(name).exists() and path.samefile(name) for name in inputs):
        raise InputError(f"{path} is one of the traces: name another file")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: name another file, or --overwrite to replace it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: no permission to write there")


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises
    ------
    InputError
        It cannot be written.
    """
    with whole_file(path, what="the file") as temporary:
        temporary.write_text(text, encoding="utf-8")


_PARAMETERS = re.compile(r"\b(max_bad_share|max_rows|(?:min|max)_latency_ms)\b")


def as_options(text: str) -> str:
    """Name options where the library names its parameters: ``--max-rows`` for ``max_rows``."""
    return _PARAMETERS.sub(lambda found: f"--{found[0].replace('_', '-')}", text)


def say(program: str, text: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"{program}: {' '.join(as_options(text).split())}\n")
    sys.stderr.flush()


def exit_status(program: str, body: Callable[[], int]) -> int:
    """Run a command; turn what a person has to act on into one line and an exit status."""
    try:
        return body()
    except InputError as error:
        say(program, str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        say(program, "interrupted; existing results are as they were")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


@contextmanager
def noticed_interrupts() -> Iterator[Callable[[], None]]:
    """Give a function that raises KeyboardInterrupt if one has come.

    The samplers take an interrupt as a wish for fewer draws and return those they have.
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
        yield check
    except Exception:
        check()
        raise
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def shown_progress(program: str) -> Iterator[Progress]:
    """Show stages on standard error: as a bar on a terminal, elsewhere as one line each."""
    if sys.stderr.isatty():
        with _bar() as update:
            yield update
        return
    shown: set[str] = set()

    def line(stage: str, _share: float | None) -> None:
        if stage not in shown:
            shown.add(stage)
            say(program, stage)

    yield line


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def update(stage: str, share_done: float | None) -> None:
            total = None if share_done is None else 1.0
            bar.update(task, description=stage, total=total, completed=share_done or 0.0)

        yield update
