"""Every kind of result that has a report: importing this module registers them all."""

from bayes_sched.reports import comparison, fit, loo, planning, pool, sla, studies, trace, validation  # noqa: F401
from bayes_sched.reports.document import report

__all__ = ["report"]
