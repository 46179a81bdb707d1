"""The figures of a promise, each with a heading and a caption that says how to read it."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from bayes_sched.plots import decode_promise, promise_map, request_survival
from bayes_sched.region import TOLERANCE
from bayes_sched.report.files import ReportFigure
from bayes_sched.sla import RequestSLA, StepSLA, step_risk
from bayes_sched.sla.search import tried_numbers
from bayes_sched.steps import steps_arrays


def decode_risk(steps: StepSLA) -> xr.Dataset:
    """Return risk and confidence of decode-only batches over the range of the data, dims (step,)."""
    largest = math.floor(math.exp(float(steps.fit.region.corners[:, 0].max()) + TOLERANCE))
    numbers = tried_numbers(1, max(largest, steps.decode_only.last or 1))
    batches = steps_arrays(numbers, numbers)
    risk = step_risk(steps.fit, batches, steps.objective, probability=steps.probability)
    return risk.assign(batch_size=("step", numbers))


def sla_figures(
    steps: StepSLA | None, request: RequestSLA | None, *, risk: xr.Dataset | None, decode: xr.Dataset | None
) -> tuple[ReportFigure, ...]:
    """Return the figures in the order of the page; none is drawn yet.

    Parameters
    ----------
    steps : StepSLA or None
    request : RequestSLA or None
    risk : Dataset or None
        :func:`bayes_sched.sla.risk.risk_map`, where there are steps.
    decode : Dataset or None
        :func:`decode_risk`, where there are steps.
    """
    figures: list[ReportFigure] = []
    if steps is not None and risk is not None and decode is not None:
        figures += [_map(steps, risk), _decode(steps, decode)]
    if request is not None:
        figures.append(_requests(request))
    return tuple(figures)


def _map(steps: StepSLA, risk: xr.Dataset) -> ReportFigure:
    return ReportFigure(
        "promise_map",
        "Where the limit is kept",
        "Colours are the probability that a step keeps the limit, noise and parameters together. Stay below "
        "the solid line. Between it and the dashed one lie the steps that a single fitted curve allows and "
        "that are late too often. Hatched parts are extrapolation; a step cannot hold fewer tokens "
        "than requests.",
        lambda: promise_map(steps, risk),
    )


def _decode(steps: StepSLA, decode: xr.Dataset) -> ReportFigure:
    band = f"{100 * steps.probability:g}%"
    return ReportFigure(
        "decode_promise",
        "Risk and confidence",
        "Above: the share of decode-only steps that take longer than the limit, on a logarithmic scale; the "
        f"band ({band} credible) is what we do not know of the server. Below: how sure one may be that no "
        "more than the allowed share is late. More data narrow the band; they do not lower the curve.",
        lambda: decode_promise(steps, decode),
    )


def _requests(request: RequestSLA) -> ReportFigure:
    return ReportFigure(
        "request_survival",
        "How long requests take",
        "The share of the requests that take longer than a time, on a logarithmic scale; the band is what we "
        "do not know of the server. Steps share its parameters; their noise is taken as independent.",
        lambda: request_survival(request),
    )


def risk_table(risk: xr.Dataset) -> xr.Dataset:
    """Return the map as it is written: possible steps only, dims (step,)."""
    flat = risk.stack(step=("batch_size", "total_tokens"))
    return flat.isel(step=np.flatnonzero(flat["possible"].to_numpy())).drop_vars("possible")
