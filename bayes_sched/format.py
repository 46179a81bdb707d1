"""Numbers, shares and rows of tables as a person reads them."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

NONE = "–"
"""What stands where there is no number."""

_NEAR = 0.001
_LEAST = 1e-6
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits; a dash where there is none.

    Numbers below a ten-thousandth or from ten million on are written with a power of ten.
    """
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0.0:
        return "0"
    mantissa, exponent_text = f"{value:.{digits - 1}e}".split("e")
    exponent = int(exponent_text)
    if not -5 < exponent < 7:
        return f"{mantissa} × 10{str(exponent).translate(_SUPERSCRIPTS)}"
    return f"{float(f'{value:.{digits - 1}e}'):,.{max(0, digits - 1 - exponent)}f}"


def quantity(value: float | None, unit: str) -> str:
    """Write a number of a unit: shares as percentages, requests and tokens in full, else three digits."""
    if value is None or not math.isfinite(value):
        return NONE
    if unit == "share":
        return f"{number(100.0 * value)}%"
    is_count = unit in {"requests", "tokens"} and (value == round(value) or value >= 100.0)
    return f"{value:,.0f}" if is_count else number(value)


def span(lower: float | None, upper: float | None, digits: int = 3) -> str:
    """Write an interval."""
    return f"{number(lower, digits)} to {number(upper, digits)}"


def percent(share: float, digits: int = 0) -> str:
    """Write a share as a percentage."""
    return f"{100.0 * share:.{digits}f}%"


def listed(words: list[str]) -> str:
    """Join words as a sentence does."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as plain values, ready for JSON; what is missing or NaN becomes None."""
    return [
        {str(key): None if pd.isna(value) else _plain(value) for key, value in row.items()}
        for row in table.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def chance(share: float | None) -> str:
    """Write a probability as a percentage; near 0 and near 1 it keeps the digits that matter."""
    if share is None:
        return NONE
    if share <= _LEAST:
        return f"under {number(100.0 * _LEAST, 1)}%"
    if share < _NEAR:
        return f"{number(100.0 * share, 1)}%"
    if share > 1.0 - _NEAR:
        return f"over {100.0 * (1.0 - _NEAR):g}%"
    return f"{100.0 * share:.1f}%"


def sureness(confidence: float | None) -> str:
    """Write a confidence, which as a share of some thousand draws has no finer digits."""
    return (
        f"under {100.0 * _NEAR:g}%" if confidence is not None and confidence < _NEAR else chance(confidence)
    )


def chances(lower: float | None, upper: float | None) -> str:
    """Write an interval of probabilities; one number where both ends read the same."""
    ends = (chance(lower), chance(upper))
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def count(value: float | None) -> str:
    """Write a whole number."""
    return NONE if value is None else f"{value:,.0f}"


def sentence(text: str) -> str:
    """Begin a text with a capital letter."""
    return text[:1].upper() + text[1:]


def counted(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def cut(text: str, width: int) -> str:
    """Shorten a text at its end."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def cut_start(text: str, width: int) -> str:
    """Shorten a text at its beginning: names of results, traces and files differ at their ends."""
    return text if len(text) <= width else f"…{text[1 - width :]}"
