r"""The saturation equation with KV-cache usage, times partially pooled factors level by level.

``saturation_levels`` for traces that tell of the context no more than the share U of the KV cache in use.
With prefill where the trace says so, factors multiply

.. math::

    T_{sat}(B, S) + \begin{cases} \tau_U U & \text{decode only} \\
    \tau_P + \tau_R B + \tau_V U & \text{with prefill.} \end{cases}

tau_U and tau_V have the meaning and the priors of ``saturation_kv_cache``, all others those of
``saturation_levels``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from bayes_sched.arrays import Floats
from bayes_sched.model.protocol import load_model

KV_CACHE: Any = load_model("saturation_kv_cache")
LEVELS: Any = load_model("saturation_levels")
EFFECTS = tuple(replace(effect, by_size=False) for effect in LEVELS.effects)


def _smooth(draws: Any, steps: Any) -> Any:
    per_request = draws["tau_R"] * steps["batch_size"]
    return KV_CACHE.latency(draws, steps) + per_request * EFFECTS[-1].acts_on(steps)


def _linear(steps: pd.DataFrame) -> dict[str, Floats]:
    per_request = steps["batch_size"] * EFFECTS[-1].acts_on(steps)
    return {**KV_CACHE.terms(steps), "tau_R": per_request.to_numpy(float)}


MODEL = replace(
    LEVELS,
    name="saturation_levels_kv_cache",
    title="saturation equation with KV-cache usage times factors by level, Student-t noise by level",
    parameters=(*KV_CACHE.parameters, *LEVELS.parameters[-3:]),
    columns=KV_CACHE.columns,
    effects=EFFECTS,
    smooth=_smooth,
    linear=_linear,
)
