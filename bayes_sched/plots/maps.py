"""What maps over requests and tokens share: axes, the veil over extrapolation, dots for seen steps."""

from __future__ import annotations

from typing import Final

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from bayes_sched.plots.points import sample_steps
from bayes_sched.plots.style import VEIL, log_axis
from bayes_sched.steps import POSSIBLE

ORDER: Final = ("total_tokens", "batch_size")
"""Dims of a surface as matplotlib takes them: tokens upwards, requests to the right."""
X_LABEL: Final = "requests in the step, B"
Y_LABEL: Final = "tokens in the step, S"

_HATCH = "////"
_MAX_DOTS = 1500


def log_axes(ax: Axes) -> None:
    """Give both axes logarithmic scales."""
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)


def has_area(ax: Axes, surface: xr.DataArray, *, whose: str = "the trace holds") -> bool:
    """Return whether a surface has two sizes in each direction; if not, the axes say why they are empty."""
    if min(surface.shape) < 2:
        ax.text(0.5, 0.5, f"{whose} one B or one S only", transform=ax.transAxes, ha="center")
        return False
    return True


def draw_veil(ax: Axes, fine: xr.Dataset, is_extrapolation: xr.DataArray) -> None:
    """Hatch where data hold no such steps.

    Parameters
    ----------
    ax : Axes
    fine : Dataset, dims (batch_size, total_tokens)
        A fine grid made by :func:`bayes_sched.steps.steps_grid`.
    is_extrapolation : DataArray of bool, dims (batch_size, total_tokens)
        Where no such steps were seen.
    """
    hidden = is_extrapolation.astype(float).where(fine[POSSIBLE]).transpose(*ORDER)
    if min(hidden.shape) < 2 or not bool((hidden > 0.5).any()):
        return
    veil = ax.contourf(
        hidden["batch_size"],
        hidden["total_tokens"],
        hidden,
        levels=[0.5, 1.5],
        colors=[VEIL],
        alpha=0.6,
        hatches=[_HATCH],
    )
    veil.set_linewidth(0.0)


def veil_handle(label: str = "no such steps in the trace") -> Patch:
    """Return the veil's entry in a legend."""
    return Patch(facecolor=VEIL, hatch=_HATCH, linewidth=0.0, label=label)


def draw_seen(ax: Axes, steps: pd.DataFrame) -> None:
    """Dot the combinations of `batch_size` and `total_tokens` that `steps` holds."""
    cells = sample_steps(steps[["batch_size", "total_tokens"]].drop_duplicates(), _MAX_DOTS)
    ax.scatter(
        cells["batch_size"],
        cells["total_tokens"],
        s=1.5,
        color="black",
        alpha=0.6,
        linewidths=0,
        rasterized=True,
    )
