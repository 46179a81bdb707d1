"""Figures of a fit: each function takes a fit, returns a :class:`matplotlib.figure.Figure`, never shows it.

None of them fits or samples again, and none touches the state of ``matplotlib.pyplot``.
"""

from bayes_sched.plots.calibration import Calibration, calibrate, posterior_predictive_check
from bayes_sched.plots.contours import latency_contours
from bayes_sched.plots.latency import latency_by_batch, latency_by_tokens
from bayes_sched.plots.pairs import combination_pairs
from bayes_sched.plots.parameters import prior_posterior
from bayes_sched.plots.prior_predictive import prior_predictive
from bayes_sched.plots.ranks import ranks
from bayes_sched.plots.residuals import residuals
from bayes_sched.plots.style import save_figure

__all__ = [
    "Calibration",
    "calibrate",
    "combination_pairs",
    "latency_by_batch",
    "latency_by_tokens",
    "latency_contours",
    "posterior_predictive_check",
    "prior_posterior",
    "prior_predictive",
    "ranks",
    "residuals",
    "save_figure",
]
