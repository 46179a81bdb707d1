"""Reports of a fit, a trace or a comparison: a page that needs no other file, the numbers, and the figures.

The names are loaded when they are first used: the report of a trace needs nothing of what a fit needs.
"""

from typing import TYPE_CHECKING

from bayes_sched.lazy import loader

if TYPE_CHECKING:
    from bayes_sched.report.analysis_writing import write_analysis
    from bayes_sched.report.comparison_writing import write_comparison
    from bayes_sched.report.files import ReportPaths
    from bayes_sched.report.fit_summary import Summary, summary
    from bayes_sched.report.sla_writing import write_sla
    from bayes_sched.report.validation_writing import write_validation
    from bayes_sched.report.writing import write_report

__all__ = [
    "ReportPaths",
    "Summary",
    "summary",
    "write_analysis",
    "write_comparison",
    "write_report",
    "write_sla",
    "write_validation",
]

_MODULE_OF = {
    "ReportPaths": "files",
    "Summary": "fit_summary",
    "summary": "fit_summary",
    "write_analysis": "analysis_writing",
    "write_comparison": "comparison_writing",
    "write_report": "writing",
    "write_sla": "sla_writing",
    "write_validation": "validation_writing",
}

__getattr__ = loader(__name__, _MODULE_OF)
