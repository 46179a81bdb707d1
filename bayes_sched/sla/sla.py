"""All that is promised of a server at once, with what its report shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.provenance import FitDescription
from bayes_sched.region import TOLERANCE
from bayes_sched.sla.limits import tried_numbers
from bayes_sched.sla.request import RequestSLA
from bayes_sched.sla.risk import risk_map, step_risk
from bayes_sched.sla.steps import StepSLA
from bayes_sched.steps import steps_arrays, steps_grid

_NUM_FINE = 160


@dataclass(frozen=True, kw_only=True, eq=False)
class SLA:
    """What a server may promise of its steps, of requests, or of both."""

    fit: FitDescription
    """What it was found with."""
    steps: StepSLA | None
    request: RequestSLA | None
    maps: RiskMaps | None
    """Risk and confidence over the range of the data, where the steps are to be shown."""
    survival: dict[str, pd.DataFrame]
    """By the key of each time of the request: :meth:`RequestTime.survival`; where it is to be shown."""

    @classmethod
    def of(
        cls, fit: FittedModel, steps: StepSLA | None, request: RequestSLA | None, *, is_drawn: bool = True
    ) -> SLA:
        """Join promises of one fit; `is_drawn` computes what the figures of its report need."""
        return cls(
            fit=fit.description,
            steps=steps,
            request=request,
            maps=RiskMaps.of(fit, steps) if steps is not None and is_drawn else None,
            survival={time.key: time.survival() for time in request.times} if request and is_drawn else {},
        )

    @property
    def is_promised(self) -> bool:
        """Whether everything that was asked for may be promised."""
        return all(answer.is_promised for answer in (self.steps, self.request) if answer is not None)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Reasons, besides the numbers, why nothing is promised."""
        answers = [answer for answer in (self.steps, self.request) if answer is not None]
        return tuple(dict.fromkeys(reason for answer in answers for reason in answer.refusals))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "fit": self.fit.metadata.name,
            "labels": dict(self.fit.metadata.labels),
            "converged": self.fit.metadata.converged,
            "warnings": list(self.fit.warnings),
            "region": self.fit.region.text,
            "is_promised": self.is_promised,
            "steps": None if self.steps is None else self.steps.to_dict(),
            "request": None if self.request is None else self.request.to_dict(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class RiskMaps:
    """Risk and confidence where the trace has steps."""

    surface: xr.Dataset
    """:func:`risk_map`."""
    veil: xr.Dataset
    """A finer grid: ``extrapolation`` and ``possible``."""
    decode_only: xr.Dataset
    """:func:`step_risk` of decode-only batches, and ``batch_size``."""

    @classmethod
    def of(cls, fit: FittedModel, sla: StepSLA) -> RiskMaps:
        """Compute them for a limit on steps."""
        surface = risk_map(fit, sla.objective, probability=sla.probability)
        sizes, tokens = (
            np.linspace(1.0, float(surface[name].max()), _NUM_FINE) for name in ("batch_size", "total_tokens")
        )
        fine = steps_grid(batch_size=sizes, total_tokens=np.union1d(sizes, tokens))
        largest = math.floor(math.exp(float(fit.region.corners[:, 0].max()) + TOLERANCE))
        numbers = tried_numbers(1, max(largest, sla.decode_only.last or 1))
        decodes = step_risk(fit, steps_arrays(numbers, numbers), sla.objective, probability=sla.probability)
        return cls(
            surface,
            fine.assign(extrapolation=fit.extrapolation(fine)),
            decodes.assign(batch_size=("step", numbers)),
        )

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """The maps as tables, of possible steps only."""
        flat = self.surface.stack(step=("batch_size", "total_tokens"))  # noqa: PD013, an xarray object
        possible = flat.isel(step=np.flatnonzero(flat["possible"].to_numpy())).drop_vars("possible")
        return {
            "probability_map": possible.reset_index("step").to_dataframe().reset_index(drop=True),
            "decode_only": self.decode_only.to_dataframe().reset_index(drop=True),
        }
