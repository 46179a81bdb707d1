"""What a subcommand is before anything heavy is loaded: its options, its cheap checks, how it was called."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import shtab

from bayes_sched.errors import InputError
from bayes_sched.files import POSTERIOR, is_name, obstacle, whole_file

DONE, REFUSED, BAD_INPUT, NOT_CONVERGED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses; REFUSED is an answer, not an error: what was asked about cannot be promised."""

DEFAULT: Final = "(default: %(default)s)"
"""The end of an option's help."""


class Parser(argparse.ArgumentParser):
    """Errors are `InputError`, one line each; options are not abbreviated."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"formatter_class": _Formatter, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Raise what the command turns into a line and an exit status."""
        raise InputError(f"{message} (--help lists the options)")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Epilogs keep their lines; an option's help ends with its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        is_shown = action.option_strings and default not in (None, argparse.SUPPRESS)
        if not is_shown or isinstance(default, bool | list) or "(default:" in text:
            return text
        return f"{text} {DEFAULT}"


_AS_OPTIONS = (
    (r"\b(max|min)_(bad_share|rows|latency_ms)\b", lambda found: option_of(found[0])),
    (r"\b(raise|then) (tune|draws)\b", r"\1 --\2"),
    (r"\baccept it unconverged\b", "give --accept-unconverged"),
)
"""What the library says of its parameters, and the options that these are."""


@dataclass(frozen=True)
class Call:
    """How a subcommand was called: ``bayes-sched sla ...``, or ``python scripts/sla.py ...``."""

    name: str
    """What its messages begin with."""
    words: tuple[str, ...]
    """The command, before its arguments."""
    arguments: tuple[str, ...]

    def say(self, text: str) -> None:
        """Write one line to standard error; where the library names its parameters, it names options."""
        for pattern, option in _AS_OPTIONS:
            text = re.sub(pattern, option, text)
        sys.stderr.write(f"{self.name}: {' '.join(text.split())}\n")
        sys.stderr.flush()

    def warn(self, texts: Iterable[str], *, of: str = "warning") -> None:
        """Write what is to be known, a line each."""
        for text in texts:
            self.say(f"{of}: {text}")

    def line(self, *, traces: Sequence[str] = (), without: Sequence[str] = ()) -> str:
        """Return the command as it was given, less some options and the folders of somebody's files."""

        def shown(text: str) -> str:
            option, is_joined, value = text.partition("=") if text.startswith("--") else ("", "", text)
            is_private = value in traces or Path(value).is_absolute()
            return option + is_joined + (Path(value).name if is_private else value)

        return shlex.join([*self.words, *(shown(text) for text in self.arguments if text not in without)])


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand, or a group of them.

    Its module is imported only after `check` has found nothing wrong; then its ``run(options, call)`` does
    what was asked for and returns the exit status. The texts name commands as ``bayes-sched NAME``.
    """

    name: str
    summary: str
    """One line for the list of subcommands."""
    description: str = ""
    """The beginning of its help, the summary as a sentence if empty."""
    epilog: str = ""
    """The end of its help, that of its group if empty."""
    script: str = ""
    """The file in ``scripts/`` (and first argument) that is the same command: ``plan.py optimize``."""
    module: str = ""
    """In `bayes_sched.cli`; it is told which subcommand of it was called by ``options.kind``."""
    add_options: Callable[[Parser], None] | None = None
    check: Callable[[argparse.Namespace, Call], None] | None = None
    """Refuses what can be refused without reading any data; adds to the options what it has found."""
    commands: tuple[Command, ...] = ()

    def fill(self, parser: Parser, shown: Callable[[str], str] = str) -> Parser:
        """Give a parser the options and the texts, `shown` as the command was called; return it."""
        sentence = f"{self.summary[0].upper()}{self.summary[1:]}."
        parser.description, parser.epilog = shown(self.description or sentence), shown(self.epilog)
        if self.add_options is not None:
            self.add_options(parser)
        for action in parser._actions:  # what a shell completes as a file or folder
            if action.type is Path or action.metavar in ("TRACE", "TRACE|RESULT", "FILE.py"):
                complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
                action.complete = complete  # type: ignore[attr-defined]
        if self.commands:
            choices = " | ".join(one.name for one in self.commands)
            metavar = choices if len(choices) < 40 else "COMMAND"
            names = parser.add_subparsers(required=True, metavar=metavar)
            for one in self.commands:
                one.fill(names.add_parser(one.name, help=one.summary), shown)
        return parser


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


def at_least(least: int) -> Callable[[str], Any]:
    """Return a `type` for an option: a whole number that is not less."""
    return number_option(int, lambda x: x >= least, f"a whole number of at least {least}")


def names(text: str) -> tuple[str, ...]:
    """Read names with commas between them."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return found


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return options as the arguments of the library that have their names."""
    return {name: getattr(options, name) for name in names}


def option_of(name: str) -> str:
    """Return the option that a name in the options stands for."""
    return f"--{name.replace('_', '-')}"


def add_result_options(parser: Parser, *, name: str, replaced: str, bare: str) -> None:
    """Add where a result is written and how it is printed; `bare` is what there is without a report."""
    add = parser.add_argument
    add("--name", help=f"name of the result (default: {name})")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="folder of all results")
    add("--overwrite", action="store_true", help=f"replace an existing {replaced}, its whole folder")
    add("--no-report", action="store_true", help=f"write {bare} alone")
    add("--svg", action="store_true", help="write the figures of the report as SVG files, too")
    add("--json", action="store_true", help="print one JSON document in place of the tables")


def add_report_options(parser: Parser, *, name: str) -> Any:
    """Add what is printed, and whether and where a report is written, as a group that may grow."""
    add = parser.add_argument_group("what comes out").add_argument
    add("--json", action="store_true", help="print one JSON document in place of the text")
    add("--report", action="store_true", help="write an HTML page, tables and figures")
    add("--svg", action="store_true", help="write the figures of the report as SVG files, too")
    add("--name", help=f"name of the report (default: {name})")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="folder of all results")
    add("--overwrite", action="store_true", help="replace what is there")
    return add


def check_named(options: argparse.Namespace, default: str, *, holds: str = POSTERIOR) -> Path:
    """Return the folder of the result that the options name, after making sure that it may be written."""
    name = default if options.name is None else options.name
    return check_result(options.results_dir, name, overwrite=options.overwrite, holds=holds)


def check_report(options: argparse.Namespace, default: str, *, holds: str) -> Path | None:
    """Return the folder of the report that ``--report`` asks for, None where it does not."""
    if options.name is not None and not options.report:
        raise InputError("--name names the report: give --report too")
    return check_named(options, default, holds=holds) if options.report else None


def check_result(results_dir: Path, name: str, *, overwrite: bool, holds: str = POSTERIOR) -> Path:
    """Return the folder of a result after making sure that it may be written; `holds` as in `obstacle`."""
    if not is_name(name):
        raise InputError(
            f"{name!r} cannot name a result: give a --name of letters, digits, '.', '_' and '-' that begins "
            "with a letter or digit"
        )
    folder = results_dir / name
    if found := obstacle(folder, overwrite=overwrite, holds=holds):
        way = ", or --overwrite to replace it" if found == "exists" else ""
        raise InputError(f"{folder} {found}: give another --name{way}")
    existing = next(place for place in (results_dir, *results_dir.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is a file: results are folders in --results-dir, give another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing}: no permission to write there; give another --results-dir")
    return folder


def check_output(path: Path, *, inputs: Sequence[str], overwrite: bool) -> None:
    """Make sure that a file may be written, and that it is none of those that the command reads."""
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
    """Write a text file whole or not at all."""
    with whole_file(path, what="the file") as temporary:
        temporary.write_text(text, encoding="utf-8")


def print_json(numbers: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(numbers, indent=2, allow_nan=False))
