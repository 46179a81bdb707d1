"""The study: every contender on every split of every server."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.whole_file import VERSION
from bayes_sched.errors import InputError
from bayes_sched.validation.contender import Contender
from bayes_sched.validation.forecast import Forecast
from bayes_sched.validation.kept import Kept
from bayes_sched.validation.result import HeldOut, Validation
from bayes_sched.validation.scores import score_table
from bayes_sched.validation.servers import Server
from bayes_sched.validation.splits import SPLITS, Cut, Split, cut

type Progress = Callable[[str, float | None], None]
"""Called with a stage in words and the share of it that is done."""

_MAX_SEED = 2**31 - 2**20  # samplers count up from it


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How steps are held out.

    Attributes
    ----------
    splits : tuple of str
        Of `bayes_sched.validation.splits.SPLITS`.
    repeats : int
        Of the random splits.
    seed : int
        Of everything random. What is held out does not depend on who takes part or on the other splits.
    max_train, max_test : int
        Steps to learn from and to predict at most; a random choice of them.
    rare_first : bool
        Whether the steps to learn from are chosen as a fit chooses them, the rare sizes first: they tell more
        of what lies beyond, and resemble those that are predicted less.
    """

    splits: tuple[str, ...] = tuple(SPLITS)
    repeats: int = 1
    seed: int = 0
    max_train: int = 4000
    max_test: int = 2000
    rare_first: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.splits if name not in SPLITS]
        if unknown or not self.splits:
            raise InputError(f"--splits {','.join(unknown)}: give some of {', '.join(SPLITS)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Heat:
    """One way of holding steps out of one server: all contenders meet the same steps."""

    server: Server
    split: Split
    repeat: int
    cut: Cut
    seed: int

    @property
    def title(self) -> str:
        return f"{self.server.name}, {self.split.name}" + (f" {self.repeat + 1}" if self.repeat else "")


def validate(
    servers: Sequence[Server],
    *,
    contenders: Sequence[Contender],
    settings: StudySettings | None = None,
    kept: Kept | None = None,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Validation:
    """Find out how well contenders predict steps that they have not seen.

    Parameters
    ----------
    servers : sequence of Server
        See `bayes_sched.validation.servers.servers_of`.
    contenders : sequence of Contender
    settings : StudySettings, optional
    kept : Kept, optional
        Where forecasts are kept; those that are there are not made again.
    notes : sequence of str
        Sentences that go before those of the study.
    progress : callable, optional

    Returns
    -------
    Validation

    Raises
    ------
    InputError
        No contender could be scored on any split.
    """
    settings = settings or StudySettings()
    said = [*notes, *(text for server in servers for text in server.warnings)]
    heats = [heat for server in servers for heat in _heats(server, settings, said)]
    able = {server.name: list(_able(server, contenders, said)) for server in servers}
    scores: list[pd.DataFrame] = []
    fits: list[dict[str, Any]] = []
    held_out: list[HeldOut] = []
    tasks = [(heat, contender) for heat in heats for contender in able[heat.server.name]]
    for number, (heat, contender) in enumerate(tasks):
        report = partial(progress or _silent, f"{heat.title}: {contender.name}", number / len(tasks))
        report()
        forecast, account = _run(heat, contender, kept, report)
        key = {"server": heat.server.name, "split": heat.split.name, "repeat": heat.repeat}
        key |= {"model": contender.name}
        fits.append(key | account)
        if forecast is None:
            said.append(f"{heat.title}: {contender.name} failed ({account['error']})")
            continue
        most = float(heat.cut.train["total_tokens"].max())
        scores.append(_with(key, score_table(forecast, heat.cut.test, max_train_tokens=most)))
        if not heat.repeat:
            names = {name: key[name] for name in ("server", "split", "model")}
            held_out.append(
                HeldOut(**names, test=heat.cut.test, forecast=forecast, max_train_tokens=most)  # type: ignore[arg-type]
            )
    if not scores:
        raise InputError(f"nothing could be scored: {'; '.join(said) or 'no contender, no split'}")
    return Validation(
        scores=pd.concat(scores, ignore_index=True),
        fits=pd.DataFrame(fits).astype({"converged": "boolean"}),
        held_out=tuple(held_out),
        servers=tuple(server.name for server in servers),
        splits=settings.splits,
        models=tuple(contender.name for contender in contenders),
        notes=tuple(dict.fromkeys(said)),
        settings=_plain(settings) | {"traces": {s.name: list(s.traces) for s in servers}},
    )


def _heats(server: Server, settings: StudySettings, notes: list[str]) -> Iterator[_Heat]:
    """Yield the splits that the server's steps allow, and note the others."""
    for split in (SPLITS[name] for name in settings.splits):
        for repeat in range(settings.repeats if split.is_random else 1):
            rng = np.random.default_rng([settings.seed, _number(server.name), _number(split.name), repeat])
            try:
                made = cut(
                    server.steps,
                    split,
                    rng=rng,
                    max_train=settings.max_train,
                    max_test=settings.max_test,
                    rare_first=settings.rare_first,
                )
            except InputError as error:
                notes.append(f"{server.name}: no split {split.name} ({error})")
                break
            seed = int(rng.integers(_MAX_SEED))
            yield _Heat(server=server, split=split, repeat=repeat, cut=made, seed=seed)


def _able(server: Server, contenders: Sequence[Contender], notes: list[str]) -> Iterator[Contender]:
    """Yield the contenders whose columns the server's traces hold, and note the others."""
    for contender in contenders:
        missing = [name for name in contender.columns if name not in server.steps]
        if missing:
            notes.append(f"{server.name}: {contender.name} left out, its traces lack {', '.join(missing)}")
        else:
            yield contender


def _run(
    heat: _Heat, contender: Contender, kept: Kept | None, report: Callable[[], None]
) -> tuple[Forecast | None, dict[str, Any]]:
    """Return the forecast, None if the contender fails, and the account of it."""
    account: dict[str, Any] = {
        "train_rows": len(heat.cut.train),
        "train_available": heat.cut.num_train,
        "test_rows": len(heat.cut.test),
        "test_available": heat.cut.num_test,
    }
    title = f"{heat.server.name}.{heat.split.name}.{heat.repeat}.{contender.name}"
    depends_on = _depends_on(heat, contender)
    found = kept.read(title, depends_on) if kept else None
    if found is None:
        before = time.perf_counter(), time.process_time()
        try:
            forecast = contender.fit(heat.cut.train, seed=heat.seed)(heat.cut.test)
        except Exception as error:  # whatever a contender does wrong must not cost the others hours
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return None, account | {"converged": None, "error": words}
        cost = {
            "seconds": round(time.perf_counter() - before[0], 3),
            "cpu_seconds": round(time.process_time() - before[1], 3),
        }
        report()  # where an interrupt is raised that a sampler took as a wish for fewer draws
        if kept:
            kept.write(title, depends_on, forecast, cost)
        found = forecast, cost
    return found[0], account | found[1] | {"converged": found[0].converged, "error": None}


def _depends_on(heat: _Heat, contender: Contender) -> dict[str, Any]:
    rows = pd.util.hash_pandas_object(pd.concat([heat.cut.train, heat.cut.test]), index=False)
    return {
        "steps": f"{int(rows.to_numpy().sum()):x}",
        "server": heat.server.sha256,
        "seed": heat.seed,
        "rows": [len(heat.cut.train), len(heat.cut.test)],
        "contender": repr(contender),
        "version": VERSION,
    }


def _with(key: dict[str, Any], table: pd.DataFrame) -> pd.DataFrame:
    for position, (name, value) in enumerate(key.items()):
        table.insert(position, name, value)
    return table


def _plain(settings: StudySettings) -> dict[str, Any]:
    names = ("repeats", "seed", "max_train", "max_test", "rare_first")
    return {"splits": list(settings.splits)} | {name: getattr(settings, name) for name in names}


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def _silent(stage: str, share: float | None) -> None:
    """Report progress to nobody."""
