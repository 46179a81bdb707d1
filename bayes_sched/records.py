"""Rows of tables as plain values."""

from __future__ import annotations

from typing import Any

import pandas as pd


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as plain values, ready for JSON; what is missing or NaN becomes None."""
    return [
        {str(key): None if pd.isna(value) else _plain(value) for key, value in row.items()}
        for row in table.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
