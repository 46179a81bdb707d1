"""Where predictions of unseen steps are off, by the size of the step."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bayes_sched.plots.style import figure_legend, label_outer, log_axis, new_figure, styled
from bayes_sched.plots.validation_style import log_bins, looks
from bayes_sched.validation import HeldOut, Validation

_MIN_IN_BIN = 5
_NUM_BINS = 10


@styled
def error_by_size(found: Validation, *, split: str) -> Figure:
    """Draw the mean absolute percentage error of the point predictions against S and against B.

    How to read it: lower is better; a line that rises somewhere shows a size of steps that the model gets
    wrong. Both axes are logarithmic. Bins with fewer than five held-out steps are left out.

    Parameters
    ----------
    found : Validation
    split : str
        One of ``found.splits``.
    """
    figure, axes = new_figure(
        f"How far off are predictions, by the size of the step? (split {split})",
        height_in=1.2 + 1.9 * len(found.servers) + 0.16 * len(found.models) / 2,
        rows=len(found.servers),
        columns=2,
        sharex="col",
        sharey="row",
    )
    style = looks(found.models)
    for row, server in zip(axes, found.servers, strict=True):
        for ax, column in zip(row, ("total_tokens", "batch_size"), strict=True):
            for held in (h for h in found.held_out if h.server == server and h.split == split):
                curve = _error_by(held, column)
                ax.plot(curve.index, 100.0 * curve, markersize=3.0, label=held.model, **style[held.model])
            log_axis(ax.xaxis, sparse=column == "total_tokens")
            log_axis(ax.yaxis)
        row[0].set_title(server)
    label_outer(axes, xlabel="", ylabel="mean absolute error (%)")
    axes[-1, 0].set_xlabel("tokens of the step, S")
    axes[-1, 1].set_xlabel("requests of the step, B")
    figure_legend(figure, axes[0, 0], columns=3)
    return figure


def _error_by(held: HeldOut, column: str) -> pd.Series[float]:
    """Return the mean absolute percentage error (a share) by the middle of each bin."""
    observed_ms = held.test["latency_ms"].to_numpy(np.float64)
    relative = np.abs(held.forecast.point_ms - observed_ms) / observed_ms
    edges = log_bins(held.test[column], num_bins=_NUM_BINS)
    groups = pd.Series(relative).groupby(np.digitize(held.test[column], edges) - 1)
    means = groups.mean()[groups.size() >= _MIN_IN_BIN]
    middle = np.sqrt(edges[:-1] * edges[1:])
    return pd.Series(means.to_numpy(), index=middle[means.index.to_numpy()])
