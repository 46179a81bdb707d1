"""How the combinations that the data identify go together."""

from __future__ import annotations

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from bayes_sched.fitted import FittedModel
from bayes_sched.plots.draws import thin
from bayes_sched.plots.points import Floats
from bayes_sched.plots.style import BLUE, log_axis, new_figure, styled

_MAX_DRAWS = 1000
_DECADE = 15.0


@styled
def combination_pairs(fit: FittedModel) -> Figure:
    """Draw posterior draws of each pair of identified combinations.

    How to read it: a narrow diagonal means that the data know a sum or ratio of the two better than either;
    two clouds mean two explanations of the same data.

    Parameters
    ----------
    fit : FittedModel

    Returns
    -------
    Figure
    """
    combinations = fit.model.combinations(thin(fit.posterior, _MAX_DRAWS))
    names = list(combinations.data_vars)
    size = max(len(names) - 1, 1)
    figure, axes = new_figure(
        "Posterior draws of the combinations that the data identify",
        height_in=1.0 + 1.35 * size,
        rows=size,
        columns=size,
        sharex="col",
        sharey="row",
    )
    values = {name: np.ravel(combinations[name].transpose("chain", "draw")) for name in names}
    label = {name: f"{name} ({combinations[name].attrs['unit']})" for name in names}
    for row in range(size):
        for column in range(size):
            ax = axes[row, column]
            if column > row or row + 1 >= len(names):
                ax.set_visible(False)
                continue
            x, y = names[column], names[row + 1]
            ax.scatter(values[x], values[y], s=2.0, color=BLUE, alpha=0.25, linewidths=0, rasterized=True)
            for axis, name in ((ax.xaxis, x), (ax.yaxis, y)):
                _scale(axis, values[name])
            if row == size - 1:
                ax.set_xlabel(label[x], fontsize=8.0)
            if column == 0:
                ax.set_ylabel(label[y], fontsize=8.0)
    return figure


def _scale(axis: Axis, values: Floats) -> None:
    """Make an axis logarithmic where the draws span more than a decade."""
    if values.max() > _DECADE * values.min():
        log_axis(axis, sparse=True)
        axis.set_major_locator(LogLocator(numticks=3))
    else:
        axis.set_major_locator(MaxNLocator(3))
