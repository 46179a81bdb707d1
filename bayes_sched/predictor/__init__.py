"""A fit compiled to tables that a scheduler can ask: microseconds a step, numpy alone.

>>> from bayes_sched import Predictor
>>> predictor = Predictor.load("predictor.npz")
>>> predictor.quantile(16, 512, 0.99), predictor.probability_below(16, 512, 50.0)
>>> predictor.observe(16, 512, 47.1).alarm
"""

from bayes_sched.predictor.compiled import Predictor
from bayes_sched.predictor.monitoring import Alarm, Monitor, MonitorSettings, Observation
from bayes_sched.predictor.provenance import Provenance

__all__ = ["Alarm", "Monitor", "MonitorSettings", "Observation", "Predictor", "Provenance"]
