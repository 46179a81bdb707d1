"""Writes a validation into a folder."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bayes_sched.files import VALIDATION, VERSION
from bayes_sched.format import NONE, number, percent, records
from bayes_sched.reports.page import (
    PageTable,
    ReportFigure,
    ReportPaths,
    date,
    page_table,
    render,
    write_figures,
    write_json,
    write_tables,
)
from bayes_sched.reports.plots.validation import (
    band_calibration,
    error_by_size,
    extrapolation_bands,
    score_overview,
)
from bayes_sched.reports.terminal import WIDTH, cut, text_table
from bayes_sched.steps import REGIMES
from bayes_sched.studies.prediction import METRICS, Validation
from bayes_sched.studies.splits import SPLITS

_MODEL_WIDTH = 20
_BEST, _FAILED_GATE = "*", "!"

LEGEND = (
    "CRPS: continuous ranked probability score, the average pinball loss; less is better, * is the least. "
    "! a fit failed its convergence gate."
)


def validation_text(found: Validation) -> str:
    """Return two tables for each server, CRPS and coverage of the 90 % band, by model and split."""
    parts = []
    for server in found.servers:
        parts += [_filled(f"{server}: {_rows_text(found, server)}"), crps_text(found, server=server)]
        parts.append(coverage_text(found, server=server))
    notes = [_filled(f"- {note}", indent="  ") for note in found.notes]
    return "\n\n".join([*parts, _filled(LEGEND), *(["\n".join(notes)] if notes else [])])


def crps_text(found: Validation, *, server: str) -> str:
    """Return the CRPS of one server by model and split."""
    table = found.table("crps_ms", server=server)
    best = {str(split): str(model) for split, model in table.idxmin().items()}

    def cell(split: str, model: str) -> str:
        marks = _BEST if best[split] == model else ""
        marks += _FAILED_GATE if found.unconverged(server=server, split=split, model=model) else ""
        return marks + number(found.value("crps_ms", server=server, split=split, model=model))

    return _table(found, server, "CRPS (ms)", cell)


def coverage_text(found: Validation, *, server: str) -> str:
    """Return the coverage of the 90 % band of one server by model and split."""

    def cell(split: str, model: str) -> str:
        share = found.value("coverage_90", server=server, split=split, model=model)
        return NONE if math.isnan(share) else percent(share)

    return _table(found, server, "steps in 90 % band", cell)


def _table(found: Validation, server: str, title: str, cell: Callable[[str, str], str]) -> str:
    splits = found.splits_of(server)
    rows = [
        [cut(model, _MODEL_WIDTH), *(cell(split, model) for split in splits)]
        for model in found.models_of(server)
    ]
    return text_table([title, *splits], rows, right=set(splits))


def _filled(text: str, *, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _rows_text(found: Validation, server: str) -> str:
    """Say how many steps are learned from and predicted, and what the caps took."""
    fits = found.fits[found.fits["server"] == server]
    if fits.empty:
        return "nothing was fitted"
    capped = sorted(
        set(fits.loc[fits["train_rows"] < fits["train_available"], "split"]), key=found.splits.index
    )
    train = f"at most {fits['train_rows'].max():,} steps to learn from"
    if capped:
        how = "rare sizes first" if found.settings["rare_first"] else "thinned at random"
        train += f" ({how} for {', '.join(capped)})"
    return f"{train}, at most {fits['test_rows'].max():,} to predict"


_SHARES = ("mape", "ape_p95")
_TITLES = {
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


def score_page(found: Validation, *, server: str) -> PageTable:
    """Return CRPS and coverage of the 90 % band by model and split."""
    rows = []
    for model in found.models_of(server):
        cells = {}
        for split in found.splits_of(server):
            crps_ms, covered = (
                found.value(metric, server=server, split=split, model=model)
                for metric in ("crps_ms", "coverage_90")
            )
            cells[split] = NONE if math.isnan(crps_ms) else f"{number(crps_ms)} ({percent(covered)})"
        rows.append({"model": model, **cells})
    return page_table(rows)


def regime_page(found: Validation, *, server: str, split: str) -> PageTable:
    """Return the scores of every model by regime, of one split."""
    chosen = found.scores.query("server == @server and split == @split")
    counts = chosen.groupby("regime")["rows"].mean().to_dict()
    rows = []
    for regime in (name for name in REGIMES if name in counts):
        for model in found.models_of(server):
            values = {
                title: _cell(
                    found.value(metric, server=server, split=split, model=model, regime=regime), metric
                )
                for metric, title in _TITLES.items()
            }
            rows.append({"regime": regime, "model": model, "steps": round(counts[regime]), **values})
    return page_table(rows)


def fit_page(found: Validation) -> PageTable:
    """Return what was fitted, how long it took and whether it passed its gate."""
    rows = [
        {
            "server": row["server"],
            "split": row["split"],
            "model": row["model"],
            "repeat": row["repeat"] + 1,
            "learned from": f"{row['train_rows']:,} of {row['train_available']:,}",
            "predicted": f"{row['test_rows']:,} of {row['test_available']:,}",
            "seconds": number(row.get("seconds")),
            "gate": {True: "passed", False: "FAILED", None: NONE}[row["converged"]],
            "error": row["error"] or "",
        }
        for row in records(found.fits)
    ]
    return page_table(rows, failed=[row["gate"] == "FAILED" or bool(row["error"]) for row in rows])


def _cell(value: float, metric: str) -> str:
    if math.isnan(value):
        return NONE
    is_share = metric in _SHARES or metric.startswith("coverage")
    return percent(value, 1) if is_share else number(value)


def validation_figures(found: Validation) -> tuple[ReportFigure, ...]:
    """Return the figures in the order of the page; none is drawn yet."""
    scored = {held.split for held in found.held_out}
    first = next(split for split in found.splits if split in scored)
    figures = [
        ReportFigure(
            "validation_scores",
            "Which model predicts best",
            "Continuous ranked probability score, the average pinball loss, in ms: how far from what was "
            "said the steps fell. Logarithmic axis; less is better. Models compare within a split.",
            lambda: score_overview(found),
        ),
        ReportFigure(
            "validation_calibration",
            "Do bands keep their word",
            "Share of unseen steps inside each central band against the probability of the band. Below the "
            "diagonal bands are too narrow, above it too wide.",
            lambda: band_calibration(found),
        ),
        ReportFigure(
            "validation_errors",
            "Where predictions are off",
            f"Mean absolute percentage error of the point prediction by the size of the step, split {first}; "
            "both axes are logarithmic. Bins with fewer than five steps are left out.",
            lambda: error_by_size(found, split=first),
        ),
    ]
    if "budget" in scored:
        figures.append(
            ReportFigure(
                "validation_extrapolation",
                "Steps larger than any that was learned from",
                "Dots are held-out steps with prefill of the largest token budget; the grey part is where "
                "training steps were. Lines are predicted medians, bands hold 90 % by the model's word, both "
                "averaged over steps of like S.",
                lambda: extrapolation_bands(found),
            )
        )
    return tuple(figures)


def write_validation(
    found: Validation, folder: str | Path, *, command: str = "", with_report: bool = True
) -> ReportPaths:
    """Write a validation: the scores as one tidy table, the fits, and a page with figures.

    ``report.html`` needs no other file. Beside it lie ``validation.csv`` (every score), ``summary.json``,
    ``tables/fits.csv`` and ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    found : Validation
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    command : str
        What it was made by, to be shown on the page.
    with_report : bool
        Whether to make the page and the figures.

    Returns
    -------
    ReportPaths
    """
    folder = Path(folder)
    tables = write_tables({"fits": found.fits}, folder / "tables")
    found.scores.to_csv(folder / VALIDATION, index=False, float_format="%.6g", lineterminator="\n")
    numbers = {key: value for key, value in found.to_dict().items() if key not in {"scores", "fits"}}
    write_json({**numbers, "command": command}, folder / "summary.json")
    page = folder / "report.html"
    if not with_report:
        return ReportPaths(page, folder / "summary.json", tables, {})
    figures = write_figures(validation_figures(found), folder / "figures")
    shown = {figure: png for figure, (png, _) in figures.items()}
    page.write_text(render("validation.html.j2", _values(found, command), shown), encoding="utf-8")
    drawn = {figure.name: paths for figure, paths in figures.items()}
    return ReportPaths(page, folder / "summary.json", tables, drawn)


def _values(found: Validation, command: str) -> dict[str, object]:
    scored = found.scores[["server", "split"]].drop_duplicates()
    pairs = list(zip(scored["server"], scored["split"], strict=True))
    return {
        "found": found,
        "command": command,
        "version": VERSION,
        "made_at": date(datetime.now(UTC).isoformat()),
        "metrics": METRICS,
        "regimes": REGIMES,
        "titles": {name: SPLITS[name].title for name in found.splits},
        "scores": {server: score_page(found, server=server) for server in found.servers},
        "by_regime": {
            server: {
                split: regime_page(found, server=server, split=split)
                for name, split in pairs
                if name == server
            }
            for server in found.servers
        },
        "fits": fit_page(found),
    }
