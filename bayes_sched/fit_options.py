"""The options of fitting that commands share: model, steps, sampling; all of them are checked at once."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TypedDict

from bayes_sched import command
from bayes_sched.command import DEFAULT
from bayes_sched.errors import InputError
from bayes_sched.model import shipped_models
from bayes_sched.settings import SAMPLERS, SamplerSettings

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
