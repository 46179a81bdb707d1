"""Which model predicts unseen steps best."""

from __future__ import annotations

from matplotlib.figure import Figure

from bayes_sched.plots.style import figure_legend, log_axis, new_figure, styled
from bayes_sched.plots.validation_style import looks
from bayes_sched.validation import Validation


@styled
def score_overview(found: Validation) -> Figure:
    """Draw the CRPS of each model on each split.

    How to read it: further left is better, on a logarithmic axis; 2 is twice as bad as 1. It is in ms: models
    compare within a server and a split, not between them.
    """
    figure, axes = new_figure(
        "How well are unseen steps predicted? Left is better",
        height_in=1.2 + len(found.servers) * (0.5 + 0.3 * len(found.splits)) + 0.16 * len(found.models) / 2,
        rows=len(found.servers),
        sharex=True,
    )
    style = looks(found.models)
    for ax, server in zip(axes[:, 0], found.servers, strict=True):
        splits, models = found.splits_of(server), found.models_of(server)
        places = range(len(splits))
        for number, model in enumerate(models):
            values = [found.value("crps_ms", server=server, split=split, model=model) for split in splits]
            look = {**style[model], "linestyle": ""}
            shift = 0.5 * (number / max(len(models) - 1, 1) - 0.5)
            ax.plot(values, [p + shift for p in places], markersize=4.5, label=model, **look)
        ax.set_yticks(places, splits)
        ax.set_ylim(len(splits) - 0.5, -0.5)
        ax.set_title(server)
        log_axis(ax.xaxis)
    axes[-1, 0].set_xlabel("CRPS (ms)")
    figure_legend(figure, axes[0, 0], columns=3)
    return figure
