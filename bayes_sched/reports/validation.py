"""How well unseen steps are predicted, as a document."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from bayes_sched.format import NONE, counted, cut, number, percent
from bayes_sched.reports import document as doc
from bayes_sched.steps import REGIMES
from bayes_sched.studies.forecasts import METRICS
from bayes_sched.studies.names import SPLIT_TITLES
from bayes_sched.studies.prediction import EXTRAPOLATION, Validation

_MODEL_WIDTH = 20
_BEST, _FAILED_GATE = "*", "!"
_LEGEND = (
    "CRPS: continuous ranked probability score, the average pinball loss; less is better, * is the least. "
    "! a fit failed its convergence gate."
)
_SCORES = (
    "Continuous ranked probability score in ms, the average pinball loss over one grid of levels for all "
    "models (Gneiting and Raftery 2007); less is better. In brackets the share of held-out steps in the 90 % "
    "band."
)
_COLUMNS = {
    "crps_ms": "CRPS (ms)",
    "log_score": "log score",
    "mape": "MAPE",
    "ape_p95": "95th pct. of APE",
    "r2": "R²",
    "rmse_ms": "RMSE (ms)",
    "mae_ms": "MAE (ms)",
    "bias_ms": "bias (ms)",
    "coverage_50": "in 50 % band",
    "coverage_90": "in 90 % band",
    "coverage_99": "in 99 % band",
}
_SHARES = ("mape", "ape_p95", "coverage_50", "coverage_90", "coverage_99")
_GATES = {True: "passed", False: "FAILED", None: NONE}


@doc.report.register
def _(result: Validation, *, command: str = "") -> doc.Document:
    servers = ", ".join(result.servers)
    settings, numbers = result.settings, result.to_dict()
    chosen = " (those to learn from: rare sizes first)" if settings["rare_first"] else ""
    splits = tuple(f"**{name}**: {SPLIT_TITLES[name]}" for name in result.splits)
    return doc.Document(
        title=f"How well unseen steps are predicted: {servers}",
        name=f"Validation: {servers}",
        subtitle=doc.made(f"{len(result.models)} models on steps that they have not learned from"),
        head=(
            doc.Text(result.text, "lead", on="page"),
            *doc.beware(result.notes, title="Left out, limited, or to beware of"),
        ),
        sections=(
            *(item for server in result.servers for item in _terminal(result, server)),
            doc.Text(_LEGEND, on="terminal"),
            doc.Text("", points=result.notes, on="terminal"),
            doc.Section(
                "Scores",
                (
                    doc.Text(_SCORES, on="page"),
                    *(doc.Section(server, (_scores(result, server),)) for server in result.servers),
                    doc.Details("What the splits hold out", (doc.Text("", points=splits),)),
                    doc.Text(
                        f"At most {settings['max_train']:,} steps to learn from and "
                        f"{settings['max_test']:,} to predict, thinned at random{chosen}; all models of a "
                        "split meet the same steps.",
                        on="page",
                    ),
                    *_figures(result),
                ),
            ),
            doc.Section("Every score, by kind of step", tuple(_by_regime(result))),
            _how_made(result, command),
        ),
        numbers={key: numbers[key] for key in numbers if key not in {"scores", "fits"}}
        | {"command": command},
        frames={"fits": result.fits},
    )


def _terminal(found: Validation, server: str) -> tuple[doc.Item, ...]:
    """Return what a terminal shows of a server: CRPS and coverage of the 90 % band, by model and split."""
    models, splits = found.models_of(server), found.splits_of(server)
    best = (
        {str(s): str(m) for s, m in found.table("crps_ms", server=server).idxmin().items()} if splits else {}
    )

    def crps(split: str, model: str) -> str:
        marks = _BEST if best[split] == model else ""
        marks += _FAILED_GATE if found.unconverged(server=server, split=split, model=model) else ""
        return number(found.value("crps_ms", server=server, split=split, model=model)) + marks

    def covered(split: str, model: str) -> str:
        return _share(found.value("coverage_90", server=server, split=split, model=model))

    tables = []
    for title, write in (("CRPS (ms)", crps), ("steps in 90 % band", covered)):
        rows = [{title: cut(m, _MODEL_WIDTH)} | {split: write(split, m) for split in splits} for m in models]
        tables.append(doc.Table(pd.DataFrame(rows, columns=[title, *splits]), on="terminal"))
    return doc.Text(f"{server}: {_rows_text(found, server)}", on="terminal"), *tables


def _rows_text(found: Validation, server: str) -> str:
    """Say how many steps are learned from and predicted, and what the caps took."""
    fits = found.fits[found.fits["server"] == server]
    if fits.empty:
        return "nothing was fitted"
    capped = set(fits.loc[fits["train_rows"] < fits["train_available"], "split"])
    train = f"at most {fits['train_rows'].max():,} steps to learn from"
    if capped:
        how = "rare sizes first" if found.settings["rare_first"] else "thinned at random"
        train += f" ({how} for {', '.join(sorted(capped, key=found.splits.index))})"
    return f"{train}, at most {fits['test_rows'].max():,} to predict"


def _share(value: float | None, digits: int = 0) -> str:
    return NONE if value is None or math.isnan(value) else percent(value, digits)


def _scores(found: Validation, server: str) -> doc.Table:
    """Return CRPS and coverage of the 90 % band by model and split."""

    def written(split: str, model: str) -> str:
        crps_ms, covered = (
            found.value(metric, server=server, split=split, model=model)
            for metric in ("crps_ms", "coverage_90")
        )
        return NONE if math.isnan(crps_ms) else f"{number(crps_ms)} ({percent(covered)})"

    splits = found.splits_of(server)
    rows = [{"model": m} | {split: written(split, m) for split in splits} for m in found.models_of(server)]
    return doc.Table(pd.DataFrame(rows, columns=["model", *splits]), on="page")


def _figures(found: Validation) -> Iterator[doc.Figure]:
    scored = {held.split for held in found.held_out}
    first = next(split for split in found.splits if split in scored)
    yield doc.figure(
        "validation.score_overview",
        "Which model predicts best",
        "Continuous ranked probability score, the average pinball loss, in ms: how far from what was "
        "said the steps fell. Logarithmic axis; less is better. Models compare within a split.",
        found,
        name="validation_scores",
    )
    yield doc.figure(
        "validation.band_calibration",
        "Do bands keep their word",
        "Share of unseen steps inside each central band against the probability of the band. Below the "
        "diagonal bands are too narrow, above it too wide.",
        found,
        name="validation_calibration",
    )
    yield doc.figure(
        "validation.error_by_size",
        "Where predictions are off",
        f"Mean absolute percentage error of the point prediction by the size of the step, split {first}; "
        "both axes are logarithmic. Bins with fewer than five steps are left out.",
        found,
        first,
        name="validation_errors",
    )
    if EXTRAPOLATION in scored:
        yield doc.figure(
            "validation.extrapolation_bands",
            "Steps larger than any that was learned from",
            "Dots are held-out steps with prefill of the largest token budget; the grey part is where "
            "training steps were. Lines are predicted medians, bands hold 90 % by the model's word, both "
            "averaged over steps of like S.",
            found,
            name="validation_extrapolation",
        )


def _by_regime(found: Validation) -> Iterator[doc.Item]:
    yield doc.Details(
        "What the kinds and the scores are",
        (
            doc.Text("", points=tuple(f"**{name}**: {title}" for name, title in REGIMES.items())),
            doc.Text("", points=tuple(f"`{name}`: {title}" for name, title in METRICS.items())),
        ),
    )
    for server in found.servers:
        for split in found.splits_of(server):
            yield doc.Section(f"{server}, {SPLIT_TITLES[split]}", (_regimes(found, server, split),))


def _regimes(found: Validation, server: str, split: str) -> doc.Table:
    """Return the scores of every model by regime."""
    chosen = found.scores.query("server == @server and split == @split")
    counts = chosen.groupby("regime")["rows"].mean().to_dict()
    rows = [
        {"regime": regime, "model": model, "steps": round(counts[regime])}
        | {
            metric: found.value(metric, server=server, split=split, model=model, regime=regime)
            for metric in _COLUMNS
        }
        for regime in REGIMES
        if regime in counts
        for model in found.models_of(server)
    ]
    scores = [
        doc.Column(metric, title, partial(_share, digits=1) if metric in _SHARES else number)
        for metric, title in _COLUMNS.items()
    ]
    counted = (doc.Column("regime", "regime"), doc.Column("model", "model"), doc.Column("steps", "steps"))
    return doc.Table(pd.DataFrame(rows), (*counted, *scores), on="page")


def _how_made(found: Validation, command: str) -> doc.Section:
    settings = found.settings
    repeats = counted(settings["repeats"], "time")
    traces = " ".join(f"{server}: {', '.join(names)}." for server, names in settings["traces"].items())
    links = "[every score](validation.csv), [fits](tables/fits.csv) (CSV), [summary.json](summary.json)"
    return doc.Section(
        "How it was made",
        (
            *((doc.Text(command, "code", on="page"),) if command else ()),
            doc.Text(f"Seed {settings['seed']}, random splits made {repeats}. Traces: {traces}", on="page"),
            _fits(found.fits),
            doc.Text(f"The same numbers: {links}.", "soft", on="page"),
        ),
    )


def _fits(fits: pd.DataFrame) -> doc.Table:
    """Return what was fitted, how long it took and whether it passed its gate."""
    failed = (~fits["converged"].fillna(True)) | fits["error"].notna()
    seconds = fits["seconds"] if "seconds" in fits else float("nan")
    return doc.Table(
        fits.assign(seconds=seconds, repeat=fits["repeat"] + 1),
        (
            *(doc.Column(name, name) for name in ("server", "split", "model", "repeat")),
            doc.Column(("train_rows", "train_available"), "learned from", _of),
            doc.Column(("test_rows", "test_available"), "predicted", _of),
            doc.Column("seconds", "seconds", number),
            doc.Column("converged", "gate", _GATES.__getitem__),
            doc.Column("error", "error", lambda error: "" if error is None else doc.cell(error)),
        ),
        failed=[bool(flag) for flag in failed],
        on="page",
    )


def _of(some: Any, available: Any) -> str:
    return f"{some:,} of {available:,}"
