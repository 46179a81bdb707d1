"""Who competes in a validation: least squares, gradient boosting, and the project's own models.

The judge, `bayes_sched.validation`, knows none of them: whatever fulfils its protocol may take part. The
names are loaded when they are first used.
"""

from typing import TYPE_CHECKING

from bayes_sched.lazy import loader

if TYPE_CHECKING:
    from bayes_sched.contenders.bayesian import Bayesian
    from bayes_sched.contenders.boosting import LightGBM
    from bayes_sched.contenders.entry import check_names, contender_names, contenders_by_name
    from bayes_sched.contenders.least_squares import Baseline, Line

__all__ = [
    "Baseline",
    "Bayesian",
    "LightGBM",
    "Line",
    "check_names",
    "contender_names",
    "contenders_by_name",
]

_MODULE_OF = {
    "Baseline": "least_squares",
    "Bayesian": "bayesian",
    "LightGBM": "boosting",
    "Line": "least_squares",
    "check_names": "entry",
    "contender_names": "entry",
    "contenders_by_name": "entry",
}

__getattr__ = loader(__name__, _MODULE_OF)
