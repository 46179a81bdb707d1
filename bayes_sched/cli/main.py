"""One command: ``bayes-sched sla ...``, ``python -m bayes_sched sla ...`` or ``python scripts/sla.py ...``.

The arguments are read and checked with the standard library and light modules alone, so that a slip of the
keyboard is answered at once; then the subcommand's module is imported: the one import that does not stand at
the top of a module.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import shtab

from bayes_sched.cli.command import BAD_INPUT, DONE, INTERRUPTED, Call, Command, Parser
from bayes_sched.cli.fit_parsers import COMPARE, PLAN_COMMAND, PREDICTOR_COMMAND, SLA_COMMAND
from bayes_sched.cli.study_parsers import STUDIES
from bayes_sched.cli.trace_parsers import ANALYZE, ANALYZE_TRACE, FIT, MODELS, POOL, WATCH
from bayes_sched.errors import InputError
from bayes_sched.files import VERSION

NAME = "bayes-sched"
COMMANDS = (FIT, POOL, SLA_COMMAND, PLAN_COMMAND, COMPARE, ANALYZE, WATCH, MODELS, PREDICTOR_COMMAND)


def _add_root_options(parser: Parser) -> None:
    parser.add_argument("--version", action="version", version=f"{NAME} {VERSION}")
    shtab.add_argument_to(parser, help="print what makes a shell complete this command")


STUDY = Command(
    name="study",
    summary="is all this true? calibrations, benchmarks",
    epilog="""\
example:
  bayes-sched study validate trace.jsonl --models line,saturation
""",
    commands=STUDIES,
)
ROOT = Command(
    name=NAME,
    summary="Bayesian latency models for LLM schedulers: from a step trace to what a server may promise",
    epilog="""\
examples:
  bayes-sched fit trace.jsonl --name h100
  bayes-sched sla results/h100 --slo-ms 50
  bayes-sched plan optimize --help

a shell completes it after: eval "$(bayes-sched --print-completion bash)"
""",
    add_options=_add_root_options,
    commands=(*COMMANDS, STUDY),
)
SCRIPTS = {one.script: one for one in (*COMMANDS, *STUDIES, ANALYZE_TRACE) if one.script}
"""What each file in ``scripts/`` stands for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``bayes-sched`` with its arguments, those of this process if None; return the exit status."""
    given = tuple(sys.argv[1:] if arguments is None else arguments)
    return _run(ROOT, given, Call(NAME, (NAME,), given), shown=str)


def run_script(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run what a file in ``scripts/`` stands for; it keeps its name in all that is said and recorded."""
    given = tuple(sys.argv[1:] if arguments is None else arguments)
    program = name.removesuffix(".py")
    command, call = SCRIPTS[name], Call(program, ("python", f"scripts/{name}"), given)
    if name == "fit_bayes.py" and "--pool" in given:
        command, program = POOL, f"{program} --pool"
        given = tuple(text for text in given if text != "--pool")
    return _run(command, given, call, shown=_as_scripts, prog=program)


def _as_scripts(text: str) -> str:
    """Name the files in ``scripts/`` where a text names subcommands."""

    def script(found: re.Match[str]) -> str:
        names = found[0].split()[1:]
        commands = STUDIES if names[0] == "study" else COMMANDS
        return next((f"python scripts/{one.script}" for one in commands if one.name == names[-1]), found[0])

    return re.sub(rf"{NAME} (study )?[\w-]+", script, text)


def _run(
    command: Command,
    arguments: tuple[str, ...],
    call: Call,
    *,
    shown: Callable[[str], str],
    prog: str | None = None,
) -> int:
    """Read and check the arguments, load the subcommand, run it; errors become one line and a status."""
    prog = prog or call.name
    while command.commands and arguments:
        chosen = next((one for one in command.commands if one.name == arguments[0]), None)
        if chosen is None:
            break
        command = replace(chosen, epilog=chosen.epilog or command.epilog)
        prog, arguments = f"{prog} {chosen.name}", arguments[1:]
    if call.words == (NAME,):
        call = Call(prog, call.words, call.arguments)
    try:
        parser = command.fill(Parser(prog=prog), shown)
        if command.commands:  # help, the version, or a subcommand that there is not
            parser.parse_args(arguments)
            parser.error("name a subcommand first")
        options = parser.parse_intermixed_args(arguments)
        options.kind = command.name
        if command.check is not None:
            command.check(options, call)
        status = _load(command)(options, call)
        sys.stdout.flush()
        return status
    except InputError as error:
        call.say(shown(str(error)))
        return BAD_INPUT
    except KeyboardInterrupt:
        call.say("interrupted; existing results are as they were")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _load(command: Command) -> Callable[[argparse.Namespace, Call], int]:
    """Import the module of a subcommand, which takes seconds."""
    with _waiting():
        module = importlib.import_module(f"bayes_sched.cli.{command.module or command.name}")
    logging.getLogger("pymc").setLevel(logging.WARNING)
    run: Callable[[argparse.Namespace, Call], int] = module.run
    return run


@contextmanager
def _waiting() -> Iterator[None]:
    """Say on a terminal that there is something to wait for."""
    if not sys.stderr.isatty():
        yield
        return
    sys.stderr.write("loading the libraries\r")
    sys.stderr.flush()
    yield
    sys.stderr.write("\x1b[K")
