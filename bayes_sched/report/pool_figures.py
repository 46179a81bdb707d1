"""The figures of a pool, each with a heading and a caption that says how to read it."""

from __future__ import annotations

from bayes_sched.plots import pool_latency, pool_shrinkage
from bayes_sched.numbers import percent
from bayes_sched.pooling import Pool
from bayes_sched.report.files import ReportFigure
from bayes_sched.report.pool_summary import PoolSummary


def pool_figures(pool: Pool, found: PoolSummary) -> tuple[ReportFigure, ...]:
    """Return the figures in the order of the page; none is drawn yet.

    Parameters
    ----------
    pool : Pool
    found : PoolSummary
    """
    share = percent(found.probability)
    context = next(iter(pool.alone.values())).typical.text(pool.unseen.model.columns)
    return (
        ReportFigure(
            "pool_shrinkage",
            "What each trace says alone, and with the others",
            f"One panel a quantity that data identify, logarithmic. Grey, the {share} interval of a trace by "
            "itself; blue, with the strength of the others. Where a trace says enough, the two are alike. "
            f"The green band is where a server not yet seen is expected with {share} probability.",
            lambda: pool_shrinkage(found.changes, found.spread, probability=found.probability),
        ),
        ReportFigure(
            "pool_latency",
            "What a server not yet seen is expected to do",
            "Lines are mean latencies of the pooled servers, thin where their traces hold no such steps. "
            f"The band holds the mean latency of a server not yet seen with {share} probability: how far "
            f"servers differ, and not what single steps do. Both axes are logarithmic. {context}".strip(),
            lambda: pool_latency(pool, probability=found.probability),
        ),
    )
