"""What the data taught: prior against posterior of each parameter."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.equation import Parameter
from bayes_sched.fitted import FittedModel
from bayes_sched.plots.draws import log10_density, parameters_of
from bayes_sched.plots.style import BLUE, GREY, figure_legend, log_axis, new_figure, styled


@styled
def prior_posterior(fit: FittedModel) -> Figure:
    """Draw the prior and the posterior density of each parameter.

    How to read it: where the two shapes are alike, the data say nothing about that parameter. The contraction
    is 1 minus the ratio of posterior to prior variance of the logarithm: 0 for nothing learnt, 1 for all.
    Each shape is scaled to its own peak.

    Parameters
    ----------
    fit : FittedModel

    Returns
    -------
    Figure
    """
    parameters = parameters_of(fit)
    rows = (len(parameters) + 1) // 2
    figure, axes = new_figure(
        "Prior against posterior of each parameter", height_in=0.9 + 1.25 * rows, rows=rows, columns=2
    )
    for ax, parameter in zip(axes.flat, parameters, strict=False):
        _draw(ax, fit, parameter)
    for ax in axes.flat[len(parameters) :]:
        ax.set_visible(False)
    figure_legend(figure, axes[0, 0])
    return figure


def _draw(ax: Axes, fit: FittedModel, parameter: Parameter) -> None:
    name = parameter.name
    for draws, colour, label in ((fit.prior[name], GREY, "prior"), (fit.posterior[name], BLUE, "posterior")):
        x, density = log10_density(draws)
        ax.fill_between(
            10.0**x,
            density / density.max(),
            color=colour,
            alpha=0.35,
            linewidth=1.2,
            edgecolor=colour,
            label=label,
        )
    low, high = (float(fit.prior[name].quantile(q)) for q in (0.001, 0.999))
    posterior = fit.posterior[name]
    ax.set_xlim(min(low, float(posterior.min())), max(high, float(posterior.max())))
    log_axis(ax.xaxis, sparse=True)
    ax.set(ylim=(0.0, 1.08), yticks=[], xlabel="(no unit)" if parameter.unit == "1" else parameter.unit)
    ax.set_title(f"${parameter.symbol}$   contraction {fit.contraction(name):.2f}")
    ax.spines["left"].set_visible(False)
