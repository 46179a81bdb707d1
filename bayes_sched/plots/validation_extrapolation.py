"""What models say of steps with more tokens than they have seen."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.plots.points import draw_points, sample_steps
from bayes_sched.plots.style import GREY, VEIL, label_outer, new_figure, styled
from bayes_sched.plots.validation_style import log_bins, looks
from bayes_sched.scoring import at_level
from bayes_sched.validation import HeldOut, Validation
from bayes_sched.validation.regimes import regime

_NUM_BINS = 14
_MIN_IN_BIN = 5
_MAX_POINTS = 600


@styled
def extrapolation_bands(found: Validation, *, split: str = "budget") -> Figure:
    """Draw held-out steps with prefill against S, with each model's median and 90 % band.

    How to read it: dots are observed steps; right of the grey part no training step was as large. A model
    that extrapolates keeps its band on the dots there. Medians and bands are averages over the steps of
    narrow ranges of S, since steps of one S differ in B and context.

    Parameters
    ----------
    found : Validation
    split : str
        One of ``found.splits``.
    """
    held_out = [held for held in found.held_out if held.split == split]
    servers = [name for name in found.servers if any(held.server == name for held in held_out)]
    models = [name for name in found.models if any(held.model == name for held in held_out)]
    figure, axes = new_figure(
        "Steps larger than any learned from: medians, 90% bands",
        height_in=1.0 + 1.45 * len(models),
        rows=len(models),
        columns=len(servers),
        sharex="col",
        sharey="col",
    )
    colours = {name: look["color"] for name, look in looks(found.models).items()}
    tops: dict[int, float] = {}
    for held in held_out:
        row, column = models.index(held.model), servers.index(held.server)
        top = _draw(axes[row, column], held, colour=colours[held.model])
        tops[column] = max(tops.get(column, 0.0), top)
        title = f"{held.server}\n{held.model}" if not row else held.model
        axes[row, column].set_title(title)
    for column, top in tops.items():
        axes[0, column].set_ylim(0.0, top)
        for ax in axes[:, column]:
            if not ax.has_data():
                ax.set_visible(False)
    label_outer(axes, xlabel="tokens of the step, S", ylabel="latency (ms)")
    return figure


def _draw(ax: Axes, held: HeldOut, *, colour: str) -> float:
    """Draw one model; return the end of the axis that shows the observed steps."""
    chosen = (regime(held.test) != "decode").to_numpy()
    test = held.test[chosen]
    shown = sample_steps(test, _MAX_POINTS)
    draw_points(ax, shown["total_tokens"], shown["latency_ms"])
    edges = log_bins(test["total_tokens"], num_bins=_NUM_BINS)
    quantiles = held.forecast.quantiles_ms[chosen]
    table = pd.DataFrame({f"q{level:g}": at_level(quantiles, level) for level in (0.05, 0.5, 0.95)})
    table["total_tokens"] = test["total_tokens"].to_numpy(np.float64)
    groups = table.groupby(np.digitize(table["total_tokens"], edges))
    means = groups.mean()[groups.size() >= _MIN_IN_BIN]
    ax.fill_between(
        means["total_tokens"], means["q0.05"], means["q0.95"], color=colour, alpha=0.3, linewidth=0
    )
    ax.plot(means["total_tokens"], means["q0.5"], color=colour)
    ax.axvspan(0.0, held.max_train_tokens, color=VEIL, zorder=0.1)
    ax.axvline(held.max_train_tokens, color=GREY, linewidth=0.8)
    ax.set_xlim(0.0, edges[-1] * 1.03)
    return 1.25 * float(test["latency_ms"].quantile(0.995))
