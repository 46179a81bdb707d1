"""The figures of a comparison, each with a heading and a caption that says how to read it."""

from __future__ import annotations

from bayes_sched.plots import comparison_bands, parameter_forest, probability_map, ratio_map
from bayes_sched.comparison import Comparison
from bayes_sched.numbers import percent
from bayes_sched.plots.comparison_maps import MAX_PAIRS
from bayes_sched.report.files import ReportFigure


def comparison_figures(comparison: Comparison) -> tuple[ReportFigure, ...]:
    """Return the figures in the order of the page; none is drawn yet.

    Parameters
    ----------
    comparison : Comparison
    """
    num_pairs = comparison.maps.sizes["pair"]
    rest = (
        f" The first {MAX_PAIRS} of {num_pairs} pairs; the tables hold all." if num_pairs > MAX_PAIRS else ""
    )
    return (
        ReportFigure(
            "ratio_map",
            "Which is faster where",
            "The ratio of the mean latencies: purple, the first server is faster; orange, slower; white, the "
            "ratio lies in the region of practical equivalence. Crosses are steps where the data leave it "
            "undecided; dots are steps of the traces, far from which the equation fills in; hatched "
            "parts are extrapolation for at least one server. A step cannot hold fewer "
            f"tokens than requests.{rest}",
            lambda: ratio_map(comparison),
        ),
        ReportFigure(
            "probability_map",
            "How sure that is",
            "Left, the probability that the first server is faster on average: what is known, which more "
            "data would sharpen. Right, that a single step on the first beats a single step on the second: "
            f"noise included, which no data take away.{rest}",
            lambda: probability_map(comparison),
        ),
        ReportFigure(
            "comparison_bands",
            "Latencies side by side",
            f"Lines are mean latencies, bands are where {percent(comparison.probability)} of single steps "
            "fall. A thin line without a band is extrapolation.",
            lambda: comparison_bands(comparison),
        ),
        ReportFigure(
            "parameter_forest",
            "Parameters, and combinations that data identify",
            "Filled marks are identified on both servers; right of the grey bar they are larger on the "
            "first. Hollow ones are not identified: they stand where the priors put them, and no verdict is "
            f"given. Logarithmic axis.{rest}",
            lambda: parameter_forest(comparison),
        ),
    )
