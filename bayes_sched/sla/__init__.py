"""Promises of latency: what a posterior lets one promise of steps and of requests, and how surely.

Two uncertainties are kept apart. *Risk* is what a step or a request does: the probability that it takes
longer than its limit. *Confidence* is what we know of the server: the share of the posterior draws under
which a quantile keeps its limit.
"""

from bayes_sched.sla.objective import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE, Objective
from bayes_sched.sla.request_promise import RequestSLA, request_sla
from bayes_sched.sla.request_time import RequestTime
from bayes_sched.sla.risk import step_risk
from bayes_sched.sla.step_limit import StepLimit
from bayes_sched.sla.step_promise import StepSLA, step_sla

__all__ = [
    "DEFAULT_CONFIDENCE",
    "DEFAULT_QUANTILE",
    "Objective",
    "RequestSLA",
    "RequestTime",
    "StepLimit",
    "StepSLA",
    "request_sla",
    "step_risk",
    "step_sla",
]
