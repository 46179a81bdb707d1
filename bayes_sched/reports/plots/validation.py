"""Models held against each other: which one predicts unseen steps best."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bayes_sched.checks.loo import ModelComparison
from bayes_sched.checks.scores import LEVELS
from bayes_sched.reports.plots import style
from bayes_sched.studies.prediction import EXTRAPOLATION, Validation

SHOWN = ("random", "rows-200", EXTRAPOLATION)
"""Splits whose bands are drawn, where the study has them."""
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX*"
_MAX_POINTS = 600
_HALF_WIDTH = 1.645  # standard errors to either side that make a 90 % interval


def looks(models: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return colour, line style and marker of each model: no two alike, also without colour."""
    dashes = [dash for dash in _DASHES for _ in range(2)]
    cycles = zip(models, cycle(style.CYCLE), cycle(dashes), cycle(_MARKERS), strict=False)
    return {model: {"color": c, "linestyle": dash, "marker": m} for model, c, dash, m in cycles}


def _server_rows(
    found: Validation, title: str, *, each_in: float, columns: int = 1, **share: Any
) -> tuple[Figure, style.AxesGrid]:
    """Return a figure with a row of panels a server, and room for a legend of the models."""
    head_in, number = 1.2 + 0.16 * len(found.models) / 2, columns * len(found.servers)
    return style.new_panels(title, number, head_in=head_in, each_in=each_in, columns=columns, **share)


@style.styled
def score_overview(found: Validation) -> Figure:
    """Draw the CRPS of each model on each split."""
    title = "How well are unseen steps predicted? Left is better"
    figure, axes = _server_rows(found, title, each_in=0.5 + 0.3 * len(found.splits), sharex=True)
    look_of = looks(found.models)
    for ax, server in zip(axes[:, 0], found.servers, strict=True):
        splits, models = found.splits_of(server), found.models_of(server)
        places = range(len(splits))
        for number, model in enumerate(models):
            values = [found.value("crps_ms", server=server, split=split, model=model) for split in splits]
            shift = 0.5 * (number / max(len(models) - 1, 1) - 0.5)
            look = {**look_of[model], "linestyle": ""}
            ax.plot(values, [p + shift for p in places], markersize=4.5, label=model, **look)
        ax.set_yticks(places, splits)
        ax.set(title=server, ylim=(len(splits) - 0.5, -0.5))
        style.log_axis(ax.xaxis)
    axes[-1, 0].set_xlabel("CRPS (ms)")
    return style.figure_legend(figure, axes[0, 0], columns=3)


@style.styled
def band_calibration(found: Validation) -> Figure:
    """Draw the share of held-out steps inside each central band against the band's probability."""
    splits = [name for name in SHOWN if name in found.splits] or list(found.splits[:3])
    title = "Do bands hold as many unseen steps as they promise?"
    figure, axes = _server_rows(found, title, each_in=1.75, columns=len(splits), **style.SHARED)
    look_of = looks(found.models)
    promised = 1.0 - 2.0 * LEVELS[: len(LEVELS) // 2]
    for row, server in zip(axes, found.servers, strict=True):
        for ax, split in zip(row, splits, strict=True):
            ax.plot([0, 1], [0, 1], color=style.GREY, linewidth=0.8)
            for model in found.models:
                held = found.band_shares(server=server, split=split, model=model)
                ax.plot(promised, held, label=model, **{**look_of[model], "marker": ""})
            ax.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0), xticks=[0.0, 0.5, 1.0], yticks=[0.0, 0.5, 1.0])
            ax.set_title(f"{server}\n{split}" if ax is row[0] else f"\n{split}")
    style.label_outer(axes, xlabel="", ylabel="share of steps in it")
    axes[-1, len(splits) // 2].set_xlabel("probability of the central band")
    return style.figure_legend(figure, axes[0, 0], columns=3)


@style.styled
def error_by_size(found: Validation, split: str) -> Figure:
    """Draw the mean absolute percentage error of the point predictions of a split against S and against B."""
    title = f"How far off are predictions, by the size of the step? (split {split})"
    figure, axes = _server_rows(found, title, each_in=1.9, columns=2, sharex="col", sharey="row")
    look_of = looks(found.models)
    for row, server in zip(axes, found.servers, strict=True):
        for ax, column in zip(row, ("total_tokens", "batch_size"), strict=True):
            for held in (h for h in found.held_out if h.server == server and h.split == split):
                curve = held.errors[column]
                ax.plot(curve.index, 100.0 * curve, markersize=3.0, label=held.model, **look_of[held.model])
            style.log_axis(ax.xaxis, sparse=column == "total_tokens")
            style.log_axis(ax.yaxis)
        row[0].set_title(server)
    style.label_outer(axes, xlabel="", ylabel="mean absolute error (%)")
    axes[-1, 0].set_xlabel("tokens of the step, S")
    axes[-1, 1].set_xlabel("requests of the step, B")
    return style.figure_legend(figure, axes[0, 0], columns=3)


@style.styled
def extrapolation_bands(found: Validation) -> Figure:
    """Draw held-out steps with prefill of the largest budget against S, with each model's band."""
    held_out = [held for held in found.held_out if held.split == EXTRAPOLATION]
    servers = [name for name in found.servers if any(held.server == name for held in held_out)]
    models = [name for name in found.models if any(held.model == name for held in held_out)]
    title = "Steps larger than any learned from: medians, 90% bands"
    same: Any = {"columns": len(servers), "sharex": "col", "sharey": "col"}
    figure, axes = style.new_figure(title, height_in=1.0 + 1.45 * len(models), rows=len(models), **same)
    look_of = looks(found.models)
    for held in held_out:
        row, column = models.index(held.model), servers.index(held.server)
        assert held.seen is not None
        assert held.bands is not None
        ax, colour = axes[row, column], look_of[held.model]["color"]
        style.draw_steps(ax, held.seen, "total_tokens", most=_MAX_POINTS)
        tokens = held.bands["total_tokens"]
        style.shade(ax, tokens, held.bands["q0.05"], held.bands["q0.95"], color=colour, alpha=0.3)
        ax.plot(tokens, held.bands["q0.5"], color=colour)
        ax.axvspan(0.0, held.max_train_tokens, color=style.VEIL, zorder=0.1)
        ax.axvline(held.max_train_tokens, color=style.GREY, linewidth=0.8)
        ax.set_xlim(0.0, 1.03 * float(held.seen["total_tokens"].max()))
        ax.set_ylim(0.0, 1.25 * float(held.seen["latency_ms"].quantile(0.995)))
        ax.set_title(held.model if row else f"{held.server}\n{held.model}")
    for ax in axes.flat:
        ax.set_visible(ax.has_data())
    style.label_outer(axes, xlabel="tokens of the step, S", ylabel="latency (ms)")
    return figure


@style.styled
def model_differences(found: ModelComparison) -> Figure:
    """Draw each model's elpd less that of the best model, with 90 % intervals."""
    table = found.table
    title = f"How far behind the best model? {found.num_steps:,} steps"
    figure, ax = style.new_axes(title, height_in=1.5 + 0.3 * len(table))
    places = np.arange(len(table))
    ax.axvline(0.0, color=style.GREY, linewidth=0.8)
    for column, width, label in (
        ("difference_se_stretches", 1.2, "90 %, stretches of steps"),
        ("difference_se", 3.6, "90 %, steps as if independent"),
    ):
        half = _HALF_WIDTH * table[column].fillna(0.0).to_numpy()
        middle = table["difference"].to_numpy()
        ax.hlines(places, middle - half, middle + half, color=style.BLUE, linewidth=width, label=label)
    for place, name in enumerate(map(str, table.index)):
        loo = found.members[name]
        face = style.BLUE if loo.reliable and loo.converged else "white"
        look: Any = {"color": style.BLUE, "markerfacecolor": face, "markersize": 6.0}
        ax.plot(found.value("difference", name), place, "o", **look)
    ax.plot([], [], "o", color=style.BLUE, markerfacecolor="white", label="cannot be relied on")
    ax.set_yticks(places, [str(name) for name in table.index])
    ax.set(xlabel="sum of log densities, less the best model's (nats)", ylim=(len(table) - 0.5, -0.5))
    return style.figure_legend(figure, ax)
