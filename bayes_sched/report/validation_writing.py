"""Writes a validation into a folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from bayes_sched.whole_file import VERSION
from bayes_sched.report.files import ReportPaths, write_figures, write_json, write_tables
from bayes_sched.report.templates import date, render
from bayes_sched.report.validation_figures import validation_figures
from bayes_sched.report.validation_tables import fit_page, regime_page, score_page
from bayes_sched.results import VALIDATION
from bayes_sched.validation import Validation
from bayes_sched.validation.regimes import REGIMES
from bayes_sched.validation.scores import METRICS
from bayes_sched.validation.splits import SPLITS


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
