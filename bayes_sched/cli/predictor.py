"""``bayes-sched predictor``: a fit compiled to a small file of tables that a scheduler can ask."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from bayes_sched.cli.command import DONE, Call, print_json
from bayes_sched.cli.progress import shown_progress
from bayes_sched.cli.questions import load_fit
from bayes_sched.predictor.compile import compile_predictor
from bayes_sched.predictor.predictor import Predictor


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    with shown_progress(call) as show:
        fit = load_fit(options)
        show("compiling (a minute or two)", None)
        predictor = compile_predictor(fit, allow_unconverged=options.allow_unconverged)
        predictor.save(options.output)
    call.warn(fit.load_warnings)
    if not predictor.converged:
        call.say("warning: this fit has not converged; the predictor is marked as such")
    found = account(predictor, options.output) | {"seconds": round(time.perf_counter() - start, 1)}
    if options.json:
        print_json(found)
    else:
        print(as_text(found))
    return DONE


def account(predictor: Predictor, path: Path) -> dict[str, Any]:
    """Return what a file of tables holds."""
    about = predictor.provenance
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "fit": about.name,
        "converged": about.converged,
        "num_draws": about.num_draws,
        "trace_sha256": about.trace_sha256,
        "max_batch_size": predictor.max_batch_size,
        "max_total_tokens": predictor.max_total_tokens,
        "region": about.region_text,
        "errors": dict(about.errors),
        "loads": list(about.loads),
        "drift": dict(about.drift),
    }


def as_text(found: dict[str, Any]) -> str:
    """Return the same for a terminal."""
    errors = found["errors"]
    integrated = "".join(
        f" Where {' and '.join(found['loads'])} are not given, 95 % of the sizes in the trace are within "
        f"{errors['integrated_mean']:.2%} (mean) and {errors['integrated_quantile']:.2%} (quantiles)."
        for _ in found["loads"][:1]
    )
    drift = found["drift"]
    replay = (
        drift and f"\nAn alarm is for drifts of more than {drift['tolerance']:.1%}; the trace raises none."
    )
    return (
        f"Saved {found['path']} ({found['bytes'] / 1e3:,.0f} kB) from {found['fit']}: "
        f"{found['num_draws']:,} draws, {found['seconds']:.1f} s\n"
        f"{found['region']} The tables reach {found['max_batch_size']:,.0f} requests and "
        f"{found['max_total_tokens']:,.0f} tokens.\n"
        f"Largest error inside the region: mean {errors['mean']:.2%}, quantiles 0.001 to 0.999 "
        f"{errors['quantile']:.2%}, P(T <= x) {errors['probability']:.4f}; relative error of a tail of "
        f"0.0001 or more {errors['tail']:.1%}.{integrated}{replay or ''}"
    )
