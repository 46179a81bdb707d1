"""The tables' answers for one step, in plain Python: an array of one element costs ten times as much."""

from __future__ import annotations

from math import asinh, exp, log, log1p, sinh

from bayes_sched.predictor.tables import LOGIT_END, POSITION_END, Tables, bilinear

type Column = list[float]
type Distribution = tuple[float, float, tuple[Column, Column, Column, Column], float, float]
"""Mean and width (ms), the logits at the four nodes around, and the shares of the way between them."""


class StepLookup:
    """Tables as lists, which Python reads fastest.

    Arguments are trusted: the batch size and the tokens lie in the grid.

    Parameters
    ----------
    tables : Tables
    """

    def __init__(self, tables: Tables) -> None:
        end_b, end_s = (float(end) for end in tables.ends)
        moments = (*bilinear(tables.log_mean), *bilinear(tables.log_width))
        self._moments = list(zip(*(part.tolist() for part in moments), strict=True))
        self._cells_b, self._cells_s = (size - 1 for size in tables.log_mean.shape)
        self._per_log_b, self._per_log_s = self._cells_b / end_b, self._cells_s / end_s
        rows, self._nodes_s = tables.positions.shape[:2]
        self._coarse_b, self._coarse_s = rows - 1, self._nodes_s - 1
        self._coarse_per_log_b, self._coarse_per_log_s = self._coarse_b / end_b, self._coarse_s / end_s
        self._positions: list[Column] = tables.positions.reshape(-1, tables.positions.shape[2]).tolist()
        self._logits: list[Column] = tables.logits.reshape(-1, tables.logits.shape[2]).tolist()
        self._last_position, self._last_logit = tables.positions.shape[2] - 2, tables.logits.shape[2] - 2
        self._per_logit = (self._last_position + 1) / (2.0 * LOGIT_END)
        self._per_position = (self._last_logit + 1) / (2.0 * POSITION_END)

    def mean(self, batch_size: float, total_tokens: float) -> float:
        """Return the mean latency, ms."""
        return self._mean_and_width(log(batch_size), log(total_tokens))[0]

    def quantile(self, batch_size: float, total_tokens: float, q: float) -> float:
        """Return the latency that a step stays below with probability `q`, ms, at least 0."""
        log_b, log_s = log(batch_size), log(total_tokens)
        mean, width = self._mean_and_width(log_b, log_s)
        columns, share_b, share_s = self._around(self._positions, log_b, log_s)
        at = (log(q) - log1p(-q) + LOGIT_END) * self._per_logit
        return max(0.0, mean + width * sinh(_between(columns, share_b, share_s, at, self._last_position)))

    def probability_below(self, batch_size: float, total_tokens: float, latency_ms: float) -> float:
        """Return P(latency <= `latency_ms`); 0 where `latency_ms` is negative."""
        if latency_ms < 0.0:
            return 0.0
        logit = self.logit(self.distribution(batch_size, total_tokens), latency_ms)
        return 1.0 / (1.0 + exp(-logit))

    def distribution(self, batch_size: float, total_tokens: float) -> Distribution:
        """Return what :meth:`logit` needs of a step, for several latencies of it."""
        log_b, log_s = log(batch_size), log(total_tokens)
        mean, width = self._mean_and_width(log_b, log_s)
        return (mean, width, *self._around(self._logits, log_b, log_s))

    def logit(self, distribution: Distribution, latency_ms: float) -> float:
        """Return the logit of P(latency <= `latency_ms`), between -700 and 700."""
        mean, width, columns, share_b, share_s = distribution
        at = (asinh((latency_ms - mean) / width) + POSITION_END) * self._per_position
        return min(max(_between(columns, share_b, share_s, at, self._last_logit), -700.0), 700.0)

    def _mean_and_width(self, log_b: float, log_s: float) -> tuple[float, float]:
        at_b, at_s = log_b * self._per_log_b, log_s * self._per_log_s
        row, column = int(at_b), int(at_s)
        row = row if row < self._cells_b else self._cells_b - 1
        column = column if column < self._cells_s else self._cells_s - 1
        b, s = at_b - row, at_s - column
        m, m_b, m_s, m_bs, w, w_b, w_s, w_bs = self._moments[row * self._cells_s + column]
        return exp(m + b * (m_b + s * m_bs) + s * m_s), exp(w + b * (w_b + s * w_bs) + s * w_s)

    def _around(
        self, table: list[Column], log_b: float, log_s: float
    ) -> tuple[tuple[Column, Column, Column, Column], float, float]:
        at_b, at_s = log_b * self._coarse_per_log_b, log_s * self._coarse_per_log_s
        row, column = int(at_b), int(at_s)
        row = row if row < self._coarse_b else self._coarse_b - 1
        column = column if column < self._coarse_s else self._coarse_s - 1
        node = row * self._nodes_s + column
        above = node + self._nodes_s
        return (table[node], table[node + 1], table[above], table[above + 1]), at_b - row, at_s - column


def _between(
    columns: tuple[Column, Column, Column, Column], share_b: float, share_s: float, at: float, last: int
) -> float:
    """Return the value at place `at` of a blend of four columns; beyond their ends they go on straight."""
    index = min(max(int(at), 0), last)
    share = at - index
    first, second, third, fourth = columns
    one, two, three, four = first[index], second[index], third[index], fourth[index]
    index += 1
    one += share * (first[index] - one)
    two += share * (second[index] - two)
    three += share * (third[index] - three)
    four += share * (fourth[index] - four)
    low = one + share_s * (two - one)
    return low + share_b * (three + share_s * (four - three) - low)
