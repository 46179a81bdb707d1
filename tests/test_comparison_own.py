"""A verdict that the steps of the traces contradict is withdrawn."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bayes_sched.comparison.compare import Comparison, compare
from tests.comparison_fits import server
from tests.synthetic_fit import with_trace


def compared(factor: float) -> Comparison:
    """Two servers of which the first is fitted as 1.3 times slower, and takes `factor` times as long."""
    slow = with_trace(server(1.3, name="first", gpu="X100"), factor / 1.3)
    return compare([slow, with_trace(server(name="second", gpu="Y50"))])


def covered(comparison: Comparison) -> pd.DataFrame:
    return comparison.table[~comparison.table["extrapolation"]]


def test_a_verdict_that_the_traces_turn_round_is_undecided() -> None:
    """The steps of the server that is fitted as slower are the faster ones."""
    table = covered(compared(0.8))
    assert (table["ratio_median"] > 1.2).all()
    assert (table["own_ratio"] < 0.9).all()
    assert set(table["verdict"]) == {"undecided"}
    assert table["p_faster"].isna().all()


def test_a_verdict_that_the_traces_bear_out_stays() -> None:
    table = covered(compared(1.3))
    assert set(table["verdict"]) == {"slower"}
    assert (table["p_faster"] < 0.05).all()
    np.testing.assert_array_equal(table["own_ratio"], table["ratio_median"])
