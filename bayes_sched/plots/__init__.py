"""Figures of a fit and of a trace: each function returns a :class:`matplotlib.figure.Figure`, never shows it.

None of them fits or samples again, and none touches the state of ``matplotlib.pyplot``. They are loaded when
they are first used: the figures of a trace need nothing of what a fit needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bayes_sched.plots.calibration import Calibration, calibrate, posterior_predictive_check
    from bayes_sched.plots.chain_ranks import ranks
    from bayes_sched.plots.contours import latency_contours
    from bayes_sched.plots.latency import latency_by_batch, latency_by_tokens
    from bayes_sched.plots.pairs import combination_pairs
    from bayes_sched.plots.parameters import prior_posterior
    from bayes_sched.plots.prior_bands import prior_predictive
    from bayes_sched.plots.residual_panels import residuals
    from bayes_sched.plots.style import save_figure
    from bayes_sched.plots.trace_distributions import request_distributions, time_histogram
    from bayes_sched.plots.trace_load import queue_and_cache, tokens_over_time
    from bayes_sched.plots.trace_times import schedule_against_model_run, times_over_time

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
    "queue_and_cache",
    "ranks",
    "request_distributions",
    "residuals",
    "save_figure",
    "schedule_against_model_run",
    "time_histogram",
    "times_over_time",
    "tokens_over_time",
]

# A name must not be that of a module of the package: importing the module would replace it.
_MODULE_OF = {
    "Calibration": "calibration",
    "calibrate": "calibration",
    "combination_pairs": "pairs",
    "latency_by_batch": "latency",
    "latency_by_tokens": "latency",
    "latency_contours": "contours",
    "posterior_predictive_check": "calibration",
    "prior_posterior": "parameters",
    "prior_predictive": "prior_bands",
    "queue_and_cache": "trace_load",
    "ranks": "chain_ranks",
    "request_distributions": "trace_distributions",
    "residuals": "residual_panels",
    "save_figure": "style",
    "schedule_against_model_run": "trace_times",
    "time_histogram": "trace_distributions",
    "times_over_time": "trace_times",
    "tokens_over_time": "trace_load",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
