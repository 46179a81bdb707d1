r"""Where the time of a step goes: the terms of the saturation equation, with credible intervals.

With :math:`g = 1 / ((1 - e^{-k_B B})(1 - e^{-k_S S}))`, the slowdown of a device that is not saturated,

.. math:: T = \tau_0 + \frac{w_0}{P} + \frac{w_1 S}{P} + (g - 1) \frac{w_0 + w_1 S}{P} + \tau_B B + \tau_S S .

Data tell some of these terms from each other only in sums (``w_1 S / P`` and ``tau_S S`` both grow with the
tokens), so the terms have wide intervals where the groups, which say what to do about it, have narrow ones.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.equation import PARAMETERS, inverse_saturation
from bayes_sched.fitted import FittedModel
from bayes_sched.prediction import thin
from bayes_sched.steps import steps_arrays

TOKENS, REQUESTS, FIXED, IDLE, REST = "tokens", "requests", "fixed cost", "unsaturated device", "other terms"
COLUMNS = (
    *("kind", "name", "group", "latency_ms", "latency_ms_lower", "latency_ms_upper"),
    *("share", "share_lower", "share_upper", "p_largest"),
)

_NEGLIGIBLE = 1e-9

type Floats = NDArray[np.float64]


def term_table(
    fit: FittedModel,
    batch_size: float,
    total_tokens: float,
    *,
    probability: float,
    max_draws: int | None,
) -> pd.DataFrame | None:
    """Return what each term of the equation adds to the mean latency of a step.

    Returns
    -------
    DataFrame or None
        ``kind`` (``group`` or ``term``), ``name``, ``group``, ``latency_ms`` and ``share`` (medians, each
        with ``_lower`` and ``_upper``), ``p_largest``: the probability that it is the largest of its kind.
        None where the model's parameters are not those of the equation.
    """
    draws = thin(fit.posterior, max_draws=max_draws)
    if any(p.name not in draws for p in PARAMETERS):
        return None
    par = {p.name: draws[p.name].to_numpy().ravel() for p in PARAMETERS}
    slowdown = inverse_saturation(batch_size, total_tokens, k_B=par["k_B"], k_S=par["k_S"])
    fixed_work, work = par["w_0"] / par["P_max"], par["w_1"] * total_tokens / par["P_max"]
    parts: dict[tuple[str, str], Floats] = {
        ("tau_0", FIXED): par["tau_0"],
        ("w_0 / P_max", FIXED): fixed_work,
        ("w_1 S / P_max", TOKENS): work,
        ("tau_S S", TOKENS): par["tau_S"] * total_tokens,
        ("slowdown of the work", IDLE): (slowdown - 1.0) * (fixed_work + work),
        ("tau_B B", REQUESTS): par["tau_B"] * batch_size,
    }
    steps = steps_arrays(batch_size, total_tokens)
    whole = fit.mean_latency(steps, max_draws=max_draws).to_numpy().ravel()
    rest = whole - sum(parts.values())
    if float(np.abs(rest / whole).max()) > _NEGLIGIBLE:
        parts[("other terms of the model", REST)] = rest
    groups: dict[tuple[str, str], Floats] = {}
    for (_, group), values in parts.items():
        groups[(group, group)] = groups.get((group, group), 0.0) + values
    rows = [*_rows("group", groups, whole, probability), *_rows("term", parts, whole, probability)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(
    kind: str, parts: dict[tuple[str, str], Floats], whole: Floats, probability: float
) -> list[tuple[object, ...]]:
    tail = 0.5 * (1.0 - probability)
    levels = [0.5, tail, 1.0 - tail]
    largest = np.argmax(np.stack(list(parts.values())), axis=0)
    rows = []
    for place, ((name, group), values) in enumerate(parts.items()):
        ms, share = np.quantile(values, levels), np.quantile(values / whole, levels)
        rows.append((kind, name, group, *ms.tolist(), *share.tolist(), float((largest == place).mean())))
    return rows
