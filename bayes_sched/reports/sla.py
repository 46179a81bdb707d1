"""What a server may promise, as a document."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from bayes_sched.files import SLA as JSON_NAME
from bayes_sched.format import NONE, chance, chances, count, number, percent, sentence, span, sureness
from bayes_sched.reports import document as doc
from bayes_sched.sla.request import RequestSLA
from bayes_sched.sla.steps import SLA, RiskMaps, StepSLA

_MAX_ROWS = 12

_UNCERTAINTIES = (
    "Two uncertainties are kept apart. *Risk* is what steps do: the share that takes longer than the limit."
    " *Confidence* is what we know: the posterior probability that this share is small enough. A limit is "
    "one of all steps up to it, at once."
)
_FRONTIER = (
    "For each number of requests, the most tokens of a step; each row is a promise of its own. Rows in red "
    "are contradicted by the trace: more of its own steps near the promise (from 0.8 times as many tokens "
    "on) are late than the promise can explain, so the model does not describe them. “Data” means that the "
    "trace holds no larger steps, so that more may be possible. The point estimate is the posterior median "
    "of the mean latency; where it stops, about half of the steps are late."
)
_MAP = (
    "Colours are the probability that a step keeps the limit, noise and parameters together. Stay below the "
    "solid line. Between it and the dashed one lie the steps that a single fitted curve allows and that are "
    "late too often. Hatched parts are extrapolation; a step cannot hold fewer tokens than requests."
)
_REQUESTS = (
    "The share of the requests that take longer than a time, on a logarithmic scale; the band is what we do "
    "not know of the server. Steps share its parameters; their noise is taken as independent."
)


@doc.report.register
def _(result: SLA, *, command: str = "") -> doc.Document:
    metadata, steps, request = result.fit.metadata, result.steps, result.request
    frames: dict[str, pd.DataFrame] = {}
    sections: list[doc.Item] = []
    if steps is not None:
        frames |= {"frontier": steps.frontier, **(result.maps.frames if result.maps else {})}
        sections.append(_steps(steps, result.maps))
    if request is not None:
        frames |= {"request_times": request.table, "request_steps": request.step_table}
        sections.append(_request(request, result.survival))
    can = "the promise can be made" if result.is_promised else "THE PROMISE CAN NOT BE MADE"
    outside = f"{result.fit.region.text} Nothing outside of it is promised unless that was asked for."
    return doc.Document(
        title=f"What {metadata.name} may promise",
        name=f"Promise: {metadata.name}",
        subtitle=doc.made(*doc.labelled(metadata.labels)),
        head=(
            doc.Text(can, "good" if result.is_promised else "bad", on="page"),
            *(doc.Text(reason, "error", on="page") for reason in result.refusals),
        ),
        sections=(
            *_leads(steps, request),
            *doc.beware(result.fit.cautions),
            doc.Text(f"{_UNCERTAINTIES} {outside}", on="page"),
            *sections,
            *(doc.Text(reason, on="terminal") for reason in result.refusals),
            doc.Text(f"The promise {'CAN' if result.is_promised else 'can NOT'} be made.", on="terminal"),
            doc.how_made(command, files=[JSON_NAME], frames=list(frames), end=result.fit.source_text),
        ),
        numbers={**result.to_dict(), "command": command},
        json_name=JSON_NAME,
        frames=frames,
    )


@doc.report.register(StepSLA)
@doc.report.register(RequestSLA)
def _(result: StepSLA | RequestSLA, *, command: str = "") -> doc.Document:
    """Report an answer alone, without the figures, which need the fit: :meth:`SLA.of`."""
    steps = result if isinstance(result, StepSLA) else None
    request = result if isinstance(result, RequestSLA) else None
    return doc.report(
        SLA(fit=result.fit, steps=steps, request=request, maps=None, survival={}), command=command
    )


def _leads(steps: StepSLA | None, request: RequestSLA | None) -> list[doc.Text]:
    """Return what is promised: a paragraph an answer on a page, one a sentence of it on a terminal."""
    answers = []
    if steps is not None:
        floor = [steps.floor_text] if steps.is_below_floor else []
        answers.append(
            [f"{sentence(steps.objective.text)}.", *floor, *(limit.text for limit in steps.limits)]
        )
    if request is not None:
        own = [request.own_text] if request.own else []
        answers.append([request.request_text, *(time.text for time in request.times), *own])
    return [
        *(doc.Text(" ".join(said), "lead", on="page") for said in answers),
        *(doc.Text(text, on="terminal") for said in answers for text in said),
    ]


def _steps(steps: StepSLA, maps: RiskMaps | None) -> doc.Section:
    frontier = steps.frontier
    notes = []
    if bool(frontier["extrapolation"].fillna(False).any()):
        notes.append("* extrapolation")
    if bool(frontier["is_contradicted"].fillna(False).any()):
        notes.append(
            "! contradicted: more of the trace's steps near it are late than the promise can explain"
        )
    shown: tuple[doc.Item, ...] = ()
    if not frontier.empty:
        shown = (
            doc.Text("Most tokens of a step with B requests:", on="terminal"),
            _frontier(steps),
            doc.Text("; ".join(notes), on="terminal"),
        )
    figures = () if maps is None else _step_figures(steps, maps)
    return doc.Section(
        "Steps",
        (_limits(steps), *figures, doc.Section("The frontier", (doc.Text(_FRONTIER, on="page"), *shown))),
    )


def _limits(steps: StepSLA) -> doc.Table:
    rows = [
        {
            "what": limit.name,
            "limit": name,
            "number": NONE if cap is None else f"{cap.number:,} {limit.unit}",
            "late": None if cap is None else 1.0 - cap.probability,
            "lower": None if cap is None else 1.0 - cap.upper,
            "upper": None if cap is None else 1.0 - cap.lower,
            "confidence": None if cap is None else cap.confidence,
            "extrapolation": None if cap is None else cap.extrapolation,
            "near_steps": None if cap is None else cap.evidence.num_steps,
            "near_late": None if cap is None else cap.evidence.late_share,
            "local": None if cap is None or cap.local is None else cap.local.verdict,
        }
        for limit in steps.limits
        for name, cap in (
            ("promised", limit.promised),
            ("asked", limit.asked),
            ("by the trace alone", limit.refuted),
            ("point estimate", limit.point),
        )
        if cap is not None or name in ("promised", "point estimate")
    ]
    return doc.Table(
        pd.DataFrame(rows).astype(object),
        (
            *doc.titled(what="what", limit="limit", number="number"),
            doc.Column("late", "late there", chance),
            doc.Column(("lower", "upper"), "credible", _known(chances)),
            doc.Column("confidence", "confidence", sureness),
            doc.Column("extrapolation", "extrapolation"),
            doc.Column("near_steps", "trace: steps near it", count),
            doc.Column("near_late", "of them late", _known(percent)),
            doc.Column("local", "the model there"),
        ),
        failed=[row["limit"] == "asked" and not steps.is_promised for row in rows],
        on="page",
    )


def _frontier(steps: StepSLA) -> doc.Table:
    return doc.Table(
        steps.frontier,
        (
            doc.Column("batch_size", "requests, B", short="B"),
            doc.Column(
                ("first_tokens", "last_tokens"), "tokens searched", lambda a, b: f"{a:,} to {b:,}", short=""
            ),
            doc.Column("total_tokens", "tokens promised", count, short=""),
            doc.Column(("total_tokens", "extrapolation"), "", _marked, short="promised"),
            doc.Column("limited_by", "limited by", short="limit"),
            doc.Column(("lower", "upper"), "within the limit", chances, short="within SLO"),
            doc.Column("confidence", "confidence", sureness),
            doc.Column("extrapolation", "extrapolation", short=""),
            doc.Column("near_steps", "trace: steps near it", count, short=""),
            doc.Column("near_late", "of them late", _known(percent), short=""),
            doc.Column(("near_late", "near_steps", "is_contradicted"), "", _seen, short="late in trace"),
            doc.Column("seen_tokens", "by the trace alone", count, short="trace alone"),
            doc.Column(("seen_late", "seen_steps"), "late near that", _late_of, short=""),
            doc.Column("point_tokens", "a point estimate allows", count, short="point allows"),
            doc.Column("point_breach", "late there", chance, short=""),
        ),
        failed=[bool(flag) for flag in steps.frontier["is_contradicted"].fillna(False)],
        max_rows=_MAX_ROWS,
    )


def _step_figures(steps: StepSLA, maps: RiskMaps) -> tuple[doc.Figure, ...]:
    band = f"{100 * steps.probability:g}%"
    decode = (
        "Above: the share of decode-only steps that take longer than the limit, on a logarithmic scale; the "
        f"band ({band} credible) is what we do not know of the server. Below: how sure one may be that no "
        "more than the allowed share is late. More data narrow the band; they do not lower the curve."
    )
    return (
        doc.figure("limits.promise_map", "Where the limit is kept", _MAP, steps, maps),
        doc.figure("limits.decode_promise", "Risk and confidence", decode, steps, maps),
    )


def _request(request: RequestSLA, survival: dict[str, pd.DataFrame]) -> doc.Section:
    rows = [time.to_dict() for time in request.times]
    frame = pd.DataFrame(rows).astype(object)
    share = f"{100 * request.times[0].quantile:g}%"
    ms = partial(number, digits=4)
    limit = _known(lambda value: f"{value:g}")
    may = {None: NONE, True: "yes", False: "NO"}.get
    times = doc.Table(
        frame,
        (
            doc.Column("name", "time", short=""),
            doc.Column("key", "", str.upper, short="ms"),
            doc.Column("median_ms", "half within (ms)", ms, short="median"),
            doc.Column("quantile_ms", f"{share} within (ms)", ms, short=share),
            doc.Column(
                ("quantile_lower_ms", "quantile_upper_ms"),
                "credible (ms)",
                partial(span, digits=4),
                short="credible",
            ),
            doc.Column("limit_ms", "limit (ms)", limit, short="limit"),
            doc.Column("probability", "kept by", chance),
            doc.Column(("lower", "upper"), "credible", _known(chances)),
            doc.Column("confidence", "confidence", sureness),
            doc.Column("is_kept", "may be promised", may, short="kept"),
        ),
        failed=[row["is_kept"] is False for row in rows],
    )
    steps = doc.Table(
        request.step_table,
        (
            *doc.titled(phase="phase", batch_size="requests, B", total_tokens="tokens, S", count="steps"),
            *doc.titled(extrapolation="extrapolation", verdict="the model there"),
            *doc.titled(seen_ms="median in the trace (ms)"),
        ),
        on="page",
    )
    legend = ", ".join(f"{time.key.upper()}: {time.name}" for time in request.times)
    times_figure = [
        doc.figure("limits.request_survival", "How long requests take", _REQUESTS, request, survival)
    ]
    outside = "EXTRAPOLATION: the trace holds no such steps as some of this request."
    return doc.Section(
        "Requests",
        (
            times,
            doc.Text(f"{legend}.", on="terminal"),
            *((doc.Text(outside, on="terminal"),) if bool(request.step_table["extrapolation"].any()) else ()),
            steps,
            *(times_figure if survival else ()),
        ),
    )


def _known(write: Any) -> Any:
    """Write values where the first is known, a dash where it is not."""
    return lambda value, *others: NONE if value is None else write(value, *others)


def _marked(tokens: int | None, extrapolation: bool | None) -> str:
    return count(tokens) + ("*" if extrapolation else "")


def _late_of(late: float | None, steps: int | None) -> str:
    return NONE if late is None or steps is None else f"{percent(late, 1)} of {steps:,}"


def _seen(late: float | None, steps: int | None, is_contradicted: bool | None) -> str:
    """Write how many steps of the trace near a promise are late, at least, and of how many."""
    if steps is None:
        return NONE
    return f"{'! ' if is_contradicted else ''}{_known(percent)(late)} of {steps:,}"
