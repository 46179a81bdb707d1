"""Figures of a fit and of a trace: each function returns a :class:`matplotlib.figure.Figure`, never shows it.

None of them fits or samples again, and none touches the state of ``matplotlib.pyplot``. They are loaded when
they are first used: the figures of a trace need nothing of what a fit needs.
"""

from typing import TYPE_CHECKING

from bayes_sched.lazy import loader

if TYPE_CHECKING:
    from bayes_sched.plots.calibration import Calibration, calibrate, posterior_predictive_check
    from bayes_sched.plots.chain_ranks import ranks
    from bayes_sched.plots.comparison_forest import parameter_forest
    from bayes_sched.plots.comparison_latency import comparison_bands
    from bayes_sched.plots.comparison_maps import probability_map, ratio_map
    from bayes_sched.plots.contours import latency_contours
    from bayes_sched.plots.effects import effect_factors, effect_table
    from bayes_sched.plots.latency import latency_by_batch, latency_by_tokens
    from bayes_sched.plots.pairs import combination_pairs
    from bayes_sched.plots.parameters import prior_posterior
    from bayes_sched.plots.pooled_intervals import pool_shrinkage
    from bayes_sched.plots.pooled_latency import pool_latency
    from bayes_sched.plots.prior_bands import prior_predictive
    from bayes_sched.plots.residual_panels import residuals
    from bayes_sched.plots.sla_decode import decode_promise
    from bayes_sched.plots.sla_map import promise_map
    from bayes_sched.plots.sla_requests import request_survival
    from bayes_sched.plots.style import save_figure
    from bayes_sched.plots.trace_distributions import request_distributions, time_histogram
    from bayes_sched.plots.trace_load import queue_and_cache, tokens_over_time
    from bayes_sched.plots.trace_times import schedule_against_model_run, times_over_time
    from bayes_sched.plots.validation_calibration import band_calibration
    from bayes_sched.plots.validation_errors import error_by_size
    from bayes_sched.plots.validation_extrapolation import extrapolation_bands
    from bayes_sched.plots.validation_scores import score_overview

__all__ = [
    "Calibration",
    "band_calibration",
    "calibrate",
    "combination_pairs",
    "comparison_bands",
    "decode_promise",
    "effect_factors",
    "effect_table",
    "error_by_size",
    "extrapolation_bands",
    "latency_by_batch",
    "latency_by_tokens",
    "latency_contours",
    "parameter_forest",
    "pool_latency",
    "pool_shrinkage",
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
    "score_overview",
    "time_histogram",
    "times_over_time",
    "tokens_over_time",
]

_MODULE_OF = {
    "Calibration": "calibration",
    "band_calibration": "validation_calibration",
    "calibrate": "calibration",
    "combination_pairs": "pairs",
    "comparison_bands": "comparison_latency",
    "decode_promise": "sla_decode",
    "effect_factors": "effects",
    "effect_table": "effects",
    "error_by_size": "validation_errors",
    "extrapolation_bands": "validation_extrapolation",
    "latency_by_batch": "latency",
    "latency_by_tokens": "latency",
    "latency_contours": "contours",
    "parameter_forest": "comparison_forest",
    "pool_latency": "pooled_latency",
    "pool_shrinkage": "pooled_intervals",
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
    "score_overview": "validation_scores",
    "time_histogram": "trace_distributions",
    "times_over_time": "trace_times",
    "tokens_over_time": "trace_load",
}

__getattr__ = loader(__name__, _MODULE_OF)
