"""What a fit says, as a document."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd

from bayes_sched.checks.calibration import MAX_MISCOVERAGE
from bayes_sched.checks.local import CONTRADICTED, WIDE
from bayes_sched.checks.summary import FitSummary
from bayes_sched.format import NONE, count, cut, listed, number, percent, records, span
from bayes_sched.posterior.diagnostics import PARTLY, WEAKLY
from bayes_sched.posterior.typical_steps import (
    FULL_PREFILL,
    LARGEST_DECODE,
    MEDIAN_DECODE,
    PER_REQUEST,
    PER_TOKEN,
)
from bayes_sched.reports import document as doc

_COST = (
    "What one more adds to the mean latency; the data identify these even where single parameters stay open."
)
_COMBINATIONS = (
    "What the data see of the parameters, whatever single ones they leave open. Compare servers by these."
)
_LEVELS = (
    "The levels of the departures from the equation are shown where they fail; all are in "
    "tables/convergence.csv."
)
_LOCAL = (
    "A bin is contradicted where, with 99% confidence, its median is off by more than 3%, fewer than 85% of "
    "its steps lie in their 90% band, or more than 2% above their 99% limit. What rests on such a bin is "
    "given as the trace has it, or said to be undecided."
)
_SEEN = (
    *doc.titled(verdict="verdict", seen_steps="such steps in the trace", seen_ms="their median (ms)"),
    doc.Column(("seen_lower_ms", "seen_upper_ms"), "their middle (ms)", span),
)
_PRIORS = (
    "From {}: what data identify of a server is as likely as these servers make it, and the rest, given "
    "that, as documented. The table shows what that allowed each parameter, and last the combinations; the "
    "documented ranges are not it."
)


@doc.report.register
def _(result: FitSummary, *, command: str = "") -> doc.Document:
    metadata = result.fit.metadata
    notes, sentences = notes_of(result), sentences_of(result)
    frames = {
        "parameters": result.parameters,
        "convergence": result.convergence,
        "typical_steps": result.table,
        "costs": result.costs,
        "coverage": result.coverage,
        "local": result.local.table,
        "latency_grid": result.grid,
        **({} if result.effects.empty else {"effects": result.effects}),
    }
    good = (doc.Text("converged", "good", on="page"),)
    model = f"model {metadata.model.name}, {metadata.noise} noise"
    return doc.Document(
        title=f"Latency of scheduler steps: {metadata.name}",
        name=f"Latency report: {metadata.name}",
        subtitle=doc.made(
            *doc.labelled(metadata.labels),
            model,
            at=metadata.created_at,
            version=metadata.bayes_sched_version,
        ),
        head=good if result.converged else doc.unconverged(result.problems),
        sections=(
            doc.Text(" ".join(sentences), "lead"),
            *doc.beware(notes),
            _costs(result),
            *_figures(result),
            doc.how_made(
                metadata.command or command, *_origin(result), files=["summary.json"], frames=list(frames)
            ),
        ),
        numbers=_numbers(result, " ".join(sentences), notes),
        frames=frames,
    )


def _numbers(result: FitSummary, text: str, notes: tuple[str, ...]) -> dict[str, Any]:
    """Return the summary's numbers with its words, in the order of the documented keys."""
    numbers: dict[str, Any] = {}
    for key, value in result.to_dict().items():
        numbers[key] = value
        if key == "problems":
            numbers |= {"text": text, "warnings": list(notes)}
    return numbers


def sentences_of(result: FitSummary) -> tuple[str, ...]:
    """Return the paragraph that a busy person can act on."""
    discrepancy = result.discrepancy
    advice = discrepancy.advice if discrepancy is not None and result.converged else ""
    spoken = (
        _measured(result),
        _trust(result),
        *_step_sentences(result.table, result.probability),
        *_cost_sentences(result.costs, result.probability),
        _open(result.parameters),
        f"The trace covers steps of up to {result.largest[0]:,} requests and {result.largest[1]:,} tokens; "
        "what lies outside is extrapolation and marked so.",
        result.typical_load,
        advice,
    )
    return tuple(filter(None, spoken))


def notes_of(result: FitSummary) -> tuple[str, ...]:
    """Return what to beware of: cleaning, rows left out, extrapolation, miscalibration."""
    rows = result.fit.metadata.rows
    found = list(result.fit.warnings)
    if rows.used < rows.cleaned and not any(f"{rows.used:,}" in text for text in found):
        found.append(f"{rows.used:,} of {rows.cleaned:,} cleaned steps were used for the fit")
    found += [
        f"the {row['step']} (B = {row['batch_size']:,}, S = {row['total_tokens']:,}) is an extrapolation"
        for row in records(result.table[result.table["extrapolation"]])
    ]
    return (*found, *((result.local.text,) if result.local.contradicted else ()))


def _measured(result: FitSummary) -> str:
    metadata = result.fit.metadata
    rows, labels = metadata.rows, metadata.labels
    of = f" of {labels['llm']}" if labels.get("llm") else ""
    on = f" on {labels['gpu']}" if labels.get("gpu") else ""
    out_of = "" if rows.used == rows.read else f", out of {rows.read:,} read"
    prior = f" Its prior is from {metadata.prior_from}." if metadata.prior_from else ""
    return f"Measured: {rows.used:,} scheduler steps{of}{on}{out_of} (result {metadata.name}).{prior}"


def _trust(result: FitSummary) -> str:
    probability = result.probability
    share = result.calibration.coverage_of(probability)
    held = f"{percent(share, 1)} of the observed steps lie in their {percent(probability)} band"
    if not result.converged:
        problem = result.problems[0] if result.problems else "see the convergence table"
        return f"The fit has NOT CONVERGED: {problem}. Do not act on the numbers below until it has; {held}."
    wrong, kinds = result.local.contradicted, len(result.local.bins)
    but = f" But its trace contradicts it in {len(wrong)} of {kinds} kinds of steps." if wrong else ""
    if abs(share - probability) > MAX_MISCOVERAGE:
        side = "narrow" if share < probability else "wide"
        return f"The fit converged, but its bands are too {side}: {held}; take them as approximate.{but}"
    return f"The fit converged and its bands hold{' on the whole' if but else ''}: {held}.{but}"


def _step_sentences(table: pd.DataFrame, probability: float) -> list[str]:
    rows = {row["step"]: row for row in records(table)}
    sentences = []
    if (row := rows.get(MEDIAN_DECODE)) is not None:
        band = _band(row, probability, words=" of such steps take")
        text = f"A decode step of {_requests(row)} (the median) takes {band}"
        if (largest := rows.get(LARGEST_DECODE)) is not None:
            text += f"; one of {largest['batch_size']:,}, the most seen, {_band(largest, probability)}"
        sentences.append(f"{text}.")
    if (row := rows.get(FULL_PREFILL)) is not None:
        text = f"A full prefill step ({row['total_tokens']:,} tokens, {_requests(row)}) takes "
        late = f", and 1 in 100 takes longer than {number(row['q99_ms'])} ms"
        sentences.append(f"{text}{_band(row, probability)}{'' if row['verdict'] == CONTRADICTED else late}.")
    if not sentences:
        row = records(table)[0]
        sentences.append(
            f"The {row['step']} ({row['total_tokens']:,} tokens) takes {_band(row, probability)}."
        )
    return sentences


def _band(row: Mapping[str, Any], probability: float, *, words: str = ":") -> str:
    """Write the band of a step, or the trace's own where the trace contradicts it."""
    if row["verdict"] == CONTRADICTED:
        seen = f"{percent(probability)} of its {row['seen_steps']:,} such steps"
        interval = span(row["seen_lower_ms"], row["seen_upper_ms"])
        says = f"the model, which says {number(row['median_ms'])} ms"
        return f"{number(row['seen_ms'])} ms in the trace ({seen}: {interval} ms), which CONTRADICTS {says}"
    interval = span(row["lower_ms"], row["upper_ms"])
    own = f", closer than that in the trace, {span(row['seen_lower_ms'], row['seen_upper_ms'])} ms"
    own = own if row["verdict"] == WIDE else ""
    return f"{number(row['median_ms'])} ms ({percent(probability)}{words} {interval} ms{own})"


def _requests(row: Mapping[str, Any]) -> str:
    return f"{row['batch_size']:,} request{'' if row['batch_size'] == 1 else 's'}"


def _cost_sentences(costs: pd.DataFrame, probability: float) -> list[str]:
    rows = {row["cost"]: row for row in records(costs)}
    told = {
        PER_REQUEST: (1.0, "one more decoding request adds"),
        PER_TOKEN: (100.0, "100 more prefill tokens add"),
    }
    contradicted = {name for name in rows if rows[name]["is_contradicted"]}
    wrong = [name for name in told if name in contradicted | {n for n in rows if rows[n]["extrapolation"]}]
    parts = [
        f"{words} {number(factor * rows[name]['median'])} ms "
        f"({span(factor * rows[name]['lower'], factor * rows[name]['upper'])})"
        for name, (factor, words) in told.items()
        if name in rows and name not in wrong
    ]
    brackets = f"{percent(probability)} credible intervals in brackets"
    said = [f"On average, {' and '.join(parts)}; {brackets}."] if parts else []
    if wrong:
        why = "the trace contradicts the model" if contradicted else "the trace holds no such steps"
        said.append(f"What {' or '.join(wrong)} adds is undecided: {why} there.")
    return said


def _open(parameters: pd.DataFrame) -> str:
    documented = parameters[parameters["kind"] == "parameter"].set_index("name")["contraction"]
    nothing = documented.index[documented < WEAKLY].tolist()
    little = documented.index[documented.between(WEAKLY, PARTLY, inclusive="left")].tolist()
    parts = [f"{listed(nothing)} stay as wide as their priors"] if nothing else []
    if little:
        parts.append(f"{listed(little)} {'is' if len(little) == 1 else 'are'} only weakly identified")
    if not parts:
        return "The data identify every parameter of the equation at least partly."
    return (
        f"The data leave open single parameters ({'; '.join(parts)}): compare servers by latencies and by "
        "the identified combinations, not by these."
    )


def _costs(result: FitSummary) -> doc.Section:
    share = percent(result.probability)
    steps = doc.Table(
        result.table,
        (
            *doc.titled(step="step", batch_size="B", total_tokens="S", median_ms="median (ms)"),
            doc.Column(("lower_ms", "upper_ms"), f"{share} of steps (ms)", span),
            doc.Column("q99_ms", "99th percentile (ms)"),
            doc.Column(("mean_lower_ms", "mean_upper_ms"), f"mean, {share} credible (ms)", span),
            doc.Column("extrapolation", "extrapolation"),
            *_SEEN,
        ),
        failed=[verdict == CONTRADICTED for verdict in result.table["verdict"]],
        on="page",
    )
    costs = doc.Table(
        result.costs,
        (
            *doc.titled(cost="cost", at="at", median="median"),
            doc.Column(("lower", "upper"), f"{share} interval", span),
            *doc.titled(unit="unit", is_contradicted="trace contradicts it", extrapolation="extrapolation"),
        ),
        failed=[bool(flag) for flag in result.costs["is_contradicted"]],
        on="page",
    )
    return doc.Section(
        "What steps take and cost",
        (steps, *((doc.Text(_COST, on="page"), costs) if len(result.costs) else ())),
    )


def _figures(result: FitSummary) -> tuple[doc.Item, ...]:
    """Return the sections with figures, and the tables that belong to them."""
    share, figures = percent(result.probability), _captioned(result)

    def drawn(*names: str) -> list[doc.Item]:
        return [figures[name] for name in names] if result.views else []

    effects: list[doc.Item] = []
    if not result.effects.empty:
        effects = [
            *drawn("effect_factors"),
            doc.Details("Factors of the levels that have steps", (_effects(result),)),
        ]
    richer: list[doc.Item] = []
    if result.discrepancy:
        text = doc.Text(result.discrepancy.text, on="page")
        richer.append(doc.Section("Would a richer model predict better?", (text,)))
    reading = (
        f"Interval: {share} credible, equal tails. Contraction compares posterior with prior: 1 means that "
        "all was learnt from the data, 0 nothing."
    )
    return (
        doc.Section("Latency bands", (*drawn("latency_by_tokens", "latency_by_batch", "latency_contours"),)),
        doc.Section(
            "Does the model fit?",
            (
                doc.Text(f"{result.local.text} {_LOCAL}", on="page"),
                *_local(result),
                *drawn("local_check", "posterior_predictive_check", "residuals"),
                *effects,
            ),
        ),
        *richer,
        doc.Section(
            "Parameters",
            (
                doc.Text(reading, on="page"),
                _parameters(result, combinations=False),
                doc.Section(
                    "Identified combinations",
                    (doc.Text(_COMBINATIONS, on="page"), _parameters(result, combinations=True)),
                ),
                _short_parameters(result),
                *drawn("prior_posterior", "combination_pairs"),
            ),
        ),
        doc.Section("Convergence", (*_gate(result), *drawn("ranks", "prior_predictive"))),
    )


def _captioned(result: FitSummary) -> dict[str, doc.Figure]:
    share = percent(result.probability)
    load = f" {result.typical_load}" if result.typical_load else ""
    prior = result.fit.metadata.prior_from
    figures = (
        doc.figure(
            "fit.latency_by_tokens",
            "Latency against tokens",
            f"The light band is where {share} of the steps fall; the dark one is where the mean latency "
            f"lies, with {share} certainty. Dots are observed steps with about that many requests. Hatched "
            f"parts are extrapolation.{load}",
            result,
        ),
        doc.figure(
            "fit.latency_by_batch",
            "Latency of decode-only steps",
            "Every request of these steps decodes one token, so B = S. The slope is what one more "
            f"decoding request costs all of them. Bands and dots as above.{load}",
            result,
        ),
        doc.figure(
            "fit.latency_contours",
            "Latency over requests and tokens",
            "Steps along a line take equally long. To keep a promise, stay on the near side of its line "
            "in the lower panel. Dots are steps of the trace; hatched parts are extrapolation. A step "
            f"cannot hold fewer tokens than requests.{load}",
            result,
        ),
        doc.figure(
            "fit.local_check",
            "Where the fit is right",
            f"Each mark is a bin of steps that are alike. Grey: the fitted median and {share} band of the "
            f"typical step in it. Coloured: the median of its steps, and where {share} of them lie; red "
            "where the trace contradicts the fit, pale where too few steps tell.",
            result,
        ),
        doc.figure(
            "fit.posterior_predictive_check",
            "Do the bands hold?",
            f"{result.calibration.text} Above, a line inside the grey band means that the predicted "
            "probabilities are right; in long traces look at its size more than at the grey band. Below, "
            "each dot should lie on the dashed line of its colour. These are the steps of the fit itself.",
            result,
        ),
        doc.figure(
            "fit.residuals",
            "What the equation does not explain",
            "The blue line is the running median of observed minus mean latency and should stay near "
            "zero; the band holds the middle 90% of the steps. Left in ms, right in units of the "
            "predicted noise, where the band should be equally wide everywhere.",
            result,
        ),
        doc.figure(
            "fit.effect_factors",
            "How far latencies depart from the equation",
            "A factor of 1.1 makes the part of the latency that it multiplies 10% longer than the equation "
            "says; the model's documentation names that part. A level is as wide as the values it holds. "
            "Blue ones have steps in the trace; of grey ones nothing was seen, and how far they may depart "
            "is what other levels were seen to do. Mind that each panel has its own scale.",
            result,
        ),
        doc.figure(
            "fit.prior_posterior",
            "What the data taught about each parameter",
            "Where the blue posterior looks like the grey prior, the data say nothing about that "
            "parameter. A contraction of 1 means that all was learnt from the data, 0 nothing. "
            "Logarithmic axes; each shape is scaled to its own peak.",
            result,
        ),
        doc.figure(
            "fit.combination_pairs",
            "Combinations that the data identify",
            "Posterior draws, pair by pair. A narrow diagonal: the two trade off against each other. Two "
            "clouds: two explanations of the same trace.",
            result,
        ),
        doc.figure(
            "fit.ranks",
            "Do the chains agree?",
            "For each parameter and sampled coordinate, how the ranks of each chain's draws among all "
            "draws deviate from even. Lines inside the grey band: the chains explored the same distribution.",
            result,
        ),
        doc.figure(
            "fit.prior_predictive",
            "What the priors allowed",
            f"Latencies by the prior alone, which is from {prior}. Observed ones should lie inside; where "
            "they do not, this server is unlike those of the pool."
            if prior is not None
            else "Latencies by the priors alone. They should cover the observed ones generously and leave "
            "the rest to the data.",
            result,
        ),
    )
    return {one.name: one for one in figures}


def _local(result: FitSummary) -> tuple[doc.Item, ...]:
    """Return the check of each bin; on a terminal of those that the trace contradicts."""
    table, share = result.local.table, percent(result.probability)
    if table.empty:
        return ()
    columns = (
        doc.Column("kind", "steps"),
        doc.Column(("first_requests", "last_requests"), "requests", _range),
        doc.Column(("first_tokens", "last_tokens"), "tokens", _range),
        doc.Column("num_steps", "number"),
        doc.Column("observed_ms", "observed (ms)", short="seen ms"),
        doc.Column("fitted_ms", "fitted (ms)", short="fitted ms"),
        doc.Column("error", "error", _signed),
        doc.Column(("error_lower", "error_upper"), "99% interval", _signed_span, short=""),
        doc.Column("coverage", f"in {share} band", _percents, short="in band"),
        doc.Column(("coverage_lower", "coverage_upper"), "99% interval", _percents, short=""),
        doc.Column("late", "above 99% limit", _percents, short=">99%"),
        doc.Column(("late_lower", "late_upper"), "99% interval", _percents, short=""),
        doc.Column("verdict", "verdict", short=""),
    )
    wrong = table["verdict"] == CONTRADICTED
    lead = f"The trace contradicts the fit in {wrong.sum()} of {len(table)} kinds of steps:"
    shown = (doc.Text(lead, on="terminal"), doc.Table(table[wrong], columns, on="terminal", max_rows=12))
    page = doc.Table(table, columns, failed=wrong.tolist(), on="page")
    return (page, *(shown if wrong.any() else ()))


def _range(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _signed(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:+.1f}%"


def _signed_span(lower: float | None, upper: float | None) -> str:
    return NONE if lower is None or upper is None else f"{_signed(lower)} to {_signed(upper)}"


def _percents(*shares: float) -> str:
    return " to ".join(percent(share, 1) for share in shares)


def _parameters(result: FitSummary, *, combinations: bool) -> doc.Table:
    table = result.parameters
    return doc.Table(
        table[(table["kind"] == "combination") == combinations],
        (
            *doc.titled(name="name", meaning="meaning", unit="unit", mean="mean", median="median"),
            doc.Column(("lower", "upper"), f"{percent(result.probability)} interval", span),
            doc.Column("ess_bulk", "ESS bulk", count),
            doc.Column("ess_tail", "ESS tail", count),
            doc.Column("r_hat", "R-hat", partial(_fixed, digits=4)),
            doc.Column("contraction", "contraction", partial(_fixed, digits=2)),
            doc.Column("verdict", "verdict"),
        ),
        on="page",
    )


def _short_parameters(result: FitSummary) -> doc.Table:
    """Return parameters, noise parameters and combinations for a terminal, an empty line between them."""
    kinds = [rows for _, rows in result.parameters.groupby("kind", sort=False)]
    return doc.Table(
        result.parameters,
        (
            doc.Column("name", "name"),
            doc.Column("median", "median", _lined_up),
            doc.Column(
                ("lower", "upper"),
                f"{100 * result.probability:g}% interval",
                lambda low, high: f"{_lined_up(low)} to {_lined_up(high)}",
            ),
            doc.Column("unit", "unit", lambda unit: cut("" if unit == "1" else str(unit), 22)),
            doc.Column("contraction", "contraction", partial(_fixed, digits=2)),
            doc.Column(
                ("ess_bulk", "ess_tail"), "ESS", lambda *sizes: NONE if None in sizes else count(min(sizes))
            ),
            doc.Column("r_hat", "R-hat", partial(_fixed, digits=3)),
        ),
        on="terminal",
        blocks=tuple(len(rows) for rows in kinds),
    )


def _effects(result: FitSummary) -> doc.Table:
    effects = result.effects
    return doc.Table(
        effects[effects["num_steps"] > 0],
        (
            doc.Column("meaning", "steps", lambda text: str(text).removeprefix("log factors ")),
            *doc.titled(level="level", num_steps="number of steps", median="factor"),
            doc.Column(("lower", "upper"), f"{percent(result.probability)} interval", span),
        ),
    )


def _gate(result: FitSummary) -> tuple[doc.Item, ...]:
    """Return the gate's numbers; of the levels of effects, which are many, only those that fail."""
    gate, table = result.gate, result.convergence
    names = set() if result.effects.empty else set(result.effects["effect"])
    is_level = table["variable"].str.partition("[")[0].isin(names)
    shown = table[~is_level | ~table["passed"].astype(bool)]
    asked = (
        "The gate asks of every variable an R-hat of at most 1.01 and effective sample sizes of at least 400,"
        " of the fit no divergence, and of every chain an E-BFMI of at least 0.3. Here: "
        f"{gate['num_divergences']:,} divergences in {gate['num_draws']:,} draws, {gate['num_gradients']:,} "
        f"gradients, E-BFMI {', '.join(f'{value:.2f}' for value in gate['e_bfmi'])}."
    )
    columns = (
        *doc.titled(variable="variable", kind="kind"),
        doc.Column("r_hat", "R-hat", partial(_fixed, digits=4)),
        doc.Column("ess_bulk", "ESS bulk", count),
        doc.Column("ess_tail", "ESS tail", count),
        doc.Column("passed", "passed", lambda passed: "yes" if passed else "NO"),
    )
    return (
        doc.Text(asked, on="page"),
        doc.Table(shown, columns, failed=(~shown["passed"].astype(bool)).tolist(), on="page"),
        *(() if result.effects.empty else (doc.Text(_LEVELS, "soft", on="page"),)),
    )


def _origin(result: FitSummary) -> tuple[doc.Item, ...]:
    """Return where the numbers come from: traces, cleaning, priors, sampler, versions."""
    metadata = result.fit.metadata
    rows, cleaning = metadata.rows, metadata.cleaning
    counted = (
        f"{rows.read:,} read, {rows.cleaned:,} after cleaning (latencies from {cleaning.min_latency_ms:g} to "
        f"{cleaning.max_latency_ms:g} ms), {rows.used:,} used for the fit."
    )
    rules = pd.DataFrame(list(cleaning.table), columns=["rule", "removed", "share"]).fillna(0)
    removed = doc.Table(
        rules,
        (
            doc.Column("rule", "rule"),
            doc.Column("removed", "steps removed", lambda value: f"{int(value):,}"),
            doc.Column("share", "share", lambda value: percent(value, 2)),
        ),
    )
    left = f"{rows.cleaned:,} of {rows.read:,} steps are left after cleaning:"
    prior = metadata.prior_from
    bounds = "95% in" if prior else "95% of a log-normal in"
    priors = doc.Table(
        result.priors,
        (
            doc.Column("parameter", "parameter"),
            doc.Column(("low", "high"), bounds, span),
            *doc.titled(median="median", unit="unit"),
        ),
        on="page",
    )
    versions: tuple[doc.Item, ...] = (
        doc.Text(f"Model file SHA-256: `{metadata.model.sha256}`"),
        *_mapping(metadata.package_versions, ("package", "version")),
    )
    return (
        doc.Section(
            "Traces",
            (
                _traces_table(metadata.traces),
                doc.Text(f"SHA-256 of all: `{metadata.trace_sha256}`", on="page"),
            ),
        ),
        doc.Section(
            "Steps",
            (
                doc.Text(counted, on="page"),
                *((doc.Text(left, on="terminal"),) if rows.cleaned < rows.read else ()),
                *((removed,) if len(rules) else ()),
                *_bad_lines(metadata.bad_lines),
            ),
        ),
        doc.Section("Priors", (*((doc.Text(_PRIORS.format(prior), on="page"),) if prior else ()), priors)),
        doc.Section(
            "Sampler and time",
            (
                *_mapping(metadata.sampler, ("setting", "value")),
                *_mapping(metadata.timings_s, ("stage", "seconds")),
                doc.Details("Versions", versions),
            ),
        ),
    )


def _traces_table(traces: Any) -> doc.Table:
    """Return the traces: ``path``, ``format``, ``num_lines``, ``num_steps`` and ``sha256`` of each."""
    rows = [(t.path.rpartition("/")[2], t.format, t.num_lines, t.num_steps, t.sha256) for t in traces]
    titles = ["file", "format", "lines", "steps", "SHA-256"]
    return doc.Table(pd.DataFrame(rows, columns=titles).astype(object), on="page")


def _bad_lines(counts: Mapping[str, int]) -> tuple[doc.Item, ...]:
    """Return on a page how many lines could not be used, by reason."""
    if not counts:
        return (doc.Text("Every line of the traces could be used.", on="page"),)
    return doc.Text("Lines that could not be used:", on="page"), *_mapping(counts, ("reason", "lines"))


def _mapping(mapping: Mapping[str, Any], titles: tuple[str, str]) -> tuple[doc.Table, ...]:
    """Return a table of names and values, none where there are none."""
    frame = pd.DataFrame(list(mapping.items()), columns=list(titles), dtype=object)
    return (doc.Table(frame, on="page"),) if len(frame) else ()


def _fixed(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _lined_up(value: float | None) -> str:
    """Write three digits; a power of ten in the short way that lines up."""
    text = number(value)
    return f"{value:.2e}" if value is not None and "×" in text else text
