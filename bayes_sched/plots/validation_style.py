"""How the figures of a validation tell models apart, and the bins that they average over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.plots.points import Floats
from bayes_sched.plots.style import CYCLE

_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX*"


def looks(models: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return colour, line style and marker of each model: no two alike, also without colour."""
    return {
        model: {
            "color": CYCLE[number % len(CYCLE)],
            "linestyle": _DASHES[(number // 2) % len(_DASHES)],
            "marker": _MARKERS[number % len(_MARKERS)],
        }
        for number, model in enumerate(models)
    }


def log_bins(values: pd.Series[Any], *, num_bins: int) -> Floats:
    """Return edges of bins of even width on a logarithmic scale, the last above the largest value."""
    low, high = float(values.min()), float(values.max())
    edges: Floats = np.unique(np.geomspace(low, high * 1.001 + 1e-9, num_bins + 1))
    return edges
