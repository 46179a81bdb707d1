"""Bayesian latency models for LLM schedulers: from a vLLM step trace to latency bands and probabilities.

>>> import bayes_sched
>>> trace = bayes_sched.read_trace("trace.jsonl")
>>> result = bayes_sched.fit(trace)
>>> result.fit.predictive_band(bayes_sched.steps_arrays([8, 64], [8, 64]), probability=0.9)

Names are loaded when they are first used, so that the import itself takes no time.
"""

from typing import TYPE_CHECKING

from bayes_sched.lazy import loader

if TYPE_CHECKING:
    from bayes_sched.analysis import Finding, Limits, TraceAnalysis, analyze
    from bayes_sched.baseline import ThroughputSaturationModel
    from bayes_sched.comparison import Comparison, compare
    from bayes_sched.completion import TypicalLoad
    from bayes_sched.diagnostics import Convergence
    from bayes_sched.equation import Parameter, latency_ms
    from bayes_sched.errors import BayesSchedError, InputError
    from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
    from bayes_sched.fitting import FitResult, fit
    from bayes_sched.loo import LeaveOneOut, leave_one_out
    from bayes_sched.loo_comparison import ModelComparison, compare_models
    from bayes_sched.metadata import FitMetadata
    from bayes_sched.misfit import Misfit, estimate_misfit
    from bayes_sched.model import LatencyModel, load_model
    from bayes_sched.planning import (
        CapacityPlan,
        Optimum,
        PoissonWorkload,
        SchedulerSettings,
        StepBudgets,
        Workload,
        choose_server,
        optimize_steps,
        plan_capacity,
        read_workload,
    )
    from bayes_sched.plausibility import Plausibility, check_plausibility
    from bayes_sched.pooling import Pool, Population, pool
    from bayes_sched.predictor import MonitorSettings, Predictor
    from bayes_sched.predictor_compilation import compile_predictor
    from bayes_sched.priors import Prior, Priors, read_prior_overrides
    from bayes_sched.report import write_analysis, write_comparison, write_report, write_sla, write_validation
    from bayes_sched.settings import SamplerSettings
    from bayes_sched.sla import Objective, RequestSLA, StepSLA, request_sla, step_risk, step_sla
    from bayes_sched.steps import steps_arrays, steps_grid
    from bayes_sched.thinning import Thinned, thin_steps
    from bayes_sched.trace import Cleaned, Trace, clean_steps, read_trace
    from bayes_sched.validation import Contender, Forecast, Validation, validate

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_PROBABILITY",
    "BayesSchedError",
    "CapacityPlan",
    "Cleaned",
    "Comparison",
    "Contender",
    "Convergence",
    "Finding",
    "FitMetadata",
    "FitResult",
    "FittedModel",
    "Forecast",
    "InputError",
    "LatencyModel",
    "LeaveOneOut",
    "Limits",
    "Misfit",
    "ModelComparison",
    "MonitorSettings",
    "Objective",
    "Optimum",
    "Parameter",
    "Plausibility",
    "PoissonWorkload",
    "Pool",
    "Population",
    "Predictor",
    "Prior",
    "Priors",
    "RequestSLA",
    "SamplerSettings",
    "SchedulerSettings",
    "StepBudgets",
    "StepSLA",
    "Thinned",
    "ThroughputSaturationModel",
    "Trace",
    "TraceAnalysis",
    "TypicalLoad",
    "Validation",
    "Workload",
    "__version__",
    "analyze",
    "check_plausibility",
    "choose_server",
    "clean_steps",
    "compare",
    "compare_models",
    "compile_predictor",
    "estimate_misfit",
    "fit",
    "latency_ms",
    "leave_one_out",
    "load_model",
    "optimize_steps",
    "plan_capacity",
    "pool",
    "read_prior_overrides",
    "read_trace",
    "read_workload",
    "request_sla",
    "step_risk",
    "step_sla",
    "steps_arrays",
    "steps_grid",
    "thin_steps",
    "validate",
    "write_analysis",
    "write_comparison",
    "write_report",
    "write_sla",
    "write_validation",
]

_MODULE_OF = {
    "DEFAULT_PROBABILITY": "fitted",
    "BayesSchedError": "errors",
    "CapacityPlan": "planning",
    "Cleaned": "trace",
    "Comparison": "comparison",
    "Contender": "validation",
    "Convergence": "diagnostics",
    "Finding": "analysis",
    "FitMetadata": "metadata",
    "FitResult": "fitting",
    "FittedModel": "fitted",
    "Forecast": "validation",
    "InputError": "errors",
    "LatencyModel": "model",
    "LeaveOneOut": "loo",
    "Limits": "analysis",
    "Misfit": "misfit",
    "ModelComparison": "loo_comparison",
    "MonitorSettings": "predictor",
    "Objective": "sla",
    "Optimum": "planning",
    "Parameter": "equation",
    "Plausibility": "plausibility",
    "PoissonWorkload": "planning",
    "Pool": "pooling",
    "Population": "pooling",
    "Predictor": "predictor",
    "Prior": "priors",
    "Priors": "priors",
    "RequestSLA": "sla",
    "SamplerSettings": "settings",
    "SchedulerSettings": "planning",
    "StepBudgets": "planning",
    "StepSLA": "sla",
    "Thinned": "thinning",
    "ThroughputSaturationModel": "baseline",
    "Trace": "trace",
    "TraceAnalysis": "analysis",
    "TypicalLoad": "completion",
    "Validation": "validation",
    "Workload": "planning",
    "analyze": "analysis",
    "check_plausibility": "plausibility",
    "choose_server": "planning",
    "clean_steps": "trace",
    "compare": "comparison",
    "compare_models": "loo_comparison",
    "compile_predictor": "predictor_compilation",
    "estimate_misfit": "misfit",
    "fit": "fitting",
    "latency_ms": "equation",
    "leave_one_out": "loo",
    "load_model": "model",
    "optimize_steps": "planning",
    "plan_capacity": "planning",
    "pool": "pooling",
    "read_prior_overrides": "priors",
    "read_trace": "trace",
    "read_workload": "planning",
    "request_sla": "sla",
    "step_risk": "sla",
    "step_sla": "sla",
    "steps_arrays": "steps",
    "steps_grid": "steps",
    "thin_steps": "thinning",
    "validate": "validation",
    "write_analysis": "report",
    "write_comparison": "report",
    "write_report": "report",
    "write_sla": "report",
    "write_validation": "report",
}

__getattr__ = loader(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
