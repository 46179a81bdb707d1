"""Latency bands of several servers side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.comparison import Comparison
from bayes_sched.comparison.members import Member
from bayes_sched.comparison.shared_grid import FULL_STEP
from bayes_sched.plots.points import Floats, log_grid
from bayes_sched.plots.style import CYCLE, GREY, figure_legend, log_axis, new_figure, styled
from bayes_sched.steps import steps_arrays

_NUM_GRID = 60
_LINES = ("-", "--", "-.", ":")


@styled
def comparison_bands(comparison: Comparison) -> Figure:
    """Draw the latency of decode-only steps, and of steps with prefill, on each server.

    How to read it: the line is the mean latency; the band is where a step falls with the given probability.
    Where a server's trace holds no such steps its line is thin and its band ends.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    Figure
    """
    figure, axes = new_figure(
        "Latency of a step on each server, with the band that single steps fall into", height_in=6.2, rows=2
    )
    decode, mixed = axes[:, 0]
    requests = log_grid(*_range(comparison, "batch_size"), _NUM_GRID)
    b = _requests(comparison.steps)
    fewest, most = _range(comparison, "total_tokens")
    tokens = log_grid(max(float(b), fewest), most, _NUM_GRID)
    for number, member in enumerate(comparison.members):
        style = {"color": CYCLE[number % len(CYCLE)], "linestyle": _LINES[number % len(_LINES)]}
        _draw(decode, member, requests, steps_arrays(requests, requests), comparison.probability, style)
        _draw(mixed, member, tokens, steps_arrays(b, tokens), comparison.probability, style)
    decode.set_title("Decode-only steps (S = B)")
    decode.set(xlabel="decoding requests in the step, B = S", ylabel="latency (ms)", ylim=(0.0, None))
    mixed.set_title(f"Steps of {b:,} request{'' if b == 1 else 's'}, prefill included")
    mixed.set(xlabel="tokens in the step, S", ylabel="latency (ms)", ylim=(0.0, None))
    log_axis(mixed.xaxis)
    share = f"{100 * comparison.probability:g}%"
    decode.fill_between([], [], color=GREY, alpha=0.35, label=f"{share} of single steps fall here")
    decode.plot([], [], color=GREY, linewidth=0.7, label="thin: extrapolation")
    figure_legend(figure, decode)
    return figure


def _range(comparison: Comparison, name: str) -> tuple[float, float]:
    values = np.concatenate([member.fit.cells[name].to_numpy() for member in comparison.members])
    return float(values.min()), float(values.max())


def _requests(steps: pd.DataFrame) -> int:
    """Return the requests of the largest step that all traces cover."""
    full = steps[steps["step"] == FULL_STEP] if len(steps) else steps
    return int(full["batch_size"].iloc[0]) if len(full) else 1


def _draw(
    ax: Axes, member: Member, x: Floats, steps: xr.Dataset, probability: float, style: dict[str, str]
) -> None:
    band = member.fit.predictive_band(steps, probability=probability)
    mean = member.fit.mean_band(steps, probability=probability)["median"]
    is_seen = ~band["extrapolation"].to_numpy()
    ax.plot(x, mean, linewidth=0.7, alpha=0.8, **style)  # type: ignore[arg-type]
    ax.plot(x, mean.where(is_seen), linewidth=1.8, label=member.label, **style)  # type: ignore[arg-type]
    ax.fill_between(
        x,
        band["lower"].where(is_seen),
        band["upper"].where(is_seen),
        color=style["color"],
        alpha=0.25,
        linewidth=0.0,
    )
