"""Whether bands hold what they promise."""

from __future__ import annotations

from matplotlib.figure import Figure

from bayes_sched.plots.style import GREY, figure_legend, label_outer, new_figure, styled
from bayes_sched.plots.validation_style import looks
from bayes_sched.scoring import LEVELS
from bayes_sched.validation import Validation

SHOWN = ("random", "rows-200", "budget")
"""Splits that are drawn, where the study has them."""


@styled
def band_calibration(found: Validation) -> Figure:
    """Draw the share of held-out steps inside each central band against the band's probability.

    How to read it: on the diagonal a model keeps its word. Below it, bands are too narrow and steps fall
    outside more often than promised; above it, they are wider than they need to be.
    """
    splits = [name for name in SHOWN if name in found.splits] or list(found.splits[:3])
    servers = found.servers
    figure, axes = new_figure(
        "Do bands hold as many unseen steps as they promise?",
        height_in=1.2 + 1.75 * len(servers) + 0.16 * len(found.models) / 2,
        rows=len(servers),
        columns=len(splits),
        sharex=True,
        sharey=True,
    )
    style = looks(found.models)
    promised = 1.0 - 2.0 * LEVELS[: len(LEVELS) // 2]
    for row, server in zip(axes, servers, strict=True):
        for ax, split in zip(row, splits, strict=True):
            ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
            for model in found.models:
                look = {**style[model], "marker": ""}
                ax.plot(promised, _held(found, server, split, model), label=model, **look)
            ax.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0), xticks=[0.0, 0.5, 1.0], yticks=[0.0, 0.5, 1.0])
            ax.set_title(f"{server}\n{split}" if ax is row[0] else f"\n{split}")
    label_outer(axes, xlabel="", ylabel="share of steps in it")
    axes[-1, len(splits) // 2].set_xlabel("probability of the central band")
    figure_legend(figure, axes[0, 0], columns=3)
    return figure


def _held(found: Validation, server: str, split: str, model: str) -> list[float]:
    """Return the share of steps inside the band from each level below a half to its counterpart."""
    below = [found.value(f"below_{level:g}", server=server, split=split, model=model) for level in LEVELS]
    return [below[-1 - number] - below[number] for number in range(len(LEVELS) // 2)]
