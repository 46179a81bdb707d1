"""A comparison of models, and what their fits cost, as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayes_sched.checks.loo import ModelComparison
from bayes_sched.format import NONE, number, records
from bayes_sched.reports.terminal import text_table

LEGEND = """\
elpd: expected log predictive density, more is better. SE: standard error of the difference, steps
taken for independent; stretches: the same from 20 stretches of consecutive steps. k: Pareto k of a
step. weight: in the mixture of these models that would predict best. ESS: smallest bulk effective
sample size; gradients: leapfrog steps after warm-up. seconds: wall time of the whole fit, compiling
included; CPU s: over all processors."""


def comparison_text(found: ModelComparison, fits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return two tables, how well the models predict and what their fits cost, and what that means.

    Parameters
    ----------
    found : ModelComparison
    fits : mapping of str to mapping
        :func:`bayes_sched.benchmarking.fit_account` of each model's fit, with ``gradients``, ``seconds`` and
        ``cpu_seconds``.
    """
    return "\n\n".join([loo_text(found), cost_text(found, fits), LEGEND, found.text])


def loo_text(found: ModelComparison) -> str:
    """Return the models with their elpd and its differences, the best first."""
    limit = f"k > {next(iter(found.members.values())).max_k:.2g}"
    titles = ["model", "elpd", "difference", "SE", "stretches", "p_loo", limit, "weight"]
    rows = [
        [
            row["model"],
            f"{row['elpd']:,.1f}",
            f"{row['difference']:,.1f}",
            f"{row['difference_se']:,.1f}",
            NONE if row["difference_se_stretches"] is None else f"{row['difference_se_stretches']:,.1f}",
            f"{row['p_loo']:,.1f}",
            f"{row['num_unreliable']:,}",
            f"{row['weight']:.2f}",
        ]
        for row in records(found.table.reset_index())
    ]
    return text_table(titles, rows, right=set(titles[1:]))


def cost_text(found: ModelComparison, fits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the fits took, in the order of the models."""
    titles = ["model", "gate", "divergent", "ESS/1,000 gradients", "gradients", "seconds", "CPU s"]
    rows = []
    for name in map(str, found.table.index):
        fit = fits[name]
        rows.append(
            [
                name,
                "passed" if fit["gate_passed"] else "failed",
                f"{fit['divergences']:,}",
                number(fit["effective_per_1000_gradients"]),
                f"{fit['gradients']:,}",
                f"{fit['seconds']:,.1f}",
                f"{fit['cpu_seconds']:,.1f}",
            ]
        )
    return text_table(titles, rows, right=set(titles[2:]))
