"""A validation as plain text, no wider than a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable

from bayes_sched.numbers import NONE, number, percent
from bayes_sched.terminal import WIDTH, cut, text_table
from bayes_sched.validation import Validation

_MODEL_WIDTH = 20
_BEST, _FAILED_GATE = "*", "!"

LEGEND = (
    "CRPS: continuous ranked probability score, the average pinball loss; less is better, * is the least. "
    "! a fit failed its convergence gate."
)


def validation_text(found: Validation) -> str:
    """Return two tables for each server, CRPS and coverage of the 90 % band, by model and split."""
    parts = []
    for server in found.servers:
        parts += [_filled(f"{server}: {_rows_text(found, server)}"), crps_text(found, server=server)]
        parts.append(coverage_text(found, server=server))
    notes = [_filled(f"- {note}", indent="  ") for note in found.notes]
    return "\n\n".join([*parts, _filled(LEGEND), *(["\n".join(notes)] if notes else [])])


def crps_text(found: Validation, *, server: str) -> str:
    """Return the CRPS of one server by model and split."""
    table = found.table("crps_ms", server=server)
    best = {str(split): str(model) for split, model in table.idxmin().items()}

    def cell(split: str, model: str) -> str:
        marks = _BEST if best[split] == model else ""
        marks += _FAILED_GATE if found.unconverged(server=server, split=split, model=model) else ""
        return marks + number(found.value("crps_ms", server=server, split=split, model=model))

    return _table(found, server, "CRPS (ms)", cell)


def coverage_text(found: Validation, *, server: str) -> str:
    """Return the coverage of the 90 % band of one server by model and split."""

    def cell(split: str, model: str) -> str:
        share = found.value("coverage_90", server=server, split=split, model=model)
        return NONE if math.isnan(share) else percent(share)

    return _table(found, server, "steps in 90 % band", cell)


def _table(found: Validation, server: str, title: str, cell: Callable[[str, str], str]) -> str:
    splits = found.splits_of(server)
    rows = [
        [cut(model, _MODEL_WIDTH), *(cell(split, model) for split in splits)]
        for model in found.models_of(server)
    ]
    return text_table([title, *splits], rows, right=set(splits))


def _filled(text: str, *, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _rows_text(found: Validation, server: str) -> str:
    """Say how many steps are learned from and predicted, and what the caps took."""
    fits = found.fits[found.fits["server"] == server]
    if fits.empty:
        return "nothing was fitted"
    capped = sorted(
        set(fits.loc[fits["train_rows"] < fits["train_available"], "split"]), key=found.splits.index
    )
    train = f"at most {fits['train_rows'].max():,} steps to learn from"
    if capped:
        how = "rare sizes first" if found.settings["rare_first"] else "thinned at random"
        train += f" ({how} for {', '.join(capped)})"
    return f"{train}, at most {fits['test_rows'].max():,} to predict"
