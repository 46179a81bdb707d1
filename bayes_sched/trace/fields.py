"""Single fields of a step's JSON record, checked: a value in its range or the reason why not."""

import json
import math
from collections.abc import Mapping
from typing import Any

MAX_COUNT = 10**9
"""More requests or tokens than this in one step is damage. Sums and products of counts stay finite."""
MAX_MS = 1e9
"""A step of more than eleven days is damage."""
MAX_USAGE = 100.0
MAX_TIMESTAMP = 1e19
"""Room for a clock in nanoseconds."""

_INTEGERS_ONLY = {int}


class LineError(ValueError):
    """A line that is no usable step.

    Attributes
    ----------
    reason : str
        One of few texts, fit for counting.
    detail : str
        What this very line held; may be empty.
    is_noise : bool
        The line is no damage when it stands amid vLLM's own log.
    is_step : bool
        The line is recognisably meant to be a step.
    """

    def __init__(
        self, reason: str, *, detail: str = "", is_noise: bool = False, is_step: bool = True
    ) -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.is_noise = is_noise
        self.is_step = is_step


def number(record: Mapping[str, Any], field: str, *, high: float, required: bool = False) -> float:
    """Give a number in [0, high]; NaN where an optional one is absent, null or NaN.

    Raises
    ------
    LineError
        If it is anything else.
    """
    value: Any = record.get(field)
    kind = type(value)
    if kind is float or kind is int:  # not isinstance: True is an int to it
        if 0 <= value <= high:
            return value  # type: ignore[no-any-return]
        if value != value and not required:
            return math.nan
    elif value is None and not required:
        return math.nan
    raise _refusal(record, field, value, high)


def count(record: Mapping[str, Any], field: str, *, required: bool = False) -> float:
    """Give a whole number in [0, MAX_COUNT]; NaN where an optional one is absent, null or NaN.

    Raises
    ------
    LineError
        If it is anything else.
    """
    value: Any = record.get(field)
    if type(value) is int and 0 <= value <= MAX_COUNT:  # the way of nearly every field of nearly every line
        return value
    value = number(record, field, high=MAX_COUNT, required=required)
    if value != value or value.is_integer():
        return value  # type: ignore[no-any-return]
    raise LineError(f"{field} is not a whole number", detail=repr(value))


def _refusal(record: Mapping[str, Any], field: str, value: object, high: float) -> LineError:
    if field not in record:
        return LineError(f"missing field {field}")
    if isinstance(value, float) and math.isnan(value):
        return LineError(f"{field} is NaN")
    if isinstance(value, int | float) and not isinstance(value, bool):
        reason = "negative" if value < 0 else f"above {high:.0e}"
        # An integer in JSON may be too large for any format of a float.
        is_printable = isinstance(value, float) or abs(value) < 10**300
        return LineError(f"{field} is {reason}", detail=f"{value:.6g}" if is_printable else "")
    return LineError(f"{field} is {_kind(value)}", detail=shorten(json.dumps(value)))


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def sizes_of(
    record: Mapping[str, Any], field: str, count_field: str = "", num_expected: float | None = None
) -> list[int] | None:
    """Give a list of whole numbers in [0, MAX_COUNT]; None where it is absent or null.

    Raises
    ------
    LineError
        If it is anything else, or its length is not `num_expected`, which `count_field` tells.
    """
    sizes = record.get(field)
    if sizes is None:
        return None
    if type(sizes) is not list:
        raise LineError(f"{field} is {_kind(sizes)}, not a list", detail=shorten(json.dumps(sizes)))
    if sizes.count(1) != len(sizes):  # the chunks of a decode step need no closer look
        if set(map(type, sizes)) != _INTEGERS_ONLY:
            raise LineError(f"{field} holds something else than whole numbers")
        if min(sizes) < 0 or max(sizes) > MAX_COUNT:
            raise LineError(f"{field} holds a number outside 0 to {MAX_COUNT:.0e}")
    if num_expected is not None and len(sizes) != num_expected:
        raise LineError(
            f"{field} contradicts {count_field}",
            detail=f"{len(sizes)} entries where {num_expected:.0f} are due",
        )
    return sizes


def shorten(text: str, width: int = 60) -> str:
    """Make a foreign text fit for a message: printable and not long."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= width else text[: width - 3] + "..."
