"""What a trace says without any model: statistics of its steps, what to look at, and a log as it grows.

`analyze` gives values, never prints. The names are loaded when they are first used.
"""

from typing import TYPE_CHECKING

from bayes_sched.lazy import loader

if TYPE_CHECKING:
    from bayes_sched.analysis.analyzing import TraceAnalysis, analyze
    from bayes_sched.analysis.findings import Finding
    from bayes_sched.analysis.following import LogFollower
    from bayes_sched.analysis.limits import Limits
    from bayes_sched.analysis.live import LiveFigures, LiveWindow

__all__ = ["Finding", "Limits", "LiveFigures", "LiveWindow", "LogFollower", "TraceAnalysis", "analyze"]

_MODULE_OF = {
    "Finding": "findings",
    "Limits": "limits",
    "LiveFigures": "live",
    "LiveWindow": "live",
    "LogFollower": "following",
    "TraceAnalysis": "analyzing",
    "analyze": "analyzing",
}

__getattr__ = loader(__name__, _MODULE_OF)
