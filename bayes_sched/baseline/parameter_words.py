"""The table of the parameters of a least-squares fit, with a verdict in words."""

from __future__ import annotations

import math

import pandas as pd

from bayes_sched.baseline.uncertainty import INFINITY, NOWHERE, RATIOS
from bayes_sched.equation import PARAMETERS, Parameter
from bayes_sched.numbers import percent

_RATIO_ROWS = (
    Parameter("a_0", "a_0", "saturated cost of the fixed work, w_0 / P_max", "ms", math.nan, math.nan),
    Parameter("a_1", "a_1", "saturated cost of a token's work, w_1 / P_max", "ms/token", math.nan, math.nan),
)


def parameter_rows(
    values: dict[str, float], standard_errors: dict[str, float], at_bound: dict[str, str]
) -> pd.DataFrame:
    """Return one row a parameter and ratio; the columns: `ThroughputSaturationModel.parameter_table`."""
    return pd.DataFrame(
        [
            {
                "name": p.name,
                "meaning": p.meaning,
                "unit": p.unit,
                "value": values[p.name],
                "standard_error": standard_errors[p.name],
                "at_bound": at_bound.get(p.name, ""),
                "low": p.low,
                "high": p.high,
                "verdict": _verdict(p, values[p.name], standard_errors[p.name], at_bound),
            }
            for p in (*PARAMETERS, *_RATIO_ROWS)
        ]
    )


def _verdict(parameter: Parameter, value: float, error: float, at_bound: dict[str, str]) -> str:
    bound = at_bound.get(RATIOS.get(parameter.name, parameter.name)) or (
        at_bound.get("P_max") if parameter.name in RATIOS else None
    )
    if bound == NOWHERE:
        return "the fit does not depend on it"
    if bound == INFINITY:
        return "at infinity: every step seen is saturated"
    if bound:
        return "at its bound 0"
    if math.isinf(error):
        is_scale = parameter.name in ("P_max", *RATIOS.values())
        return "only its ratio is known (a_0, a_1)" if is_scale else "the steps do not identify it"
    known = f"known to {percent(error / value, 1)}" if error < value else "its standard error exceeds it"
    if parameter.low <= value <= parameter.high or parameter.name in RATIOS:
        return known
    return f"{known}; outside the documented {parameter.low:g} - {parameter.high:g} {parameter.unit}"
