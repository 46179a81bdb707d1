"""The numbers of a report in one object, which the paragraph, the tables and the JSON file are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.metadata import FitMetadata
from bayes_sched.plots.calibration import Calibration, calibrate
from bayes_sched.records import records
from bayes_sched.report.text import notes, paragraph
from bayes_sched.report.typical import cost_table, step_table, typical_steps

SUMMARY_VERSION = 1
"""Raised when a field of :meth:`Summary.to_dict` changes its meaning or goes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Summary:
    """What a fit says, in numbers and in words.

    Attributes
    ----------
    metadata : FitMetadata
    probability : float
        Of every interval and band.
    converged : bool
    problems : tuple of str
        What the convergence gate found.
    table : DataFrame
        What typical steps take; columns of :func:`bayes_sched.report.typical.step_table`.
    costs : DataFrame
        What one more request or token costs; columns of :func:`bayes_sched.report.typical.cost_table`.
    coverage : DataFrame
        Share of the observed steps inside predictive bands: ``steps``, ``num_steps``, ``probability``,
        ``coverage``.
    parameters : DataFrame
        :meth:`FittedModel.parameter_table`, one row a parameter or combination.
    convergence : DataFrame
        One row a variable: ``variable``, ``kind``, ``r_hat``, ``ess_bulk``, ``ess_tail``, ``passed``.
    gate : dict
        ``num_divergences``, ``e_bfmi`` (a list, one a chain), ``num_draws``, ``num_gradients``.
    sentences : tuple of str
        The plain-language paragraph.
    notes : tuple of str
        What to beware of; may be empty.
    calibration : Calibration
        The comparison of the observed steps with the predictive distribution.
    """

    metadata: FitMetadata
    probability: float
    converged: bool
    problems: tuple[str, ...]
    table: pd.DataFrame
    costs: pd.DataFrame
    coverage: pd.DataFrame
    parameters: pd.DataFrame
    convergence: pd.DataFrame
    gate: dict[str, Any]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    calibration: Calibration

    @property
    def text(self) -> str:
        """The paragraph, and one line for each warning after it."""
        return "\n".join([" ".join(self.sentences), *(f"Warning: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, ready for JSON; a missing number is None.

        Keys: ``summary_version``; ``name``, ``labels``, ``model``, ``noise``, ``trace_sha256``, ``traces``,
        ``rows``, ``cleaning``, ``bad_lines``, ``priors``, ``sampler``, ``timings_s``, ``package_versions``,
        ``bayes_sched_version``, ``command``, ``created_at`` as in :class:`~bayes_sched.metadata.FitMetadata`;
        ``probability``, ``converged``, ``problems``, ``text``, ``warnings``; ``typical_steps``, ``costs``,
        ``coverage``, ``parameters``, ``convergence``: lists with one mapping a row of the tables above;
        ``gate``.
        """
        metadata = self.metadata.to_attrs()
        described = {key: json.loads(str(metadata[key])) for key in metadata if key in _METADATA_KEYS}
        return {
            "summary_version": SUMMARY_VERSION,
            **described,
            "probability": self.probability,
            "converged": self.converged,
            "problems": list(self.problems),
            "text": " ".join(self.sentences),
            "warnings": list(self.notes),
            "typical_steps": records(self.table),
            "costs": records(self.costs),
            "coverage": records(self.coverage),
            "parameters": records(self.parameters),
            "convergence": records(self.convergence),
            "gate": self.gate,
        }


_METADATA_KEYS = (
    "name",
    "labels",
    "model",
    "noise",
    "trace_sha256",
    "traces",
    "rows",
    "cleaning",
    "bad_lines",
    "priors",
    "sampler",
    "timings_s",
    "package_versions",
    "bayes_sched_version",
    "command",
    "created_at",
)


def summary(fit: FittedModel, steps: pd.DataFrame, *, probability: float = DEFAULT_PROBABILITY) -> Summary:
    """Say what a fit found.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps: ``batch_size``, ``total_tokens``, ``latency_ms`` (ms).
    probability : float
        Of every interval and band, between 0 and 1.

    Returns
    -------
    Summary
    """
    typical = typical_steps(steps)
    calibration = calibrate(fit, steps)
    parameters = fit.parameter_table(probability=probability)
    gate = fit.convergence
    table = step_table(fit, typical, probability=probability)
    costs = cost_table(fit, typical, probability=probability)
    return Summary(
        metadata=fit.metadata,
        probability=probability,
        converged=fit.converged,
        problems=fit.metadata.problems,
        table=table,
        costs=costs,
        coverage=calibration.coverage,
        parameters=parameters,
        convergence=gate.table.rename_axis("variable").reset_index(),
        gate={
            "num_divergences": gate.num_divergences,
            "e_bfmi": [float(value) for value in gate.e_bfmi],
            "num_draws": gate.num_draws,
            "num_gradients": gate.num_gradients,
        },
        sentences=paragraph(fit, table, costs, parameters, calibration, probability=probability),
        notes=notes(fit, table, calibration),
        calibration=calibration,
    )
