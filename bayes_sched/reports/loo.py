"""A comparison of models by leave-one-out, and what their fits cost, as a document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bayes_sched.checks.loo import ModelComparison
from bayes_sched.format import NONE, count
from bayes_sched.reports import document as doc

_LEGEND = (
    "elpd: expected log predictive density, more is better. SE: standard error of the difference, steps "
    "taken for independent; stretches: the same from 20 stretches of consecutive steps. k: Pareto k of a "
    "step. weight: in the mixture of these models that would predict best."
)
_COSTS = (
    "ESS: smallest bulk effective sample size; gradients: leapfrog steps after warm-up. seconds: wall time "
    "of the whole fit, compiling included; CPU s: over all processors."
)
_ACCOUNT = (
    "gate_passed",
    "divergences",
    "effective_per_1000_gradients",
    "gradients",
    "seconds",
    "cpu_seconds",
)
_CAPTION = (
    "Further left is worse. The thin interval allows for steps that resemble their neighbours in time, the "
    "thick one takes them for independent. A hollow mark cannot be relied on."
)


@dataclass(frozen=True, eq=False)
class ComparedModels:
    """Models by leave-one-out, and the account of each one's fit.

    That is :func:`bayes_sched.studies.speed.fit_provenance`, with ``gradients`` and seconds.
    """

    comparison: ModelComparison
    fits: Mapping[str, Mapping[str, Any]]


@doc.report.register
def _(result: ComparedModels, *, command: str = "") -> doc.Document:
    found, fits = result.comparison, result.fits
    table = found.table.reset_index()
    costs = table[["model"]].join(
        pd.DataFrame.from_dict(dict(fits), orient="index")[list(_ACCOUNT)], on="model"
    )
    return doc.Document(
        title="Which model predicts best?",
        name="Models compared",
        subtitle=doc.made(f"leave-one-out over {found.num_steps:,} steps"),
        sections=(
            doc.Section("Leave-one-out", (_loo(found, table), doc.Text(_LEGEND))),
            doc.Section("Cost", (_costs(costs), doc.Text(_COSTS))),
            doc.figure("validation.model_differences", "How far behind the best model?", _CAPTION, found),
            doc.Text(" ".join(found.sentences), "lead"),
            doc.how_made(command, files=["summary.json"], frames=["models"]),
        ),
        numbers={**found.to_dict(), "fits": {name: _plain(account) for name, account in fits.items()}},
        frames={"models": table},
    )


def _loo(found: ModelComparison, table: pd.DataFrame) -> doc.Table:
    limit = f"k > {next(iter(found.members.values())).max_k:.2g}"
    columns = (
        doc.Column("model", "model"),
        doc.Column("elpd", "elpd", _tenths),
        doc.Column("difference", "difference", _tenths),
        doc.Column("difference_se", "SE", _tenths),
        doc.Column("difference_se_stretches", "stretches", _tenths),
        doc.Column("p_loo", "p_loo", _tenths),
        doc.Column("num_unreliable", limit, count),
        doc.Column("weight", "weight", "{:.2f}".format),
    )
    return doc.Table(table, columns)


def _costs(costs: pd.DataFrame) -> doc.Table:
    columns = (
        doc.Column("model", "model"),
        doc.Column("gate_passed", "gate", lambda passed: "passed" if passed else "failed"),
        *doc.titled(divergences="divergent", effective_per_1000_gradients="ESS/1,000 gradients"),
        *doc.titled(gradients="gradients"),
        doc.Column("seconds", "seconds", _tenths),
        doc.Column("cpu_seconds", "CPU s", _tenths),
    )
    return doc.Table(costs, columns, failed=[not passed for passed in costs["gate_passed"]])


def _tenths(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put None in the place of numbers that JSON cannot say."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
