r"""The saturation equation with attention, times partially pooled factors level by level.

``saturation_levels`` for traces that tell of the context. With prefill where the trace says so, S' tokens
(with the padding of ``saturation_staircase``), C context tokens and Q query-key pairs of prefill, factors
multiply

.. math::

    T_{sat}(B, S') + \begin{cases} \tau_C C & \text{decode only} \\
    \tau_P + \tau_R B + \tau_M C + \tau_Q Q & \text{with prefill.} \end{cases}

Parameters and priors of these terms are those of ``saturation_context`` and ``saturation_staircase``, all
others those of ``saturation_levels``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bayes_sched.model.protocol import load_model

STAIRCASE: Any = load_model("saturation_staircase")
LEVELS: Any = load_model("saturation_levels")


def _smooth(draws: Any, steps: Any) -> Any:
    work, rest = STAIRCASE.split(draws, steps)
    return work + rest


MODEL = replace(
    LEVELS,
    name="saturation_levels_context",
    title="saturation equation with attention times factors by level, Student-t noise by level",
    parameters=(*STAIRCASE.parameters[:-1], *LEVELS.parameters[-2:]),
    columns=STAIRCASE.columns,
    effects=tuple(replace(effect, by_size=False) for effect in LEVELS.effects),
    smooth=_smooth,
    linear=STAIRCASE.terms,
)
