"""The figures of a fit's report, each with a heading and a caption that says how to read it."""

from __future__ import annotations

import pandas as pd

from bayes_sched.plots import combination_pairs, effect_factors, latency_by_batch, latency_by_tokens, latency_contours, posterior_predictive_check, prior_posterior, prior_predictive, ranks, residuals
from bayes_sched.fitted import FittedModel
from bayes_sched.numbers import percent
from bayes_sched.report.files import ReportFigure
from bayes_sched.report.fit_summary import Summary


def prior_words(fit: FittedModel) -> str:
    """Return how to read what the priors allowed."""
    if fit.metadata.prior_from is not None:
        return (
            f"Latencies by the prior alone, which is from {fit.metadata.prior_from}. Observed ones should "
            "lie inside; where they do not, this server is unlike those of the pool."
        )
    return (
        "Latencies by the priors alone. They should cover the observed ones generously and leave the rest to "
        "the data."
    )


def report_figures(fit: FittedModel, steps: pd.DataFrame, summary: Summary) -> tuple[ReportFigure, ...]:
    """Return the figures in the order of the page; none is drawn yet.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps.
    summary : Summary
    """
    p = summary.probability
    share = percent(p)
    calibration = summary.calibration
    load = f" {summary.typical_load}" if summary.typical_load else ""
    figures = (
        ReportFigure(
            "latency_by_tokens",
            "Latency against tokens",
            f"The light band is where {share} of the steps fall; the dark one is where the mean latency "
            f"lies, with {share} certainty. Dots are observed steps with about that many requests. Hatched "
            f"parts are extrapolation.{load}",
            lambda: latency_by_tokens(fit, steps, probability=p),
        ),
        ReportFigure(
            "latency_by_batch",
            "Latency of decode-only steps",
            "Every request of these steps decodes one token, so B = S. The slope is what one more "
            f"decoding request costs all of them. Bands and dots as above.{load}",
            lambda: latency_by_batch(fit, steps, probability=p),
        ),
        ReportFigure(
            "latency_contours",
            "Latency over requests and tokens",
            "Steps along a line take equally long. To keep a promise, stay on the near side of its line "
            "in the lower panel. Dots are steps of the trace; hatched parts are extrapolation. A step "
            f"cannot hold fewer tokens than requests.{load}",
            lambda: latency_contours(fit, steps),
        ),
        ReportFigure(
            "posterior_predictive_check",
            "Do the bands hold?",
            f"{calibration.text} Above, a line inside the grey band means that the predicted probabilities "
            "are right; in long traces look at its size more than at the grey band. Below, each dot "
            "should lie on the dashed line of its colour. These are the steps of the fit itself.",
            lambda: posterior_predictive_check(fit, steps, calibration=calibration),
        ),
        ReportFigure(
            "residuals",
            "What the equation does not explain",
            "The blue line is the running median of observed minus mean latency and should stay near "
            "zero; the band holds the middle 90% of the steps. Left in ms, right in units of the "
            "predicted noise, where the band should be equally wide everywhere.",
            lambda: residuals(fit, steps),
        ),
        ReportFigure(
            "effect_factors",
            "How far latencies depart from the equation",
            "A factor of 1.1 makes the part of the latency that it multiplies 10% longer than the equation "
            "says; the model's documentation names that part. A level is as wide as the values it holds. "
            "Blue ones have steps in the trace; of grey ones nothing was seen, and how far they may depart "
            "is what other levels were seen to do. Mind that each panel has its own scale.",
            lambda: effect_factors(fit, steps, probability=p),
        ),
        ReportFigure(
            "prior_posterior",
            "What the data taught about each parameter",
            "Where the blue posterior looks like the grey prior, the data say nothing about that "
            "parameter. A contraction of 1 means that all was learnt from the data, 0 nothing. "
            "Logarithmic axes; each shape is scaled to its own peak.",
            lambda: prior_posterior(fit),
        ),
        ReportFigure(
            "combination_pairs",
            "Combinations that the data identify",
            "Posterior draws, pair by pair. A narrow diagonal: the two trade off against each other. Two "
            "clouds: two explanations of the same trace.",
            lambda: combination_pairs(fit),
        ),
        ReportFigure(
            "ranks",
            "Do the chains agree?",
            "For each parameter and sampled coordinate, how the ranks of each chain's draws among all "
            "draws deviate from even. Lines inside the grey band: the chains explored the same "
            "distribution.",
            lambda: ranks(fit),
        ),
        ReportFigure(
            "prior_predictive",
            "What the priors allowed",
            prior_words(fit),
            lambda: prior_predictive(fit, steps),
        ),
    )
    return tuple(f for f in figures if f.name != "effect_factors" or not summary.effects.empty)
