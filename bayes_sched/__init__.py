"""Bayesian latency models for LLM schedulers: from a vLLM step trace to latency bands and probabilities.

>>> import bayes_sched
>>> trace = bayes_sched.read_trace("trace.jsonl")
>>> result = bayes_sched.fit(trace)
>>> result.fit.predictive_band(bayes_sched.steps_arrays([8, 64], [8, 64]), probability=0.9)

Names are loaded when they are first used, so that the import itself takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bayes_sched.analysis import Finding, Limits, TraceAnalysis, analyze
    from bayes_sched.comparison import Comparison, compare
    from bayes_sched.diagnostics import Convergence
    from bayes_sched.equation import Parameter, latency_ms
    from bayes_sched.errors import BayesSchedError, InputError
    from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
    from bayes_sched.fitting import FitResult, fit
    from bayes_sched.metadata import FitMetadata
    from bayes_sched.model import LatencyModel, load_model
    from bayes_sched.predictor import MonitorSettings, Predictor
    from bayes_sched.predictor_compilation import compile_predictor
    from bayes_sched.priors import Prior, Priors, read_prior_overrides
    from bayes_sched.report import write_analysis, write_comparison, write_report, write_sla
    from bayes_sched.settings import SamplerSettings
    from bayes_sched.sla import Objective, RequestSLA, StepSLA, request_sla, step_risk, step_sla
    from bayes_sched.steps import steps_arrays, steps_grid
    from bayes_sched.thinning import Thinned, thin_steps
    from bayes_sched.trace import Cleaned, Trace, clean_steps, read_trace

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_PROBABILITY",
    "BayesSchedError",
    "Cleaned",
    "Comparison",
    "Convergence",
    "Finding",
    "FitMetadata",
    "FitResult",
    "FittedModel",
    "InputError",
    "LatencyModel",
    "Limits",
    "MonitorSettings",
    "Objective",
    "Parameter",
    "Predictor",
    "Prior",
    "Priors",
    "RequestSLA",
    "SamplerSettings",
    "StepSLA",
    "Thinned",
    "Trace",
    "TraceAnalysis",
    "__version__",
    "analyze",
    "clean_steps",
    "compare",
    "compile_predictor",
    "fit",
    "latency_ms",
    "load_model",
    "read_prior_overrides",
    "read_trace",
    "request_sla",
    "step_risk",
    "step_sla",
    "steps_arrays",
    "steps_grid",
    "thin_steps",
    "write_analysis",
    "write_comparison",
    "write_report",
    "write_sla",
]

# A public name must not be that of a module of the package: importing the module would replace it.
_MODULE_OF = {
    "DEFAULT_PROBABILITY": "fitted",
    "BayesSchedError": "errors",
    "Cleaned": "trace",
    "Comparison": "comparison",
    "Convergence": "diagnostics",
    "Finding": "analysis",
    "FitMetadata": "metadata",
    "FitResult": "fitting",
    "FittedModel": "fitted",
    "InputError": "errors",
    "LatencyModel": "model",
    "Limits": "analysis",
    "MonitorSettings": "predictor",
    "Objective": "sla",
    "Parameter": "equation",
    "Predictor": "predictor",
    "Prior": "priors",
    "Priors": "priors",
    "RequestSLA": "sla",
    "SamplerSettings": "settings",
    "StepSLA": "sla",
    "Thinned": "thinning",
    "Trace": "trace",
    "TraceAnalysis": "analysis",
    "analyze": "analysis",
    "clean_steps": "trace",
    "compare": "comparison",
    "compile_predictor": "predictor_compilation",
    "fit": "fitting",
    "latency_ms": "equation",
    "load_model": "model",
    "read_prior_overrides": "priors",
    "read_trace": "trace",
    "request_sla": "sla",
    "step_risk": "sla",
    "step_sla": "sla",
    "steps_arrays": "steps",
    "steps_grid": "steps",
    "thin_steps": "thinning",
    "write_analysis": "report",
    "write_comparison": "report",
    "write_report": "report",
    "write_sla": "report",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
