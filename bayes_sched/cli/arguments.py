"""The members of a pool as a person names them: traces and fits, and the server that each is of."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from bayes_sched.cli import command
from bayes_sched.cli.command import DEFAULT
from bayes_sched.errors import InputError
from bayes_sched.files import POSTERIOR, fit_file, is_name
from bayes_sched.model.protocol import shipped_models
from bayes_sched.pooling.population import UNSEEN
from bayes_sched.sampling.nuts import SAMPLERS, SamplerSettings
from bayes_sched.trace.opening import expand_paths, result_name

SAMPLING = ("draws", "tune", "chains", "seed", "sampler")
"""Options that are fields of :class:`~bayes_sched.settings.SamplerSettings`."""
_FITTING = ("model", "noise", "min_latency_ms", "max_latency_ms", "max_bad_share", "max_rows", *SAMPLING)


def add_fit_options(made: argparse.ArgumentParser) -> None:
    """Add what fitting a trace takes, whatever the priors.

    Parameters
    ----------
    made : ArgumentParser
    """
    _add_model_options(made)
    _add_step_options(made)
    _add_sampling_options(made)


def _add_model_options(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("model").add_argument
    names = ", ".join(shipped_models())
    add("--model", default="saturation", help=f"{names}, or a .py file, which is run {DEFAULT}")
    add("--noise", metavar="OPTION", help="noise option of the model, such as constant (default: its first)")
    add("--probability", type=command.probability, default=0.9, metavar="P", help=f"of intervals {DEFAULT}")


def _add_step_options(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("steps").add_argument
    ms, rows = command.milliseconds, command.at_least(20)
    add("--min-latency-ms", type=ms, default=1.0, metavar="MS", help=f"remove shorter steps {DEFAULT}")
    add("--max-latency-ms", type=ms, default=300.0, metavar="MS", help=f"remove longer steps {DEFAULT}")
    add("--max-bad-share", type=command.share, default=0.05, metavar="X", help=f"of unusable lines {DEFAULT}")
    add("--max-rows", type=rows, default=20_000, metavar="N", help=f"use at most so many steps {DEFAULT}")


def _add_sampling_options(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("sampling").add_argument
    one, zero = command.at_least(1), command.at_least(0)
    add("--draws", type=one, metavar="N", help=f"draws kept of each chain {DEFAULT}")
    add("--tune", type=one, metavar="N", help=f"tuning draws of each chain, for each part {DEFAULT}")
    add("--chains", type=one, metavar="N", help=DEFAULT)
    add("--seed", type=zero, metavar="N", help=f"the same seed gives the same numbers {DEFAULT}")
    add("--sampler", choices=SAMPLERS, help=f"whose NUTS {DEFAULT}")
    made.set_defaults(**{name: getattr(SamplerSettings(), name) for name in SAMPLING})


def check_limits(options: argparse.Namespace) -> None:
    """Make sure that the cleaning can leave steps.

    Raises
    ------
    InputError
        The lower limit is not below the upper one.
    """
    if options.min_latency_ms >= options.max_latency_ms:
        raise InputError(
            f"--min-latency-ms {options.min_latency_ms:g} is not below --max-latency-ms "
            f"{options.max_latency_ms:g}: no step could stay"
        )


def check_model(model: str) -> None:
    """Make sure that there is such a model; its file is not run.

    Raises
    ------
    InputError
        It is neither the name of a shipped one nor a file.
    """
    if model not in shipped_models() and not Path(model).is_file():
        names = ", ".join(shipped_models())
        raise InputError(f"--model {model}: no such model; give one of {names} or the path of a .py file")


def settings_of(options: argparse.Namespace) -> SamplerSettings:
    """Return how long and with what to sample."""
    return SamplerSettings(**{name: getattr(options, name) for name in SAMPLING})


class FitArguments(TypedDict):
    """Arguments of :func:`bayes_sched.fit` that are options."""

    model: str
    noise: str | None
    min_latency_ms: float
    max_latency_ms: float
    settings: SamplerSettings
    max_rows: int


def fit_arguments(options: argparse.Namespace) -> FitArguments:
    """Return the options as arguments of :func:`bayes_sched.fit`."""
    return FitArguments(
        model=options.model,
        noise=options.noise,
        min_latency_ms=options.min_latency_ms,
        max_latency_ms=options.max_latency_ms,
        settings=settings_of(options),
        max_rows=options.max_rows,
    )


def fit_command(options: argparse.Namespace, traces: list[str]) -> str:
    """Return the command that fits one trace with these options and default priors."""
    parser = argparse.ArgumentParser(add_help=False)
    add_fit_options(parser)
    changed = [
        text
        for name in _FITTING
        if (value := getattr(options, name)) != parser.get_default(name)
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    names = [Path(trace).name for trace in traces]
    return shlex.join(["python", "scripts/fit_bayes.py", *names, *changed])


@dataclass(frozen=True)
class PoolMember:
    """One of a pool: a fit's file, or the files of a trace that is yet to be fitted.

    Attributes
    ----------
    name : str
        It names a result.
    fit_file : Path or None
    traces : tuple of str
        Empty where there is a fit.
    """

    name: str
    fit_file: Path | None = None
    traces: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> PoolMember:
        """Read a trace (file, pattern, ``NAME=FILE``) or the result of a fit (folder, its file).

        Raises
        ------
        InputError
            There is no such file, or its name cannot name a member.
        """
        name, sign, rest = text.partition("=")
        if not (sign and is_name(name)) or Path(text).exists():
            name, rest = "", text
        if Path(rest).is_dir() or rest.endswith(".nc"):
            file = fit_file(Path(rest))
            found = file.absolute()
            member = cls(name or (found.parent.name if found.name == POSTERIOR else found.stem), file)
        else:
            files = expand_paths(rest)[0]
            member = cls(name or result_name(files), traces=tuple(files))
        if not is_name(member.name):
            raise InputError(f"{text}: {member.name!r} cannot name a member; name it: NAME={rest}")
        return member

    @property
    def paths(self) -> set[Path]:
        """What it is read from."""
        given = self.traces if self.fit_file is None else (self.fit_file,)
        return {Path(path).resolve() for path in given}


def pool_members(texts: Sequence[str]) -> tuple[PoolMember, ...]:
    """Read the members of a pool; nothing of them is opened.

    Raises
    ------
    InputError
        One cannot be read, there is only one, or two are the same or have one name.
    """
    members = tuple(PoolMember.of(text) for text in texts)
    if len(members) < 2:
        raise InputError(f"{members[0].name}: one trace; a pool takes two or more")
    for number, member in enumerate(members):
        if member.name == UNSEEN:
            raise InputError(f"{UNSEEN!r} is the name of the server not yet seen: name the trace, NAME=FILE")
        for other in members[:number]:
            if member.paths & other.paths:
                raise InputError(f"{member.name}: the same trace twice; a pool takes each once")
            if member.name == other.name:
                raise InputError(f"two traces have the name {member.name}: tell them apart, NAME=FILE")
    return members


def named_label(text: str) -> tuple[str, str]:
    """Read ``NAME=LABEL``, for :mod:`argparse`."""
    name, sign, label = text.partition("=")
    if not (name and sign and label.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LABEL, such as h100-night=H100")
    return name, label.strip()


def pool_servers(given: Sequence[tuple[str, str]], members: Sequence[PoolMember]) -> dict[str, str]:
    """Return the servers that names and labels, as :func:`named_label` reads them, give to members.

    Raises
    ------
    InputError
        There is no member of a name, or it is given twice.
    """
    names = [member.name for member in members]
    found: dict[str, str] = {}
    for name, label in given:
        if name not in names:
            raise InputError(f"--server {name}: no such trace; the pool has {', '.join(names)}")
        if name in found:
            raise InputError(f"--server {name}: given twice")
        found[name] = label
    return found
