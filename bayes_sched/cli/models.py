"""``bayes-sched models``: models compared on the same steps of a trace, and what their sampling costs."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bayes_sched.checks.loo import (
    ModelComparison,
    comparable_steps,
    compare_models,
    lacking_columns,
    leave_one_out,
)
from bayes_sched.cli.command import DONE, NOT_CONVERGED, Call, given, print_json, write_whole
from bayes_sched.cli.progress import Show, prefixed, shown_progress
from bayes_sched.files import whole_file
from bayes_sched.model.protocol import ModelFile, all_parameters, load_model, load_model_file, shipped_models
from bayes_sched.posterior.fit import fit
from bayes_sched.reports.document import report
from bayes_sched.reports.loo import ComparedModels
from bayes_sched.reports.plots.validation import model_differences
from bayes_sched.reports.terminal import terminal
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.speed import fit_provenance
from bayes_sched.trace.cleaning import clean_steps
from bayes_sched.trace.reader import read_trace


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    with shown_progress(call) as show:
        found, fits = compared(options, call, show)
        show("writing", None)
        write(options, found)
    document = report(ComparedModels(found, fits))
    if options.json:
        print_json(document.numbers)
    else:
        print(terminal(document))
        for path in filter(None, (options.csv, options.figure)):
            print(f"Saved {path}")
    for name, account in fits.items():
        call.warn(account["problems"], of=f"not converged: {name}")
    return DONE if all(account["gate_passed"] for account in fits.values()) else NOT_CONVERGED


def compared(
    options: argparse.Namespace, call: Call, show: Show
) -> tuple[ModelComparison, dict[str, dict[str, Any]]]:
    """Fit each model to the same steps, one after the other; keep what is compared and not the draws."""
    cleaned = cleaned_steps(options, call, show)
    members = [Member.of(name) for name in options.models or usable_models(cleaned, call)]
    columns = {one.name: tuple(one.file.model.columns) for one in members}
    steps = comparable_steps(cleaned, columns, max_rows=options.rows, seed=options.seed)
    call.say(f"{len(steps):,} of {len(cleaned):,} cleaned steps are compared on")
    settings = SamplerSettings(**given(options, "draws", "tune", "chains", "seed"))
    found, fits = {}, {}
    for number, one in enumerate(members, start=1):
        prefix = f"{one.name} ({number} of {len(members)})"
        start, cpu_start = time.perf_counter(), time.process_time()
        fitted = fit(
            steps,
            model=one.file,
            noise=one.noise,
            settings=settings,
            max_rows=len(steps),
            **given(options, "min_latency_ms", "max_latency_ms"),
            progress=prefixed(prefix, show),
        ).fit
        fits[one.name] = {
            **fit_provenance(fitted),
            "gradients": fitted.convergence.num_gradients,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
        }
        show(f"{prefix}: leaving out each step", None)
        found[one.name] = leave_one_out(fitted, steps)
    return compare_models(found), fits


@dataclass(frozen=True)
class Member:
    """A model with a noise option."""

    name: str
    file: ModelFile
    noise: str

    @classmethod
    def of(cls, name: str) -> Member:
        """Load a model and check its noise option."""
        path, _, noise = name.partition(":")
        loaded = load_model_file(path)
        noise = noise or loaded.model.noises[0]
        all_parameters(loaded.model, noise)  # refuses an option that the model does not have
        return cls(name, loaded, noise)


def cleaned_steps(options: argparse.Namespace, call: Call, show: Show) -> pd.DataFrame:
    """Read and clean the trace."""
    show("reading the trace", None)
    trace = read_trace(options.traces, progress=show)
    cleaned = clean_steps(trace.steps, **given(options, "min_latency_ms", "max_latency_ms"))
    call.warn((*trace.warnings, *cleaned.warnings))
    return cleaned.steps


def usable_models(steps: pd.DataFrame, call: Call) -> list[str]:
    """Return the names of the project's models that the steps have the columns for; say which they lack."""
    lacking = {name: lacking_columns(steps, load_model(name).columns) for name in shipped_models()}
    for name, columns in lacking.items():
        if columns:
            call.say(f"{name} left out: the trace lacks {', '.join(columns)}")
    return [name for name, columns in lacking.items() if not columns]


def write(options: argparse.Namespace, found: ModelComparison) -> None:
    """Write the files that were asked for, each whole or not at all."""
    if options.csv is not None:
        write_whole(options.csv, found.table.to_csv(float_format="%.6g"))
    if options.figure is not None:
        with whole_file(options.figure, what="the figure") as temporary:
            model_differences(found).savefig(temporary, format="png", dpi=144)
