"""The report of a fit: a page that needs no other file, the same numbers as CSV and JSON, and the figures."""

from bayes_sched.report.summary import Summary, summary
from bayes_sched.report.writing import ReportPaths, write_report

__all__ = ["ReportPaths", "Summary", "summary", "write_report"]
