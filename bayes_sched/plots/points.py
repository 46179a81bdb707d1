"""The observed steps as figures draw them: thinned, grouped, limited."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from bayes_sched.plots.style import INK

MAX_POINTS = 3000
"""More points than this add ink and no information; a random sample of them is drawn."""
_SEED = 20240501

Floats = NDArray[np.float64]


def sample_steps(steps: pd.DataFrame, max_rows: int = MAX_POINTS) -> pd.DataFrame:
    """Return at most `max_rows` steps, drawn at random and the same each time, in their order."""
    if len(steps) <= max_rows:
        return steps
    return steps.sample(max_rows, random_state=_SEED).sort_index()


def decode_only(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps in which every request has exactly one token."""
    return steps[steps["batch_size"] == steps["total_tokens"]]


def draw_points(axes: Axes, x: Any, y: Any, *, label: str | None = None, size: float = 5.0) -> None:
    """Draw observed steps as small translucent dots; a picture inside an SVG, which stays small so."""
    axes.scatter(
        x, y, s=size, color=INK, alpha=_alpha(len(x)), linewidths=0, rasterized=True, zorder=1.5, label=label
    )


def _alpha(num_points: int) -> float:
    return float(np.clip(150.0 / max(num_points, 1), 0.15, 0.6))


def log_grid(low: float, high: float, num: int) -> Floats:
    """Return distinct whole numbers from `low` to `high`, evenly spread on a logarithmic scale."""
    grid: Floats = np.unique(np.rint(np.geomspace(low, max(high, low), num))).astype(float)
    return grid


def limit_above(axes: Axes, values: Any, top: float, *, unit: str = "ms") -> None:
    """End the y axis at `top` and say in the corner how many observed values lie above it."""
    axes.set_ylim(0.0, top)
    above = int((np.asarray(values) > top).sum())
    if above:
        axes.annotate(
            f"{above:,} step{'s' if above > 1 else ''} above {top:.3g} {unit}",
            (0.02, 0.98),
            xycoords="axes fraction",
            va="top",
            fontsize=7.0,
        )
