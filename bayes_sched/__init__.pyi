"""The public names and where they live; each is loaded when it is first used."""

__all__ = [
    "BayesSchedError",
    "FittedModel",
    "InputError",
    "LatencyModel",
    "Predictor",
    "Prior",
    "Priors",
    "SamplerSettings",
    "SchedulerSettings",
    "ThroughputSaturationModel",
    "Workload",
    "__version__",
    "analyze",
    "clean_steps",
    "compare",
    "compare_models",
    "compile_predictor",
    "fit",
    "leave_one_out",
    "load_model",
    "optimize_steps",
    "plan_capacity",
    "pool",
    "read_trace",
    "read_workload",
    "report",
    "request_sla",
    "step_sla",
    "steps_arrays",
    "steps_grid",
    "summarize",
    "validate",
    "write_report",
]

from .checks.least_squares import ThroughputSaturationModel
from .checks.loo import compare_models, leave_one_out
from .checks.summary import summarize
from .comparison.compare import compare
from .errors import BayesSchedError, InputError
from .files import VERSION as __version__
from .model.priors import Prior, Priors
from .model.protocol import LatencyModel, load_model
from .planning.capacity import plan_capacity
from .planning.replay import SchedulerSettings
from .planning.settings import optimize_steps
from .planning.workload import Workload, read_workload
from .pooling.pool import pool
from .posterior.fit import fit
from .posterior.fitted import FittedModel
from .predictor.compile import compile_predictor
from .predictor.predictor import Predictor
from .reports.kinds import report
from .reports.write import write_report
from .sampling.nuts import SamplerSettings
from .sla.request import request_sla
from .sla.steps import step_sla
from .steps import steps_arrays, steps_grid
from .studies.prediction import validate
from .trace.analysis import analyze
from .trace.cleaning import clean_steps
from .trace.reader import read_trace
