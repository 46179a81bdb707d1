"""What a validation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import pandas as pd

from bayes_sched.records import records
from bayes_sched.validation.forecast import Forecast


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Held-out steps and a contender's forecast for them.

    Attributes
    ----------
    server, split, model : str
    test : DataFrame
        The steps.
    forecast : Forecast
    max_train_tokens : float
        Tokens of the largest training step.
    """

    server: str
    split: str
    model: str
    test: pd.DataFrame
    forecast: Forecast
    max_train_tokens: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What a validation found.

    Attributes
    ----------
    scores : DataFrame
        Tidy: ``server``, ``split``, ``repeat``, ``model``, ``regime``, ``rows``, ``metric``, ``value``; the
        metrics are those of `bayes_sched.validation.scores.scores_of`.
    fits : DataFrame
        One row a fit: ``server``, ``split``, ``repeat``, ``model``, ``train_rows`` of ``train_available``,
        ``test_rows`` of ``test_available``, ``seconds``, ``cpu_seconds``, ``converged`` (missing without a
        gate), ``error`` (a sentence where the fit failed).
    held_out : tuple of HeldOut
        The first repeat's forecasts, for figures.
    servers, splits, models : tuple of str
        In the order of the tables.
    notes : tuple of str
        What was left out or limited, a sentence each.
    settings : mapping
        What the study was made with, plain values.
    """

    scores: pd.DataFrame
    fits: pd.DataFrame
    held_out: tuple[HeldOut, ...]
    servers: tuple[str, ...]
    splits: tuple[str, ...]
    models: tuple[str, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def table(self, metric: str, *, server: str, regime: str = "all") -> pd.DataFrame:
        """Return a metric by model and split, averaged over the repeats; NaN where there is none.

        Parameters
        ----------
        metric : str
        server : str
        regime : str

        Returns
        -------
        DataFrame, dims (model, split)
        """
        splits, models = self.splits_of(server), self.models_of(server)
        rows = [
            [self.value(metric, server=server, split=s, model=m, regime=regime) for s in splits]
            for m in models
        ]
        return pd.DataFrame(
            rows, index=pd.Index(models, name="model"), columns=pd.Index(splits, name="split")
        )

    def value(self, metric: str, *, server: str, split: str, model: str, regime: str = "all") -> float:
        """Return a metric averaged over the repeats; NaN where there is none."""
        return self._means.get((metric, server, split, model, regime), float("nan"))

    def splits_of(self, server: str) -> list[str]:
        """Return the splits on which anything was scored, in the order of the tables."""
        scored = {key[2] for key in self._means if key[1] == server}
        return [name for name in self.splits if name in scored]

    def models_of(self, server: str) -> list[str]:
        """Return the models that were scored, in the order of the tables."""
        scored = {key[3] for key in self._means if key[1] == server}
        return [name for name in self.models if name in scored]

    @cached_property
    def _means(self) -> dict[tuple[str, ...], float]:
        keys = ["metric", "server", "split", "model", "regime"]
        return cast("dict[tuple[str, ...], float]", self.scores.groupby(keys)["value"].mean().to_dict())

    def unconverged(self, *, server: str, split: str, model: str) -> bool:
        """Return whether a fit failed its convergence gate in any repeat."""
        fits = self.fits.query("server == @server and split == @split and model == @model")
        return bool((~fits["converged"].fillna(True)).any())

    @property
    def text(self) -> str:
        """A sentence a person can paste: for each server and split the smallest CRPS."""
        parts = []
        for server in self.servers:
            table = self.table("crps_ms", server=server)
            best = [f"{table[s].idxmin()} {table[s].min():.3g} ms ({s})" for s in self.splits_of(server)]
            parts.append(f"{server}: smallest CRPS {', '.join(best)}." if best else f"{server}: no score.")
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "settings": dict(self.settings),
            "servers": list(self.servers),
            "splits": list(self.splits),
            "models": list(self.models),
            "text": self.text,
            "notes": list(self.notes),
            "fits": records(self.fits),
            "scores": records(self.scores),
        }
