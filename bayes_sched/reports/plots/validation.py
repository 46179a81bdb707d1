"""Which model predicts unseen steps best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.arrays import Floats
from bayes_sched.checks.scores import LEVELS, at_level
from bayes_sched.reports.plots.style import (
    CYCLE,
    GREY,
    VEIL,
    draw_points,
    figure_legend,
    label_outer,
    log_axis,
    new_figure,
    styled,
)
from bayes_sched.steps import regime, sample_steps
from bayes_sched.studies.prediction import HeldOut, Validation

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


_MIN_IN_BIN = 5
_NUM_ERROR_BINS = 10


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
    edges = log_bins(held.test[column], num_bins=_NUM_ERROR_BINS)
    groups = pd.Series(relative).groupby(np.digitize(held.test[column], edges) - 1)
    means = groups.mean()[groups.size() >= _MIN_IN_BIN]
    middle = np.sqrt(edges[:-1] * edges[1:])
    return pd.Series(means.to_numpy(), index=middle[means.index.to_numpy()])


_NUM_BINS = 14
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
