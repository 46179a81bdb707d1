"""The figures of a validation, each with a heading and a caption that says how to read it."""

from __future__ import annotations

from bayes_sched.plots import band_calibration, error_by_size, extrapolation_bands, score_overview
from bayes_sched.report.files import ReportFigure
from bayes_sched.validation import Validation


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
