"""Ways of holding steps out: what is learned from, and what is predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.random import Generator

from bayes_sched.arrays import Bools
from bayes_sched.errors import InputError
from bayes_sched.steps import regime
from bayes_sched.trace.cleaning import thin_steps

HELD_OUT = 0.2
"""Share of the steps that the random split and the split in time hold out."""
BLOCK = 100
"""Consecutive steps that are held out together: neighbours in time resemble each other, and a step whose
neighbours were learned from is half seen."""
MIN_ROWS = 20
"""Fewer training steps or held-out steps than this say nothing."""
_SAME_BUDGET = 0.9
_MAX_SEED = 2**31

type Choose = Callable[[pd.DataFrame, Generator], tuple[Bools, Bools]]
"""Steps and a random generator to the steps to learn from and the steps to predict, dims (row,) both."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A way of holding steps out.

    Attributes
    ----------
    name, title : str
    choose : callable
        Raises InputError, a sentence, where the steps do not allow it.
    is_random : bool
        Whether it makes sense to repeat it.
    """

    name: str
    title: str
    choose: Choose
    is_random: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Steps to learn from and steps to predict.

    Attributes
    ----------
    train, test : DataFrame
    num_train, num_test : int
        How many there were before they were thinned.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    num_train: int
    num_test: int


def cut(
    steps: pd.DataFrame,
    split: Split,
    *,
    rng: Generator,
    max_train: int,
    max_test: int,
    rare_first: bool = False,
) -> Cut:
    """Hold steps out.

    Parameters
    ----------
    steps : DataFrame
        Of a `bayes_sched.validation.servers.Server`.
    split : Split
    rng : Generator
    max_train, max_test : int
        Where there are more steps, a random choice of so many stays.
    rare_first : bool
        Whether those to learn from are chosen as a fit chooses them, the rare ones first
        (:func:`~bayes_sched.thinning.thin_steps`).

    Raises
    ------
    InputError
        The steps do not allow this split; the message is a sentence.
    """
    train, test = (np.flatnonzero(mask) for mask in split.choose(steps, rng))
    for rows, what in ((train, "to learn from"), (test, "to predict")):
        if len(rows) < MIN_ROWS:
            raise InputError(f"{len(rows)} steps {what}, fewer than {MIN_ROWS}")
    kept = [steps.iloc[rows].reset_index(drop=True) for rows in (train, test)]
    if rare_first:
        kept[0] = thin_steps(kept[0], max_train, seed=int(rng.integers(_MAX_SEED))).steps
    chosen = [_thinned(rows, most, rng) for rows, most in zip(kept, (max_train, max_test), strict=True)]
    return Cut(train=chosen[0], test=chosen[1], num_train=len(train), num_test=len(test))


def _thinned(steps: pd.DataFrame, most: int, rng: Generator) -> pd.DataFrame:
    if len(steps) <= most:
        return steps
    return steps.iloc[np.sort(rng.choice(len(steps), most, replace=False))].reset_index(drop=True)


def _random(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
    test = np.zeros(len(steps), dtype=bool)
    test[rng.choice(len(steps), round(HELD_OUT * len(steps)), replace=False)] = True
    return ~test, test


def _blocks(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
    """Hold out stretches of consecutive steps of each trace."""
    position = steps.groupby("trace").cumcount() // BLOCK
    block = steps.groupby(["trace", position], sort=False).ngroup().to_numpy()
    number = int(block.max()) + 1
    test = np.isin(block, rng.choice(number, round(HELD_OUT * number), replace=False))
    return ~test, test


def _last_in_time(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
    """Hold out the end of each trace."""
    position = steps.groupby("trace").cumcount().to_numpy()
    length = steps.groupby("trace")["trace"].transform("size").to_numpy()
    test = position >= (1.0 - HELD_OUT) * length
    return ~test, test


def _largest_budget(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
    """Hold out the traces with the largest budget."""
    budget = steps["budget"].to_numpy()
    test = budget >= _SAME_BUDGET * budget.max()
    if test.all():
        raise InputError(f"all its traces have one token budget, about {budget.max():,}")
    return ~test, test


def _decode_only(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
    train = (regime(steps) == "decode").to_numpy()
    return train, ~train


def _few(num_rows: int) -> Choose:
    def choose(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
        if len(steps) < num_rows + MIN_ROWS:
            raise InputError(f"it has {len(steps):,} steps")
        train = np.zeros(len(steps), dtype=bool)
        train[rng.choice(len(steps), num_rows, replace=False)] = True
        return train, ~train

    return choose


SPLITS = {
    split.name: split
    for split in (
        Split(name="random", title="a random 20 % held out", choose=_random, is_random=True),
        Split(
            name="blocks", title="a random 20 % held out, 100 steps in a row", choose=_blocks, is_random=True
        ),
        Split(name="time", title="the last 20 % of each trace held out", choose=_last_in_time),
        Split(name="rows-1000", title="1,000 random steps to learn from", choose=_few(1000), is_random=True),
        Split(name="rows-200", title="200 random steps to learn from", choose=_few(200), is_random=True),
        Split(name="rows-50", title="50 random steps to learn from", choose=_few(50), is_random=True),
        Split(name="budget", title="the largest token budget held out", choose=_largest_budget),
        Split(
            name="decode-only", title="decode steps to learn from, the others held out", choose=_decode_only
        ),
    )
}
"""By name, in the order of the tables."""
