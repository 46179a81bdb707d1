"""The simulator beside a real server as plain text, no wider than a terminal."""

from __future__ import annotations

import textwrap

from bayes_sched.numbers import number, percent, span
from bayes_sched.planning.request_forecast import CORRECTIONS
from bayes_sched.planning.simulator_check import SimulatorCheck
from bayes_sched.records import records
from bayes_sched.terminal import WIDTH, text_table

_DECISIONS = {
    "steps of the server": ("num_steps", False),
    "steps of the simulator": ("num_simulated", False),
    "same requests and tokens": ("share_equal", True),
    "same number of requests (B)": ("share_equal_batch_size", True),
    "same number of tokens (S)": ("share_equal_total_tokens", True),
    "B differs by 1 at most": ("share_batch_size_within_1", True),
    "same B, share of the time": ("time_share_equal_batch_size", True),
    "mean B of the server, over time": ("mean_batch_size", False),
    "mean difference of B, over time": ("mean_batch_size_difference", False),
    "largest difference of B": ("largest_batch_size_difference", False),
    "mean difference of S": ("mean_total_tokens_difference", False),
    "95% quantile of the difference of S": ("p95_total_tokens_difference", False),
}


def check_text(check: SimulatorCheck) -> str:
    """Return the verdict, the decisions, and the times of requests."""
    parts = [check.text, check.sources_text]
    filled = [textwrap.fill(part, WIDTH, break_on_hyphens=False) for part in parts]
    return "\n\n".join([*filled, _decisions_text(check), *(_times_text(check, each) for each in CORRECTIONS)])


def _decisions_text(check: SimulatorCheck) -> str:
    queue, clock = check.of_queue.to_dict(), check.of_clock.to_dict()
    rows = []
    for words, (name, is_share) in _DECISIONS.items():
        values = (queue[name], clock[name])
        rows.append([words, *(percent(v, 2) if is_share else _count(v) for v in values)])
    titles = ["decisions", "told the queue", "told the clock"]
    return text_table(titles, rows, right=set(titles[1:]))


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else number(value)


def _times_text(check: SimulatorCheck, correction: str) -> str:
    heads = {
        "none": "Times of the simulated engine alone, beside what clients measured (ms):",
        "median": f"With {number(check.forecast.residual_ms)} ms more, the median of the first half (ms):",
        "drawn": "With what a request of the first half, drawn by lot, took beyond the engine (ms):",
    }
    table = check.table
    titles = ["time", "quantile", "measured", "predicted", f"{100 * check.probability:g}% interval"]
    titles += ["error", "inside", "error with own steps"]
    rows = [
        [
            str(row["time"]).upper(),
            f"p{100 * row['level']:g}",
            number(row["measured_ms"]),
            number(row["predicted_ms"]),
            span(row["lower_ms"], row["upper_ms"]),
            f"{100 * row['error']:+.1f}%",
            "yes" if row["is_inside"] else "NO",
            f"{100 * row['own_steps_error']:+.1f}%",
        ]
        for row in records(table[table["correction"] == correction])
    ]
    return f"{heads[correction]}\n{text_table(titles, rows, right=set(titles[2:]))}"
