"""The public names and where they live; `bayes_sched/__init__.py` loads each when it is first used."""

__all__ = [
    "DEFAULT_PROBABILITY",
    "BayesSchedError",
    "CapacityPlan",
    "Cleaned",
    "Comparison",
    "Competitor",
    "Convergence",
    "Discrepancy",
    "Finding",
    "FitMetadata",
    "FitResult",
    "FittedModel",
    "Forecast",
    "InputError",
    "LatencyModel",
    "LeaveOneOut",
    "Limits",
    "ModelComparison",
    "MonitorSettings",
    "Objective",
    "Optimum",
    "Parameter",
    "PhysicalChecks",
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
    "check_physics",
    "choose_server",
    "clean_steps",
    "compare",
    "compare_models",
    "compile_predictor",
    "estimate_discrepancy",
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
    "report",
    "request_sla",
    "step_risk",
    "step_sla",
    "steps_arrays",
    "steps_grid",
    "thin_steps",
    "validate",
    "write_report",
]

from .checks.discrepancy import Discrepancy, estimate_discrepancy
from .checks.least_squares import ThroughputSaturationModel
from .checks.loo import LeaveOneOut, ModelComparison, compare_models, leave_one_out
from .checks.physics import PhysicalChecks, check_physics
from .comparison.compare import Comparison, compare
from .errors import BayesSchedError, InputError
from .files import VERSION as __version__
from .model.equation import Parameter, latency_ms
from .model.priors import Prior, Priors, read_prior_overrides
from .model.protocol import LatencyModel, load_model
from .planning.capacity import CapacityPlan, plan_capacity
from .planning.next_step import StepBudgets, choose_server
from .planning.replay import SchedulerSettings
from .planning.settings import Optimum, optimize_steps
from .planning.workload import PoissonWorkload, Workload, read_workload
from .pooling.pool import Pool, pool
from .pooling.population import Population
from .posterior.diagnostics import Convergence
from .posterior.fit import FitResult, fit
from .posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from .posterior.provenance import FitMetadata
from .posterior.typical_load import TypicalLoad
from .predictor.compile import compile_predictor
from .predictor.monitor import MonitorSettings
from .predictor.predictor import Predictor
from .reports.kinds import report
from .reports.write import write_report
from .sampling.nuts import SamplerSettings
from .sla.request import RequestSLA, request_sla
from .sla.risk import Objective, step_risk
from .sla.steps import StepSLA, step_sla
from .steps import steps_arrays, steps_grid
from .studies.forecasts import Competitor, Forecast
from .studies.prediction import Validation, validate
from .trace.analysis import TraceAnalysis, analyze
from .trace.cleaning import Cleaned, Thinned, clean_steps, thin_steps
from .trace.findings import Finding, Limits
from .trace.reader import Trace, read_trace
