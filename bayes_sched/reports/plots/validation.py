"""Which model predicts unseen steps best."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.checks.scores import LEVELS
from bayes_sched.reports.plots.style import (
    CYCLE,
    GREY,
    VEIL,
    AxesGrid,
    draw_points,
    figure_legend,
    label_outer,
    log_axis,
    new_figure,
    styled,
)
from bayes_sched.steps import sample_steps
from bayes_sched.studies.prediction import EXTRAPOLATION, HeldOut, Validation

SHOWN = ("random", "rows-200", EXTRAPOLATION)
"""Splits whose bands are drawn, where the study has them."""
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX*"
_MAX_POINTS = 600


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


def _server_rows(found: Validation, title: str, *, each_in: float, **options: Any) -> tuple[Figure, AxesGrid]:
    """Return a figure with a row of panels a server, and room for a legend of the models."""
    height_in = 1.2 + each_in * len(found.servers) + 0.16 * len(found.models) / 2
    return new_figure(title, height_in=height_in, rows=len(found.servers), **options)


@styled
def score_overview(found: Validation) -> Figure:
    """Draw the CRPS of each model on each split.

    How to read it: further left is better, on a logarithmic axis; 2 is twice as bad as 1. It is in ms: models
    compare within a server and a split, not between them.
    """
    figure, axes = _server_rows(
        found,
        "How well are unseen steps predicted? Left is better",
        each_in=0.5 + 0.3 * len(found.splits),
        sharex=True,
    )
    style = looks(found.models)
    for ax, server in zip(axes[:, 0], found.servers, strict=True):
        splits, models = found.splits_of(server), found.models_of(server)
        places = range(len(splits))
        for number, model in enumerate(models):
            values = [found.value("crps_ms", server=server, split=split, model=model) for split in splits]
            shift = 0.5 * (number / max(len(models) - 1, 1) - 0.5)
            look = {**style[model], "linestyle": ""}
            ax.plot(values, [p + shift for p in places], markersize=4.5, label=model, **look)
        ax.set_yticks(places, splits)
        ax.set_ylim(len(splits) - 0.5, -0.5)
        ax.set_title(server)
        log_axis(ax.xaxis)
    axes[-1, 0].set_xlabel("CRPS (ms)")
    figure_legend(figure, axes[0, 0], columns=3)
    return figure


@styled
def band_calibration(found: Validation) -> Figure:
    """Draw the share of held-out steps inside each central band against the band's probability.

    How to read it: on the diagonal a model keeps its word. Below it, bands are too narrow and steps fall
    outside more often than promised; above it, they are wider than they need to be.
    """
    splits = [name for name in SHOWN if name in found.splits] or list(found.splits[:3])
    figure, axes = _server_rows(
        found,
        "Do bands hold as many unseen steps as they promise?",
        each_in=1.75,
        columns=len(splits),
        sharex=True,
        sharey=True,
    )
    style = looks(found.models)
    promised = 1.0 - 2.0 * LEVELS[: len(LEVELS) // 2]
    for row, server in zip(axes, found.servers, strict=True):
        for ax, split in zip(row, splits, strict=True):
            ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
            for model in found.models:
                held = found.band_shares(server=server, split=split, model=model)
                ax.plot(promised, held, label=model, **{**style[model], "marker": ""})
            ax.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0), xticks=[0.0, 0.5, 1.0], yticks=[0.0, 0.5, 1.0])
            ax.set_title(f"{server}\n{split}" if ax is row[0] else f"\n{split}")
    label_outer(axes, xlabel="", ylabel="share of steps in it")
    axes[-1, len(splits) // 2].set_xlabel("probability of the central band")
    figure_legend(figure, axes[0, 0], columns=3)
    return figure


@styled
def error_by_size(found: Validation, *, split: str) -> Figure:
    """Draw the mean absolute percentage error of the point predictions of a split against S and against B.

    How to read it: lower is better; a line that rises somewhere shows a size of steps that the model gets
    wrong. Both axes are logarithmic. Bins with fewer than five held-out steps are left out.
    """
    figure, axes = _server_rows(
        found,
        f"How far off are predictions, by the size of the step? (split {split})",
        each_in=1.9,
        columns=2,
        sharex="col",
        sharey="row",
    )
    style = looks(found.models)
    for row, server in zip(axes, found.servers, strict=True):
        for ax, column in zip(row, ("total_tokens", "batch_size"), strict=True):
            for held in (h for h in found.held_out if h.server == server and h.split == split):
                curve = held.errors[column]
                ax.plot(curve.index, 100.0 * curve, markersize=3.0, label=held.model, **style[held.model])
            log_axis(ax.xaxis, sparse=column == "total_tokens")
            log_axis(ax.yaxis)
        row[0].set_title(server)
    label_outer(axes, xlabel="", ylabel="mean absolute error (%)")
    axes[-1, 0].set_xlabel("tokens of the step, S")
    axes[-1, 1].set_xlabel("requests of the step, B")
    figure_legend(figure, axes[0, 0], columns=3)
    return figure


@styled
def extrapolation_bands(found: Validation) -> Figure:
    """Draw held-out steps with prefill of the largest budget against S, with each model's band.

    How to read it: dots are observed steps; right of the grey part no training step was as large. A model
    that extrapolates keeps its band on the dots there. Medians and bands are averages over the steps of
    narrow ranges of S, since steps of one S differ in B and context.
    """
    held_out = [held for held in found.held_out if held.split == EXTRAPOLATION]
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
    for held in held_out:
        row, column = models.index(held.model), servers.index(held.server)
        _draw_bands(axes[row, column], held, colour=colours[held.model])
        axes[row, column].set_title(held.model if row else f"{held.server}\n{held.model}")
    for ax in axes.flat:
        ax.set_visible(ax.has_data())
    label_outer(axes, xlabel="tokens of the step, S", ylabel="latency (ms)")
    return figure


def _draw_bands(ax: Axes, held: HeldOut, *, colour: str) -> None:
    """Draw one model; the axis ends where nearly all observed steps are shown."""
    assert held.seen is not None
    assert held.bands is not None
    shown = sample_steps(held.seen, _MAX_POINTS)
    draw_points(ax, shown["total_tokens"], shown["latency_ms"])
    tokens = held.bands["total_tokens"]
    ax.fill_between(tokens, held.bands["q0.05"], held.bands["q0.95"], color=colour, alpha=0.3, linewidth=0)
    ax.plot(tokens, held.bands["q0.5"], color=colour)
    ax.axvspan(0.0, held.max_train_tokens, color=VEIL, zorder=0.1)
    ax.axvline(held.max_train_tokens, color=GREY, linewidth=0.8)
    ax.set_xlim(0.0, 1.03 * float(held.seen["total_tokens"].max()))
    ax.set_ylim(0.0, 1.25 * float(held.seen["latency_ms"].quantile(0.995)))
