"""Where a compiled predictor comes from and how close its tables are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The account of a compiled predictor; it survives a round trip through JSON unchanged.

    Attributes
    ----------
    name : str
        Name of the fit.
    model, noise : str
        The model and its noise option.
    model_sha256 : str
        Digest of the model's file.
    labels : Mapping of str to str
        ``gpu`` and ``llm`` where they are known.
    traces : tuple of str
        Base names of the traces fitted.
    trace_sha256 : str
        One digest over all of them.
    rows_used : int
        Steps fitted.
    num_draws : int
        Posterior draws that went into the tables.
    converged : bool
        Whether the fit passed the convergence gate.
    fitted_at : str
        ISO 8601, UTC.
    bayes_sched_version : str
        The version that compiled it.
    region_text : str
        What the trace covers, in words.
    errors : Mapping of str to float
        Largest error of the tables against the same draws, measured inside the region: ``mean`` and
        ``quantile`` (relative, 0.001 to 0.999), ``probability`` (absolute), ``tail`` (relative error of the
        smaller tail, from 0.0001 on).
    """

    name: str
    model: str
    noise: str
    model_sha256: str
    labels: Mapping[str, str]
    traces: tuple[str, ...]
    trace_sha256: str
    rows_used: int
    num_draws: int
    converged: bool
    fitted_at: str
    bayes_sched_version: str
    region_text: str
    errors: Mapping[str, float]

    def to_json(self) -> str:
        """Return the account as JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """Return what :meth:`to_json` wrote, parsed.

        Raises
        ------
        ValueError
            A field is missing or not one of ours.
        """
        wanted = {field.name for field in dataclasses.fields(cls)}
        if set(values) != wanted or not isinstance(values["converged"], bool):
            raise ValueError("its description of the fit is damaged")
        return cls(**{**values, "traces": tuple(values["traces"])})
