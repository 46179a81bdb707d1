"""Figures of a fit and of a trace: each function returns a :class:`matplotlib.figure.Figure`, never shows it.

None of them fits or samples again, and none touches the state of ``matplotlib.pyplot``. They are loaded when
they are first used: the figures of a trace need nothing of what a fit needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bayes_sched.plots.calibration import Calibration, calibrate, posterior_predictive_check
    from bayes_sched.plots.chain_ranks import ranks
    from bayes_sched.plots.comparison_forest import parameter_forest
    from bayes_sched.plots.comparison_latency import comparison_bands
    from bayes_sched.plots.comparison_maps import probability_map, ratio_map
    from bayes_sched.plots.contours import latency_contours
    from bayes_sched.plots.latency import latency_by_batch, latency_by_tokens
    from bayes_sched.plots.pairs import combination_pairs
    from bayes_sched.plots.parameters import prior_posterior
    from bayes_sched.plots.prior_bands import prior_predictive
    from bayes_sched.plots.residual_panels import residuals
    from bayes_sched.plots.sla_decode import decode_promise
    from bayes_sched.plots.sla_map import promise_map
    from bayes_sched.plots.sla_requests import request_survival
    from bayes_sched.plots.style import save_figure
    from bayes_sched.plots.trace_distributions import request_distributions, time_histogram
    from bayes_sched.plots.trace_load import queue_and_cache, tokens_over_time
    from bayes_sched.plots.trace_times import schedule_against_model_run, times_over_time

__all__ = [
    "Calibration",
    "calibrate",
    "combination_pairs",
    "comparison_bands",
    "decode_promise",
    "latency_by_batch",
    "latency_by_tokens",
    "latency_contours",
    "parameter_forest",
    "posterior_predictive_check",
    "prior_posterior",
    "prior_predictive",
    "probability_map",
    "promise_map",
    "queue_and_cache",
    "ranks",
    "ratio_map",
    "request_distributions",
    "request_survival",
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
    "comparison_bands": "comparison_latency",
    "decode_promise": "sla_decode",
    "latency_by_batch": "latency",
    "latency_by_tokens": "latency",
    "latency_contours": "contours",
    "parameter_forest": "comparison_forest",
    "posterior_predictive_check": "calibration",
    "prior_posterior": "parameters",
    "prior_predictive": "prior_bands",
    "probability_map": "comparison_maps",
    "promise_map": "sla_map",
    "queue_and_cache": "trace_load",
    "ranks": "chain_ranks",
    "ratio_map": "comparison_maps",
    "request_distributions": "trace_distributions",
    "request_survival": "sla_requests",
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
