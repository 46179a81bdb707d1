"""The numbers of a report in one object, which the paragraph, the tables and the JSON file are made from."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.metadata import FitMetadata
from bayes_sched.misfit import Misfit, estimate_misfit
from bayes_sched.model import all_parameters
from bayes_sched.parameter_table import known_priors
from bayes_sched.plots.calibration import Calibration, calibrate
from bayes_sched.plots.effects import effect_table
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
    priors : DataFrame
        One row a parameter: ``parameter``, ``unit``, and of its prior ``low`` and ``high`` (central 95 %) and
        ``median``. Where a pool's took the place of the documented ones, as its draws have them, and
        the combinations that data identify with them.
    convergence : DataFrame
        One row a variable: ``variable``, ``kind``, ``r_hat``, ``ess_bulk``, ``ess_tail``, ``passed``.
    gate : dict
        ``num_divergences``, ``e_bfmi`` (a list, one a chain), ``num_draws``, ``num_gradients``.
    effects : DataFrame
        :func:`bayes_sched.plots.effect_table`; empty where the model has no effects.
    misfit : Misfit or None
        How much of the error a richer model would explain; None where there is no richer one.
    typical_load : str
        For what context the bands over (B, S) alone are, a sentence; empty where B and S say it all.
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
    priors: pd.DataFrame
    convergence: pd.DataFrame
    gate: dict[str, Any]
    effects: pd.DataFrame
    misfit: Misfit | None
    typical_load: str
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
        ``bayes_sched_version``, ``command``, ``created_at``, ``prior_from`` as in
        :class:`~bayes_sched.metadata.FitMetadata`;
        ``probability``, ``converged``, ``problems``, ``text``, ``warnings``; ``typical_steps``, ``costs``,
        ``coverage``, ``parameters``, ``convergence``, ``effects``: lists with one mapping a row of the tables
        above; ``gate``; ``misfit``: the fields of :class:`~bayes_sched.misfit.Misfit`, or None;
        ``typical_load``.
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
            "effects": records(self.effects),
            "misfit": None if self.misfit is None else dataclasses.asdict(self.misfit),
            "typical_load": self.typical_load,
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
    "prior_from",
)


def summary(fit: FittedModel, steps: pd.DataFrame, *, probability: float = DEFAULT_PROBABILITY) -> Summary:
    """Say what a fit found.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps, as :func:`~bayes_sched.report.write_report` takes them.
    probability : float
        Of every interval and band, between 0 and 1.

    Returns
    -------
    Summary

    Raises
    ------
    InputError
        There are no steps, they lack a column of the model, or the probability is not between 0 and 1.
    """
    steps = reported_steps(fit, steps)
    typical = typical_steps(steps)
    calibration = calibrate(fit, steps)
    parameters = fit.parameter_table(probability=probability)
    gate = fit.convergence
    table = step_table(fit, typical, probability=probability)
    costs = cost_table(fit, typical, probability=probability)
    unexplained = estimate_misfit(fit, steps)
    typical_load = fit.typical.text(fit.model.columns)
    spoken = paragraph(fit, table, costs, parameters, calibration, probability=probability)
    advice = unexplained.advice if unexplained is not None and fit.converged else ""
    return Summary(
        metadata=fit.metadata,
        probability=probability,
        converged=fit.converged,
        problems=fit.metadata.problems,
        table=table,
        costs=costs,
        coverage=calibration.coverage,
        parameters=parameters,
        priors=prior_table(fit),
        convergence=gate.table.rename_axis("variable").reset_index(),
        gate={
            "num_divergences": gate.num_divergences,
            "e_bfmi": [float(value) for value in gate.e_bfmi],
            "num_draws": gate.num_draws,
            "num_gradients": gate.num_gradients,
        },
        effects=effect_table(fit, steps, probability=probability),
        misfit=unexplained,
        typical_load=typical_load,
        sentences=tuple(filter(None, (*spoken, typical_load, advice))),
        notes=notes(fit, table, calibration),
        calibration=calibration,
    )


def prior_table(fit: FittedModel) -> pd.DataFrame:
    """Return what the prior allowed each parameter; columns of :attr:`Summary.priors`."""
    documented = fit.metadata.priors if fit.metadata.prior_from is None else None
    known: dict[str, Any] = dict(known_priors(fit.prior[list(fit.metadata.priors)], documented))
    units = {p.name: p.unit for p in all_parameters(fit.model, fit.metadata.noise)}
    if documented is None:
        combinations = fit.model.combinations(fit.prior)
        known |= known_priors(combinations, None)
        units |= {str(name): str(draws.attrs.get("unit", "")) for name, draws in combinations.items()}
    return pd.DataFrame(
        [
            {"parameter": name, "unit": units[name], "low": p.low, "high": p.high, "median": p.median}
            for name, p in known.items()
        ]
    )


def reported_steps(fit: FittedModel, steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps that a report is on: those that hold every column of the model.

    Raises
    ------
    InputError
        A column is missing, or there are no steps.
    """
    missing = [name for name in fit.model.columns if name not in steps]
    if missing:
        raise InputError(
            f"the steps have no {', '.join(missing)}: a report on a fit of the model {fit.model.name} is "
            "made from steps with every column that it needs"
        )
    steps = steps.dropna(subset=[*fit.model.columns])
    if steps.empty:
        raise InputError("there are no steps to report on")
    return steps
