"""The documented point estimate: the saturation equation by least squares, a yardstick for Bayesian fits."""

from bayes_sched.baseline.estimator import ThroughputSaturationModel
from bayes_sched.baseline.residual_analysis import ResidualAnalysis
from bayes_sched.baseline.scores import Scores

__all__ = ["ResidualAnalysis", "Scores", "ThroughputSaturationModel"]
